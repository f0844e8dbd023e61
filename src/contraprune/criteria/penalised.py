"""What criteria with a threshold share: a penalty that shuts scores, steered so that the run ends at its density."""

import abc
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from contraprune.criteria.base import Criterion
from contraprune.criteria.learned import ranks, scores_of
from contraprune.masking import MaskedLinear
from contraprune.patterns import Blocks, NOfM, best_of_groups, block_means, block_sums, keep_in_pattern, spread
from contraprune.pruning_config import PruningConfig
from contraprune.schedules import Moment
from contraprune.selection import keep_largest
from contraprune.steering import Pressure, steer

_FAR = 0.05  # of the density: more than this between what the penalty reached and --density is said


class Penalised(Criterion):
    """Keeps the weights whose score is above a threshold, and pushes scores down by a penalty in the loss.

    With ``config.final_penalty`` its weight follows a schedule and the density is what comes of it, as published.
    Else the weight is steered (:mod:`contraprune.steering`) so that the density, over all matrices, follows the
    cubic schedule to ``config.density``. The last masks of a steered run are those of the exact density: the
    threshold is moved to the quantile of the scores that leaves ``int(density * weights)``. After a run in which the
    penalty did its work that changes little; in a run too short for it (tens of steps), it is what keeps the promise.

    With blocks (``config.shape``) the mean of a block's scores is what meets the threshold and is penalised. With N:M
    a weight is shut, whatever its score, unless it is among the weights that the pattern leaves: all at the start,
    thinned by the cubic schedule in the order of their scores, at the end the best N of every group.

    A subclass has the penalty (:meth:`value`), the masks at a moment, and the masks of given weights, all from
    :meth:`deciding`.
    """

    settings: ClassVar[frozenset[str]] = frozenset(
        ("score_init", "score_learning_rate", "final_penalty", "pattern", "block")
    )
    learns_scores: ClassVar[bool] = True
    started: ClassVar[bool] = True

    def __init__(self, linears: Mapping[str, MaskedLinear], config: PruningConfig) -> None:
        super().__init__(linears, config)
        self.pressure = Pressure()
        self.weight = 0.0
        self.unit = 0.0
        self.frozen = False
        self.allowed: dict[str, Tensor] = {}  # with N:M: what the pattern leaves now; before the first masks, all

    def deciding(self, name: str) -> Float[Tensor, "_down _across"]:
        """The scores that meet the threshold: one for each weight or block of a matrix; -inf: shut by the pattern."""
        scores = scores_of(self.linears[name])
        if isinstance(self.config.shape, Blocks):
            return block_means(scores, self.config.shape)
        return scores.masked_fill(~self.allowed[name], -math.inf) if name in self.allowed else scores

    def widen(self, values: Tensor) -> Tensor:
        """Gives every weight what was decided with its :meth:`deciding` score."""
        return spread(values, self.config.shape) if isinstance(self.config.shape, Blocks) else values

    def starting_ranks(self, saliency: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """Ranks from 0 to 1 in the order in which the weights may go: by blocks; with N:M the best N last."""
        match self.config.shape:
            case Blocks() as blocks:
                return spread(ranks(block_sums(saliency, blocks)), blocks)
            case NOfM() as pattern:
                rank = ranks(saliency)
                return ranks(rank.double() + best_of_groups(rank, pattern)).to(rank.dtype)
            case _:
                return ranks(saliency)

    @abc.abstractmethod
    def value(self) -> Float[Tensor, ""]:
        """The penalty, in [0, 1]: the mean over the matrices of the mean over their scores."""

    @abc.abstractmethod
    def masks(self, moment: Moment) -> dict[str, Tensor]:
        """The mask of every layer by the threshold of this moment."""

    @abc.abstractmethod
    def masks_of(self, density: float) -> dict[str, Tensor]:
        """The mask of every layer with exactly ``int(density * weights)`` weights (or blocks) kept over all."""

    @abc.abstractmethod
    def scheduled_weight(self, moment: Moment) -> float:
        """The weight of the penalty in a run without a density."""

    def penalty(self) -> tuple[float, Tensor] | None:
        return None if self.weight == 0 or self.frozen else (self.weight, self.value())

    @torch.no_grad()
    def update_masks(self, moment: Moment) -> None:
        final = self.config.density
        self._thin(moment)
        masks = self.masks(moment)
        if moment.last and final is not None:
            _warn_if_far(kept(masks.values()), final)
            masks = self.masks_of(final)
        for name, mask in masks.items():
            self.linears[name].set_mask(mask)
        if moment.last:
            self.freeze()
        elif final is None:
            self.weight = self.scheduled_weight(moment)
        else:
            wanted = moment.cubic(1.0, final)
            least = 1 / sum(mask.numel() for mask in masks.values())  # nothing kept: pressed as if one weight were
            density = max(kept(masks.values()), least)
            self.pressure = steer(self.pressure, density=density, wanted=wanted, steps=moment.total)
            self.weight = self.pressure.weight(self.unit)

    def _thin(self, moment: Moment) -> None:
        shape = self.config.shape
        if isinstance(shape, NOfM):
            falling = moment.cubic(1.0, self.config.density or shape.density)
            share = shape.density if moment.last else max(shape.density, falling)
            for name, linear in self.linears.items():
                self.allowed[name] = keep_in_pattern([scores_of(linear).detach()], share, shape)[0]

    def freeze(self) -> None:
        """From here on masks stay as they are, and nothing pushes the scores."""
        self.frozen = True

    @torch.no_grad()
    def observe_gradients(self) -> None:
        """Measures the unit of the weight: how much the loss pulls at the scores, as a moving average.

        Adam divides every score's gradient by its own size, so only the ratio of the two pulls matters.
        """
        if self.config.density is None or self.frozen:
            return
        gradients = [scores_of(linear).grad for linear in self.linears.values()]
        pulls = [gradient.abs().mean() for gradient in gradients if gradient is not None]
        pull = float(torch.stack(pulls).mean()) * sum(linear.weight.numel() for linear in self.linears.values())
        if math.isfinite(pull):
            self.unit = pull if self.unit == 0 else 0.9 * self.unit + 0.1 * pull

    def state(self) -> dict[str, Tensor]:
        numbers = (self.pressure.integral, self.pressure.value, self.weight, self.unit, float(self.frozen))
        allowed = {f"allowed.{name}": mask for name, mask in self.allowed.items()}
        return {"steering": torch.tensor(numbers, dtype=torch.float64), **allowed}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, linear in self.linears.items():
            if f"allowed.{name}" in state:
                self.allowed[name] = state[f"allowed.{name}"].to(linear.weight.device)
        integral, value, self.weight, self.unit, frozen = state["steering"].tolist()
        self.pressure = Pressure(integral=integral, value=value)
        if frozen:
            self.freeze()


def _warn_if_far(reached: float, density: float) -> None:
    if abs(reached - density) > _FAR * density:
        warnings.warn(
            f"the penalty had brought the density to {reached:.3f} when the masks became final; the rest of the way to "
            f"--density {density:g} was cut at once; train longer (--num_train_epochs) or shorten --freeze_masks",
            stacklevel=3,
        )


def kept(masks: Iterable[Tensor]) -> float:
    """The fraction of all mask entries that is not zero."""
    counts = [(int(mask.count_nonzero()), mask.numel()) for mask in masks]
    return sum(count for count, _ in counts) / sum(total for _, total in counts)


def keep_with_floors(
    scores: Sequence[Float[Tensor, "_out _in"]], density: float, floors: Sequence[int]
) -> list[Tensor]:
    """The masks of the ``int(density * scores)`` largest scores of all matrices, each keeping at least its floor.

    The floors together are no more than that.
    """
    own = [keep_largest([matrix], floor)[0] for matrix, floor in zip(scores, floors, strict=True)]
    count = int(density * sum(matrix.numel() for matrix in scores)) - sum(floors)
    others = keep_largest([matrix[~mask] for matrix, mask in zip(scores, own, strict=True)], count)
    for mask, more in zip(own, others, strict=True):
        mask[~mask] = more
    return own
