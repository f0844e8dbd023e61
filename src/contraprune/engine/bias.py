"""The position bias of MPNet as a table by distance."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder


def distance_bias(
    table: Float[np.ndarray, "buckets heads"], kept_heads: Sequence[int] | None, span: int
) -> Float[np.ndarray, "heads distances"]:
    """What is added to each head's attention scores, by query position minus key position, from 1 - span to span - 1.

    Args:
        table: the embedding of the buckets of distances.
        kept_heads: the heads that are left of those in ``table``; None: all.
    """
    distances = torch.arange(1 - span, span)
    buckets = MPNetEncoder.relative_position_bucket(-distances, num_buckets=len(table))
    bias: np.ndarray = table.T[:, buckets.numpy()]
    return np.ascontiguousarray(bias if kept_heads is None else bias[list(kept_heads)], np.float32)
