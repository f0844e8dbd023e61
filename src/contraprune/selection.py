"""Which weights, heads or neurons stay. Exact counts, ties included, and never a full sort of weights."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

# Scores looked at to guess where the threshold lies. More of them cost more to sort and leave fewer scores
# inside the guessed bracket, which have to be copied out: for matrices of 0.1 to 2.4 million scores this is best.
_SAMPLE_SIZE = 32768
MIN_DENSITY = 0.005  # of every matrix, whatever the threshold


class Threshold:
    """Where a selection that is made again and again, of slowly changing scores, drew the line last time.

    Given to every call, it makes the next one faster on a CPU, and never changes what is selected.
    """

    def __init__(self) -> None:
        self._value: float | None = None
        self._reach = 0.0

    def bracket(self) -> tuple[float, float] | None:
        """Two scores between which the line is likely to be now; None where nothing is known."""
        return None if self._value is None else (self._value - self._reach, self._value + self._reach)

    def moved(self, value: float, reach: float) -> None:
        """Notes where it was drawn now, and how far off it may have been at first."""
        # Six times as far as it went: to miss it next time costs more than to look at some more scores.
        if self._value is not None:  # where it stands still, scores are tied: it is looked for there only
            reach = 0.0 if value == self._value else max(6 * abs(value - self._value), self._reach / 2)
        known = math.isfinite(value) and math.isfinite(reach)
        self._value, self._reach = (value, reach) if known else (None, 0.0)


def keep_top(scores: Float[Tensor, "*shape"], density: float) -> Bool[Tensor, "*shape"]:
    """The mask of the ``int(density * scores.numel())`` largest scores, exactly that many, on their device.

    Among equal scores those with the lowest flat index stay. ±inf are ordinary scores.

    Raises ValueError for a NaN among the scores or a density outside [0, 1].
    """
    return keep_top_together([scores], density)[0]


def keep_top_together(
    scores: Sequence[Float[Tensor, "..."]], density: float, *, last: Threshold | None = None
) -> list[Bool[Tensor, "..."]]:
    """The masks of the ``int(density * total)`` largest scores of all matrices together (global scope).

    All matrices are on one device. Among equal scores earlier matrices come first, then lower flat indices. ``last``
    is this selection's memory of its last time.

    Raises ValueError for a NaN among the scores or a density outside [0, 1].
    """
    if not 0 <= density <= 1:
        raise ValueError(f"density must lie in [0, 1], found {density}")
    return keep_largest(scores, int(density * sum(matrix.numel() for matrix in scores)), last=last)


def keep_largest(
    scores: Sequence[Float[Tensor, "..."]], count: int, *, last: Threshold | None = None
) -> list[Bool[Tensor, "..."]]:
    """The masks of exactly the ``count`` largest scores of all matrices together; see :func:`keep_top_together`.

    Raises ValueError for a NaN among the scores.
    """
    values = [matrix.detach() for matrix in scores]
    total = sum(matrix.numel() for matrix in values)
    dtype = torch.float64 if any(matrix.dtype == torch.float64 for matrix in values) else torch.float32
    flat = [matrix.flatten().to(dtype) for matrix in values]
    if count in (0, total):
        refuse_nan(flat)
        return [torch.full_like(matrix, count > 0, dtype=torch.bool) for matrix in values]
    if all(matrix.device.type == "cpu" for matrix in flat):
        found = _largest_numpy([matrix.numpy() for matrix in flat], count, last or Threshold())
        masks = [torch.from_numpy(mask) for mask in found]
    else:
        refuse_nan(flat)
        masks = list(_largest_torch(torch.cat(flat), count).split([len(matrix) for matrix in flat]))
    return [mask.view(matrix.shape) for mask, matrix in zip(masks, values, strict=True)]


def keep_above(
    scores: Float[Tensor, "*shape"], threshold: float, *, min_density: float = MIN_DENSITY
) -> Bool[Tensor, "*shape"]:
    """The mask of the scores with ``sigmoid(score) > threshold``, but of no fewer than a floor.

    The floor is ``int(min_density * scores.numel()) + 1``: where fewer pass the threshold, exactly that many
    stay, as in ``keep_top``.

    Raises ValueError for a NaN among the scores.

    Source: soft movement pruning, Sanh et al. 2020 (arXiv 2005.07683, section 4); the floor is the released
    code's, which keeps fewer where scores are tied at it.
    """
    values = scores.detach()
    refuse_nan([values])
    mask = torch.sigmoid(values.to(torch.promote_types(values.dtype, torch.float32))) > threshold
    floor = least_above(values.numel(), min_density)
    return mask if mask.count_nonzero() >= floor else keep_largest([values], floor)[0]


def least_above(size: int, min_density: float = MIN_DENSITY) -> int:
    """The floor of :func:`keep_above` for a matrix of ``size`` scores."""
    return min(int(min_density * size) + 1, size)


def remove_lowest(
    importance: Float[Tensor, "layers units"],
    alive: Shaped[Tensor, "layers units"],
    count: int,
    *,
    keep_at_least: int = 1,
    divisor: int = 1,
) -> Shaped[Tensor, "layers units"]:
    """A copy of ``alive`` (non-zero: living) without its ``count`` least important living units.

    Units of all layers compete. In every layer the ``keep_at_least`` most important living units are out of
    reach, dead ones do not count. Among equals the lower flat index goes first.

    With a ``divisor``, the layers it takes from are left with multiples of that: their least important units go
    together, that many at a time (the first time what is over), and compete with their mean; as near to ``count`` go
    as that allows.

    Raises ValueError when fewer than ``count`` units are within reach or a living unit's importance is NaN.

    Source: Michel et al. 2019 (arXiv 1905.10650) as used by CAP for heads and neurons.
    """
    living = alive != 0
    if importance[living].isnan().any():
        raise ValueError("the importance of a living unit is NaN")
    order = importance.argsort(dim=1, stable=True)
    living_in_order = living.gather(1, order)
    living_from_here_up = living_in_order.flip(1).cumsum(1).flip(1)
    in_reach = torch.zeros_like(living).scatter(1, order, living_in_order & (living_from_here_up > keep_at_least))
    candidates = in_reach.flatten().nonzero().squeeze(1)
    if count > len(candidates):
        raise ValueError(
            f"cannot remove {count} units: of {int(living.sum())} living ones only {len(candidates)} may go "
            f"while each of {len(alive)} layers keeps at least {keep_at_least}"
        )
    if divisor == 1:
        lowest = candidates[importance.flatten()[candidates].argsort(stable=True)[:count]]
    else:
        groups: list[tuple[float, Tensor]] = []
        for row, units in enumerate(order):
            mine = _groups(units[living[row, units]] + row * len(units), keep_at_least, divisor)
            means = [float(importance.flatten()[group].double().mean()) for group in mine]
            # Rounding must not let a group go before those below it in its layer.
            groups += zip(itertools.accumulate(means, max), mine, strict=True)
        lowest = _nearest(groups, count)
    survivors = alive.flatten().clone()
    survivors[lowest] = 0
    return survivors.view(alive.shape)


def _groups(units: Int[Tensor, " living"], keep_at_least: int, divisor: int) -> list[Int[Tensor, " _group"]]:
    """The units of a layer, least important first, cut so that a multiple of ``divisor`` is left after each part."""
    sizes = [len(units) % divisor] * (len(units) % divisor > 0) + [divisor] * (len(units) // divisor)
    ends = itertools.accumulate(sizes)
    return [part for part, end in zip(units.split(sizes), ends, strict=True) if len(units) - end >= keep_at_least]


def _nearest(groups: list[tuple[float, Int[Tensor, " _group"]]], count: int) -> Int[Tensor, " chosen"]:
    """The units of the groups of lowest importance, as near to ``count`` of them as whole groups come."""
    ranked = [group for _, group in sorted(groups, key=lambda group: group[0])]
    gone = [0, *itertools.accumulate(len(group) for group in ranked)]
    best = min(range(len(gone)), key=lambda number: abs(gone[number] - count))
    return torch.cat([torch.empty(0, dtype=torch.long), *ranked[:best]])


def refuse_nan(scores: Sequence[Float[Tensor, "..."]]) -> None:
    """Raises ValueError for a NaN among the scores."""
    if any(matrix.numel() > 0 and math.isnan(_maximum(matrix)) for matrix in scores):
        raise ValueError("there is a NaN among the scores")


def _maximum(scores: Float[Tensor, "*shape"]) -> float:
    """NaN where any score is, at a quarter of the price of looking at every score."""
    on_cpu = scores.device.type == "cpu" and scores.dtype != torch.bfloat16
    return float(scores.numpy().max() if on_cpu else scores.max())  # numpy takes a third of torch's time


def _largest_torch(flat: Float[Tensor, " total"], count: int) -> Bool[Tensor, " total"]:
    """For accelerators, whose top-k is fast as long as its result need not be sorted; 0 < count < total."""
    threshold = flat.topk(count, sorted=False).values.amin()
    mask = flat >= threshold
    if int(mask.count_nonzero()) > count:
        tied = flat == threshold
        above = flat > threshold
        mask = above | (tied & (tied.cumsum(0, dtype=torch.int32) <= count - above.count_nonzero()))
    return mask


def _largest_numpy(chunks: list[np.ndarray], count: int, last: Threshold) -> list[np.ndarray]:
    """For CPUs, where a few vectorised comparisons beat every selection; 0 < count < total.

    Two scores bracket the threshold, and only what lies between is looked at. The bracket is that of the last time,
    else one guessed from a sample, else everything.

    Raises ValueError for a NaN.
    """
    known = last.bracket()
    masks = None if known is None else _largest_within(chunks, count, known, last)
    if masks is None:
        masks = _largest_within(chunks, count, _bracket(chunks, count), last)
    if masks is None:
        masks = _largest_within(chunks, count, (-math.inf, math.inf), last)
    assert masks is not None
    return masks


def _largest_within(
    chunks: list[np.ndarray], count: int, bracket: tuple[float, float], last: Threshold
) -> list[np.ndarray] | None:
    """The masks, or None where the threshold lies outside of the bracket (two scores, both included)."""
    low, high = map(chunks[0].dtype.type, bracket)
    masks, places = [], []
    for chunk in chunks:
        mask = chunk >= high
        settled = np.empty(_in_words(len(chunk)), dtype=bool)
        settled[len(chunk) :] = True
        np.less_equal(chunk, low, out=settled[: len(chunk)])
        settled[: len(chunk)] |= mask
        masks.append(mask)
        places.append(_false_places(settled))
    undecided = np.concatenate([chunk[place] for chunk, place in zip(chunks, places, strict=True)])
    if np.isnan(undecided).any():  # each NaN is there, because it compares with nothing
        raise ValueError("there is a NaN among the scores")
    excess, threshold = _kept(masks) - count, high
    if -excess > len(undecided):
        threshold, masks = low, [chunk >= low for chunk in chunks]
        excess = _kept(masks) - count
    elif excess < 0:
        rank = len(undecided) + excess
        threshold = np.partition(undecided, rank)[rank]
        stay = undecided >= threshold
        excess += int(np.count_nonzero(stay))
        for mask, place, mine in zip(masks, places, np.split(stay, np.cumsum([*map(len, places)])[:-1]), strict=True):
            mask[place[mine]] = True
    if not _drop_last_ties(chunks, masks, threshold, excess):
        return None
    last.moved(float(threshold), (float(high) - float(low)) / 2)
    return masks


def _kept(masks: list[np.ndarray]) -> int:
    return sum(int(np.count_nonzero(mask)) for mask in masks)


def _drop_last_ties(chunks: list[np.ndarray], masks: list[np.ndarray], threshold: np.floating, excess: int) -> bool:
    """Clears, in place, the last ``excess`` of the kept scores that equal ``threshold``; false: there are fewer."""
    for chunk, mask in zip(reversed(chunks), reversed(masks), strict=True):
        if excess <= 0:
            break
        tied = chunk == threshold
        number = int(np.count_nonzero(tied))
        begin = _position(tied, number - excess) if number > excess else 0
        np.greater(chunk[begin:], threshold, out=mask[begin:])
        excess -= min(number, excess)
    return excess == 0


def _position(flags: np.ndarray, rank: int) -> int:
    """The index of the true flag that has ``rank`` true ones before it, by halving: listing all is slower."""
    begin, end = 0, len(flags)
    while end - begin > 1024:
        middle = (begin + end) // 2
        before = int(np.count_nonzero(flags[begin:middle]))
        if rank < before:
            end = middle
        else:
            begin, rank = middle, rank - before
    return begin + int(np.flatnonzero(flags[begin:end])[rank])


def _in_words(size: int) -> int:
    """The next multiple of eight."""
    return -(-size // 8) * 8


def _false_places(flags: np.ndarray) -> np.ndarray:
    """The indices of the false ones among a multiple of eight flags, of which most are true: eight at a time."""
    words = np.flatnonzero(flags.view(np.uint64) != 0x0101010101010101)
    places = (words[:, None] * 8 + np.arange(8)).ravel()
    return places[~flags[places]]


def _bracket(chunks: list[np.ndarray], k: int) -> tuple[float, float]:
    """Two scores that the k-th largest lies between unless the sample is more than four deviations off."""
    total = sum(map(len, chunks))
    # Odd, so that a power of two in the width of a matrix does not make the sample see few of its columns.
    step = max(1, total // _SAMPLE_SIZE) | 1
    sample = np.sort(np.concatenate([chunk[::step] for chunk in chunks]))
    share = (total - k) / total
    centre = share * len(sample)
    margin = 4 * math.sqrt(len(sample) * share * (1 - share)) + 2
    low = float(sample[int(centre - margin)]) if centre > margin else -math.inf
    high = float(sample[int(centre + margin)]) if centre + margin < len(sample) else math.inf
    return low, high
