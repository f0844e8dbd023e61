"""What criteria with learned scores share: the scores, and where they start."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from contraprune.criteria.base import Ranking
from contraprune.masking import MaskedLinear
from contraprune.patterns import Blocks, block_sums, spread


class LearnedRanking(Ranking):
    """Importance is a score per weight, learned with the gradient ``dL/d(W·mask) · W``.

    Scores start as the rank of each weight's (or block's) importance within its matrix, from 0 (least) to 1 (most),
    and learning changes the ranking from there; not started, they are all zero.
    """

    settings: ClassVar[frozenset[str]] = Ranking.settings | {"score_init", "score_learning_rate"}
    learns_scores: ClassVar[bool] = True
    started: ClassVar[bool] = True

    @torch.no_grad()
    def start_from(self, saliency: Mapping[str, Float[Tensor, "out in"]]) -> None:
        shape = self.config.shape
        for name, linear in self.linears.items():
            if isinstance(shape, Blocks):
                scores_of(linear).copy_(spread(ranks(block_sums(saliency[name], shape)), shape))
            else:
                scores_of(linear).copy_(ranks(saliency[name]))

    def importance(self, name: str) -> Float[Tensor, "out in"]:
        return scores_of(self.linears[name]).detach()


def scores_of(linear: MaskedLinear) -> Tensor:
    """The learned scores of a layer that has them."""
    assert linear.mask_scores is not None
    return linear.mask_scores


def ranks(importance: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """The rank of every entry within its matrix, spread evenly over [0, 1]; ties in order of position."""
    flat = importance.flatten()
    order = torch.argsort(flat, stable=True)
    result = torch.empty_like(flat)
    result[order] = torch.linspace(0, 1, flat.numel(), dtype=flat.dtype, device=flat.device)
    return result.view_as(importance)
