"""``python -m contraprune``, the same as ``contraprune``."""

from contraprune.cli import entry_point

entry_point()
