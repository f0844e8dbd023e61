"""``contraprune bench``: how fast and how large models are, in every runtime that is installed."""
