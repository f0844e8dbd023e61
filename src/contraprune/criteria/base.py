"""What every criterion of unstructured pruning answers: which weights stay at a given density."""

import abc
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from contraprune.masking import MaskedLinear
from contraprune.selection import keep_top, keep_top_together

Scope = Literal["local", "global"]


class Criterion(abc.ABC):
    """Ranks the weights of a set of masked layers.

    A subclass says how important each weight is now (:meth:`importance`); the weights kept are the top `density`
    of each matrix (``scope="local"``) or of all matrices together (``"global"``), exactly. It may learn its scores
    by gradient (``learns_scores``: then each layer has ``mask_scores``), watch gradients go by
    (:meth:`observe_gradients`), and keep tensors of its own that a checkpoint has to hold (:meth:`state`).
    """

    learns_scores: ClassVar[bool] = False

    def __init__(self, linears: Mapping[str, MaskedLinear], *, scope: Scope) -> None:
        self.linears = dict(linears)
        self.scope = scope

    @abc.abstractmethod
    def importance(self, name: str) -> Float[Tensor, "out in"]:
        """The importance score of every weight of the matrix ``name``; higher stays. Called without gradients."""

    def observe_gradients(self) -> None:  # noqa: B027 - most criteria have nothing to observe
        """Called once per optimiser step, after the backward passes and before the step.

        ``weight.grad`` is there, already zero where the mask is. The default does nothing.
        """

    def state(self) -> dict[str, Tensor]:
        """The tensors, beside the model's parameters, from which a run continues exactly."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores what :meth:`state` gave."""
        assert not state, f"{type(self).__name__} keeps no state"

    @torch.no_grad()
    def keep(self, density: float) -> dict[str, Bool[Tensor, "out in"]]:
        """Which weights stay at ``density``, the kept fraction in (0, 1]."""
        names = list(self.linears)
        if self.scope == "global":
            masks = keep_top_together([self.importance(name) for name in names], density)
            return dict(zip(names, masks, strict=True))
        return {name: keep_top(self.importance(name), density) for name in names}

    def update_masks(self, density: float) -> None:
        """Sets the mask of every layer for ``density``."""
        for name, keep in self.keep(density).items():
            self.linears[name].set_mask(keep)
