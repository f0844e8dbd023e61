"""What every criterion of unstructured pruning answers: which weights stay at this moment of the run."""

import abc
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from contraprune.errors import UserError
from contraprune.masking import MaskedLinear
from contraprune.patterns import keep_in_pattern
from contraprune.pruning_config import PruningConfig
from contraprune.schedules import Moment
from contraprune.selection import Threshold


class Criterion(abc.ABC):
    """Decides which weights of a set of masked layers stay, step after step.

    Raises:
        UserError: see :meth:`check`.

    A run calls, in this order:

    - :meth:`check`, as soon as it knows the model;
    - the constructor, with layers in which nothing is masked yet, and which pass :meth:`check`;
    - :meth:`start_from`, if the class is ``started`` (not when the run continues from a checkpoint);
    - :meth:`update_masks` before the first step and after every step until the masks freeze; the call whose moment
      is ``last`` makes the masks of the result;
    - once per optimiser step, between the backward passes and the step, :meth:`observe_gradients` and then
      :meth:`penalty`;
    - :meth:`state` when a checkpoint is written, :meth:`load_state` when one is read (the masks themselves and the
      learned scores are saved and restored by the trainer).

    Most criteria rank the weights: see :class:`Ranking`, which leaves one method to write.
    """

    settings: ClassVar[frozenset[str]] = frozenset()
    """The fields of ``PruningConfig`` that have an effect with this criterion, of those that not all share."""
    learns_scores: ClassVar[bool] = False
    """Each layer has a parameter ``mask_scores``, trained with the gradient straight through the mask."""
    trains_weights: ClassVar[bool] = True
    """False: all but the scores and the task's head stays as it was (no layer's weight has a gradient then)."""
    dense_gradients: ClassVar[bool] = False
    """:meth:`observe_gradients` finds the gradients of the weights that are masked, too, not zeros there."""
    started: ClassVar[bool] = False
    """:meth:`start_from` wants the importance of the weights before anything is pruned."""

    def __init__(self, linears: Mapping[str, MaskedLinear], config: PruningConfig) -> None:
        self.check({name: linear.weight.shape for name, linear in linears.items()}, config)
        self.linears = dict(linears)
        self.config = config

    @classmethod
    def check(cls, shapes: Mapping[str, Sequence[int]], config: PruningConfig) -> None:
        """Refuses settings that matrices of these shapes (out, in), by name, cannot meet.

        Raises:
            UserError: a matrix does not divide into the groups or blocks of ``config.shape``.
        """
        for name, (rows, columns) in shapes.items():
            if config.shape is not None and not config.shape.fits((rows, columns)):
                flag = "pattern" if config.pattern is not None else "block"
                raise UserError(f"--{flag} {config.shape}: {name} of {rows} x {columns} weights does not divide by it")

    @abc.abstractmethod
    def update_masks(self, moment: Moment) -> None:
        """Sets the mask of every layer (``linear.set_mask``) for this moment of the run. Outside of autograd.

        Raises ValueError when there is a NaN among the scores.
        """

    def start_from(self, saliency: Mapping[str, Float[Tensor, "out in"]]) -> None:  # noqa: B027
        """Given once: per matrix, how much each weight matters to the starting model (``--score_init``)."""

    def score_learning_rate(self, steps: int) -> float:
        """Peak learning rate of the scores in a run of ``steps`` optimiser steps."""
        return self.config.score_learning_rate or 1e-3

    def penalty(self) -> tuple[float, Tensor] | None:
        """A term beside the training loss: its weight, and its value, a scalar that gradients flow through.

        Its gradient is added to what the loss gave after that was clipped.
        """
        return None

    def observe_gradients(self) -> None:  # noqa: B027 - most criteria have nothing to observe
        """``weight.grad`` and ``mask_scores.grad`` of every layer are there, accumulated and clipped."""

    def state(self) -> dict[str, Tensor]:
        """The tensors, beside masks and the model's parameters, from which a run continues exactly."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores what :meth:`state` gave."""
        assert not state, f"{type(self).__name__} keeps no state"


class Ranking(Criterion):
    """Keeps the most important weights, exactly as many as the density schedule says at this moment.

    A subclass says how important each weight is now (:meth:`importance`). What stays is the top ``density`` of each
    matrix or of all together (``config.scope``), among what ``config.shape`` allows.
    """

    settings: ClassVar[frozenset[str]] = frozenset(("scope", "pattern", "block"))

    def __init__(self, linears: Mapping[str, MaskedLinear], config: PruningConfig) -> None:
        super().__init__(linears, config)
        self._last = {name: Threshold() for name in ("", *linears)}  # "": of all matrices together

    @abc.abstractmethod
    def importance(self, name: str) -> Float[Tensor, "out in"]:
        """The importance score of every weight of the matrix ``name``; higher stays. Called without gradients."""

    @torch.no_grad()
    def keep(self, density: float) -> dict[str, Bool[Tensor, "out in"]]:
        """Which weights stay at ``density``, the kept fraction in (0, 1]."""
        scores = {name: self.importance(name) for name in self.linears}
        if self.config.scope == "global":
            masks = keep_in_pattern(list(scores.values()), density, self.config.shape, last=self._last[""])
            return dict(zip(scores, masks, strict=True))
        return {
            name: keep_in_pattern([matrix], density, self.config.shape, last=self._last[name])[0]
            for name, matrix in scores.items()
        }

    def update_masks(self, moment: Moment) -> None:
        assert self.config.density is not None
        for name, keep in self.keep(moment.cubic(1.0, self.config.density)).items():
            self.linears[name].set_mask(keep)
