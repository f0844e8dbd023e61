"""L0 regularisation with hard-concrete gates (Louizos, Welling and Kingma 2018, arXiv 1712.01312)."""

import math
from collections.abc import Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from contraprune.criteria.learned import scores_of
from contraprune.criteria.penalised import Penalised
from contraprune.masking import MaskedLinear
from contraprune.pruning_config import PruningConfig
from contraprune.schedules import Moment
from contraprune.selection import keep_top_together

LOW, HIGH = -0.1, 1.1  # the interval that gates are stretched to (gamma and zeta)
TEMPERATURE = 2 / 3  # beta
SHUT = math.log(-LOW / HIGH)  # the score up to which the gate in evaluation is zero; -SHUT: from which it is one
SMALLEST_GATE = 0.05  # of a weight that stays only because the density asks for it
TRAVEL = 10.0  # how far the best score that is to go starts from SHUT
SPREAD = 8.0  # how far apart the scores start that are to stay


class L0(Penalised):
    """Every weight (or block) is multiplied by a hard-concrete gate.

    Gates are drawn anew for every training batch, and fixed in evaluation.

    A weight is removed when its gate in evaluation is zero; kept weights are saved with their gates multiplied in.
    The penalty is the mean probability of an open gate (eq. 12 of the paper). When the masks freeze, the noise ends.

    With a density, scores start by the rank of the weights' importance: those to be removed spread evenly above the
    point where gates shut, so that pushing all down at the pace of the schedule shuts them in order; those to stay
    so far above that they are still open when the others are shut. Learning changes the order. A score has to travel
    from open to shut within the run, so the default learning rate is 50 divided by the steps of the run. In a run
    without a density scores start around the released code's 2.197, where a gate is open at 98 %.
    """

    def __init__(self, linears: Mapping[str, MaskedLinear], config: PruningConfig) -> None:
        super().__init__(linears, config)
        for name, linear in self.linears.items():
            linear.sampler = partial(self._sample, name)

    def _sample(self, name: str) -> Float[Tensor, "out in"]:
        return self.widen(sample_gates(self.deciding(name)))

    def score_learning_rate(self, steps: int) -> float:
        default = 1e-2 if self.config.density is None else 50 / steps
        return self.config.score_learning_rate or default

    @torch.no_grad()
    def start_from(self, saliency: Mapping[str, Float[Tensor, "out in"]]) -> None:
        for name, linear in self.linears.items():
            rank = self.starting_ranks(saliency[name])
            if self.config.density is None:
                scores_of(linear).copy_(rank - 0.5 - SHUT)
            else:
                scores_of(linear).copy_(scores_for(rank, self.config.density))

    def scheduled_weight(self, moment: Moment) -> float:
        assert self.config.final_penalty is not None
        return moment.cubic(0.0, self.config.final_penalty)

    def value(self) -> Float[Tensor, ""]:
        return torch.stack([probability_open(self.deciding(name)).mean() for name in self.linears]).mean()

    def masks(self, moment: Moment) -> dict[str, Tensor]:
        return {name: self.widen(evaluation_gates(self.deciding(name))) for name in self.linears}

    def masks_of(self, density: float) -> dict[str, Tensor]:
        scores = [self.deciding(name) for name in self.linears]
        return {
            name: self.widen(evaluation_gates(matrix).clamp_min(SMALLEST_GATE) * stays)
            for name, matrix, stays in zip(self.linears, scores, keep_top_together(scores, density), strict=True)
        }

    def freeze(self) -> None:
        super().freeze()
        for linear in self.linears.values():
            linear.sampler = None


def evaluation_gates(scores: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """The gates without noise, in [0, 1] (eq. 13)."""
    return _stretched(torch.sigmoid(scores))


def sample_gates(scores: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """One draw of every gate from its hard-concrete distribution (eq. 10-11), differentiable in the scores."""
    noise = torch.logit(torch.rand_like(scores), eps=1e-4)
    return _stretched(torch.sigmoid((noise + scores) / TEMPERATURE))


def probability_open(scores: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """How probable it is that a drawn gate is not zero (eq. 12)."""
    return torch.sigmoid(scores - TEMPERATURE * SHUT)


def _stretched(gates: Tensor) -> Tensor:
    return (gates * (HIGH - LOW) + LOW).clamp(0, 1)


def scores_for(rank: Float[Tensor, "out in"], density: float) -> Float[Tensor, "out in"]:
    """Where scores of the given importance ranks start in a run to ``density``; see :class:`L0`."""
    going = (rank / max(1 - density, 1e-6)).clamp_max(1.0)
    staying = ((rank - (1 - density)) / density).clamp_min(0.0)
    return SHUT + 0.01 + TRAVEL * going + SPREAD * staying
