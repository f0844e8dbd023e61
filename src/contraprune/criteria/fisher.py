"""Diagonal-Fisher pruning: the loss expected from removing a weight, ``W² · E[g²]`` (optimal brain damage)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from contraprune.criteria.base import Ranking
from contraprune.masking import MaskedLinear
from contraprune.pruning_config import PruningConfig


class Fisher(Ranking):
    """Importance is ``W² · F``, with ``F`` a moving average of the squared gradient.

    The second-order term of LeCun et al. 1989 with the diagonal of the empirical Fisher information for the Hessian,
    which at high sparsity beats magnitude and movement in Kurtic et al. 2022 (oBERT, arXiv 2203.07259; theirs has
    blocks where this has a diagonal, and re-estimates where this averages). ``g`` is the gradient with respect to
    the weight as it is used, ``W · mask``, and is there for masked weights too: their values are kept under the mask,
    so they are rated like all others and come back when they matter again.

    The average starts at the Fisher information of the starting model and forgets it by ``config.fisher_decay`` per
    optimiser step. Steps whose gradient is not finite (an overflow under fp16) are left out.
    """

    settings: ClassVar[frozenset[str]] = Ranking.settings | {"fisher_decay"}
    dense_gradients: ClassVar[bool] = True
    started: ClassVar[bool] = True

    def __init__(self, linears: Mapping[str, MaskedLinear], config: PruningConfig) -> None:
        super().__init__(linears, config)
        self.information = {name: torch.zeros_like(linear.weight) for name, linear in self.linears.items()}

    @torch.no_grad()
    def start_from(self, saliency: Mapping[str, Float[Tensor, "out in"]]) -> None:
        for name, linear in self.linears.items():
            squares = linear.weight.square().clamp_min(torch.finfo(linear.weight.dtype).tiny)
            self.information[name].copy_(saliency[name] / squares)

    def importance(self, name: str) -> Float[Tensor, "out in"]:
        return self.linears[name].weight.square() * self.information[name]

    @torch.no_grad()
    def observe_gradients(self) -> None:
        gradients = {name: linear.weight.grad for name, linear in self.linears.items()}
        if not all(gradient is not None and gradient.sum().isfinite() for gradient in gradients.values()):
            return
        decay = self.config.fisher_decay
        for name, average in self.information.items():
            average.mul_(decay).addcmul_(gradients[name], gradients[name], value=1 - decay)  # type: ignore[arg-type]

    def state(self) -> dict[str, Tensor]:
        return dict(self.information)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.information = {name: state[name] for name in self.linears}
