"""Movement pruning (Sanh et al. 2020): scores learned by gradient, straight through the mask."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from contraprune.criteria.base import Criterion
from contraprune.masking import MaskedLinear


class Movement(Criterion):
    """Importance is a learned score per weight, trained with the gradient ``dL/d(W·mask) · W``.

    A weight's score rises while training moves it away from zero. The paper starts every score at zero, so that
    the first masks are noise; that needs tens of thousands of steps to recover. Given ``initial``, the scores
    start as the rank of each weight's importance within its matrix, from 0 (least) to 1 (most), and learning
    changes the ranking from there.
    """

    learns_scores: ClassVar[bool] = True

    @torch.no_grad()
    def start_from(self, importance: Mapping[str, Float[Tensor, "out in"]]) -> None:
        """Sets every score to the rank of the weight's importance within its matrix, from 0 to 1."""
        for name, linear in self.linears.items():
            self._scores(linear).copy_(ranks(importance[name]))

    def importance(self, name: str) -> Float[Tensor, "out in"]:
        return self._scores(self.linears[name]).detach()

    @staticmethod
    def _scores(linear: MaskedLinear) -> Tensor:
        assert linear.mask_scores is not None
        return linear.mask_scores


def ranks(importance: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """The rank of every entry within its matrix, spread evenly over [0, 1]; ties in order of position."""
    flat = importance.flatten()
    order = torch.argsort(flat, stable=True)
    result = torch.empty_like(flat)
    result[order] = torch.linspace(0, 1, flat.numel(), dtype=flat.dtype, device=flat.device)
    return result.view_as(importance)
