"""Where the attention heads and FFN neurons of a transformers model are, and how long its texts may be.

``find_layers`` answers with plain records. Everything else in the package asks these records and never the
model's class; what is particular to an architecture is one entry of ``ARCHITECTURES``.
"""

from contraprune.structure.architectures import ARCHITECTURES, Architecture
from contraprune.structure.layers import (
    HeadGroup,
    Layer,
    NeuronGroup,
    Projection,
    assert_same_model,
    feature_dims,
    find_layers,
    in_features,
)
from contraprune.structure.positions import most_tokens, skipped_token, text_length

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "HeadGroup",
    "Layer",
    "NeuronGroup",
    "Projection",
    "assert_same_model",
    "feature_dims",
    "find_layers",
    "in_features",
    "most_tokens",
    "skipped_token",
    "text_length",
]
