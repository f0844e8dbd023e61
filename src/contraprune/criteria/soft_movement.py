"""Soft movement pruning (Sanh et al. 2020, section 4): a score threshold that rises, and an L1 penalty."""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from contraprune.criteria.l0 import probability_open
from contraprune.criteria.learned import scores_of
from contraprune.criteria.penalised import Penalised, keep_with_floors
from contraprune.errors import UserError
from contraprune.masking import MaskedLinear
from contraprune.patterns import NOfM, units
from contraprune.pruning_config import PruningConfig
from contraprune.schedules import Moment, penalty
from contraprune.selection import keep_above, least_above

FINAL_THRESHOLD = 0.1


class SoftMovement(Penalised):
    """Keeps the weights with ``sigmoid(score) > threshold``; scores learn with the straight-through gradient.

    The threshold rises from 0 to ``config.final_threshold`` by the cubic schedule; every matrix keeps at least 0.5 %
    of its weights (or blocks).
    The penalty is the mean of ``sigmoid(score)`` (L1), or of the probability that a hard-concrete gate of that score
    is open (``config.regularizer`` "l0", as in the released code).

    With a density, scores start so that the rising threshold alone, met by scores that do not move, would follow the
    density schedule: ``sigmoid(score) = rank / (1 - density) · final_threshold`` with ranks in [0, 1] from the
    importance of the weights; what learning changes, the steered penalty corrects. Without one they start
    at the rank minus a half, around the paper's zero.
    """

    settings: ClassVar[frozenset[str]] = Penalised.settings | {"final_threshold", "regularizer"}

    def __init__(self, linears: Mapping[str, MaskedLinear], config: PruningConfig) -> None:
        super().__init__(linears, config)
        self.final_threshold = FINAL_THRESHOLD if config.final_threshold is None else config.final_threshold
        self.floors = [least_above(self.deciding(name).numel()) for name in linears]

    @classmethod
    def check(cls, shapes: Mapping[str, Sequence[int]], config: PruningConfig) -> None:
        """Also raises UserError for a density, or one of an N:M pattern, below what 0.5 % of every matrix leave."""
        super().check(shapes, config)
        sizes = [units(shape, config.shape) for shape in shapes.values()]
        floors = [least_above(size) for size in sizes]
        least = sum(floors) / sum(sizes)
        if config.density is not None and int(config.density * sum(sizes)) < sum(floors):
            raise UserError(
                f"--density {config.density:g}: soft movement keeps 0.5 % of every matrix; expected at least "
                f"{math.ceil(least * 1e4) / 1e4:g}"
            )
        if isinstance(config.shape, NOfM):
            for size, floor in zip(sizes, floors, strict=True):
                if floor > size * config.shape.density:
                    raise UserError(
                        f"--pattern {config.pattern}: soft movement keeps 0.5 % of every matrix; "
                        "expected a pattern that leaves more"
                    )

    def score_learning_rate(self, steps: int) -> float:
        default = 1e-2 if self.config.density is None else 1e-3
        return self.config.score_learning_rate or default

    @torch.no_grad()
    def start_from(self, saliency: Mapping[str, Float[Tensor, "out in"]]) -> None:
        for name, linear in self.linears.items():
            rank = self.starting_ranks(saliency[name])
            if self.config.density is None:
                scores_of(linear).copy_(rank - 0.5)
            else:
                scores_of(linear).copy_(scores_for(rank, self.final_threshold, self.config.density))

    def threshold(self, moment: Moment) -> float:
        return moment.cubic(0.0, self.final_threshold)

    def scheduled_weight(self, moment: Moment) -> float:
        assert self.config.final_penalty is not None
        return penalty(
            self.threshold(moment), final_threshold=self.final_threshold, final_penalty=self.config.final_penalty
        )

    def value(self) -> Float[Tensor, ""]:
        pass_open = torch.sigmoid if self.config.regularizer == "l1" else probability_open
        return torch.stack([pass_open(self.deciding(name)).mean() for name in self.linears]).mean()

    def masks(self, moment: Moment) -> dict[str, Tensor]:
        threshold = self.threshold(moment)
        return {name: self.widen(keep_above(self.deciding(name), threshold)) for name in self.linears}

    def masks_of(self, density: float) -> dict[str, Tensor]:
        masks = keep_with_floors([self.deciding(name) for name in self.linears], density, self.floors)
        return {name: self.widen(mask) for name, mask in zip(self.linears, masks, strict=True)}


def scores_for(rank: Float[Tensor, "out in"], final_threshold: float, density: float) -> Float[Tensor, "out in"]:
    """Scores of which a threshold ``final_threshold * p`` leaves the top ``1 - p * (1 - density)``, for p in (0, 1].

    Above the cut the logarithm of the odds goes on in a straight line, so that any density below 1 can be had.
    """
    share = (rank / max(1 - density, 1e-6)).clamp_min(1e-6)  # 1 at the cut
    odds = final_threshold * share.clamp_max(1.0)
    slope = 1 / (1 - final_threshold)  # of the log-odds in share, at the cut
    return torch.logit(odds) + slope * (share - 1).clamp_min(0.0)
