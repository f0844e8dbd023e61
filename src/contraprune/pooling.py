"""From token representations to one representation per example."""

from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

Pooling = Literal["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


def pool(
    last_hidden_state: Float[Tensor, "batch length dim"],
    attention_mask: Shaped[Tensor, "batch length"],
    *,
    pooling: Pooling,
    pooler_output: Float[Tensor, "batch dim"] | None = None,
) -> Float[Tensor, "batch dim"]:
    """The sentence representation that contrastive pruning compares, not normalised.

    Tokens are those whose ``attention_mask`` is not zero; padding may be on either side. ``"cls"`` is the model's
    ``pooler_output`` where it has one and it is given, else the first token; ``"mean"`` the mean over the tokens
    (zero for a row without any). The others are known from sentence-transformers: ``"max"`` per dimension,
    ``"mean_sqrt_len_tokens"`` the sum divided by the root of the number of tokens, ``"weightedmean"`` with weights
    1, 2, 3, ... and ``"lasttoken"``.

    Source: CAP (arXiv 2112.07198, section 3.2) and its released code; ``"mean_sqrt_len_tokens"`` Cer et al. 2018
    (arXiv 1803.11175), ``"weightedmean"`` Muennighoff 2022 (arXiv 2202.08904).
    """
    tokens = attention_mask != 0
    if pooling == "cls" and pooler_output is not None:
        return pooler_output
    if pooling in ("cls", "lasttoken"):
        length = tokens.shape[1]
        place = tokens.long().argmax(dim=1) if pooling == "cls" else length - 1 - tokens.flip(1).long().argmax(dim=1)
        return last_hidden_state[torch.arange(len(place), device=place.device), place]
    if pooling == "max":
        return last_hidden_state.masked_fill(~tokens.unsqueeze(-1), -torch.inf).amax(dim=1)
    counted = tokens.cumsum(dim=1) * tokens if pooling == "weightedmean" else tokens
    weights = counted.to(last_hidden_state.dtype).unsqueeze(-1)
    total = weights.sum(dim=1).clamp_min(1)
    return (last_hidden_state * weights).sum(dim=1) / (total.sqrt() if pooling == "mean_sqrt_len_tokens" else total)
