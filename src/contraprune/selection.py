"""Which weights, heads or neurons stay. Exact counts, ties included, and never a full sort of weights."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

# Scores looked at to guess where the threshold lies. More of them cost more to sort and leave fewer scores
# inside the guessed bracket, which have to be copied out: for matrices of 0.1 to 2.4 million scores this is best.
_SAMPLE_SIZE = 32768
MIN_DENSITY = 0.005  # of every matrix, whatever the threshold


def keep_top(scores: Float[Tensor, "*shape"], density: float) -> Bool[Tensor, "*shape"]:
    """The mask of the ``int(density * scores.numel())`` largest scores, exactly that many, on their device.

    Among equal scores those with the lowest flat index stay. ±inf are ordinary scores.

    Raises ValueError for a NaN among the scores or a density outside [0, 1].
    """
    return keep_top_together([scores], density)[0]


def keep_top_together(scores: Sequence[Float[Tensor, "..."]], density: float) -> list[Bool[Tensor, "..."]]:
    """The masks of the ``int(density * total)`` largest scores of all matrices together (global scope).

    All matrices are on one device. Among equal scores earlier matrices come first, then lower flat indices.

    Raises ValueError for a NaN among the scores or a density outside [0, 1].
    """
    if not 0 <= density <= 1:
        raise ValueError(f"density must lie in [0, 1], found {density}")
    return keep_largest(scores, int(density * sum(matrix.numel() for matrix in scores)))


def keep_largest(scores: Sequence[Float[Tensor, "..."]], count: int) -> list[Bool[Tensor, "..."]]:
    """The masks of exactly the ``count`` largest scores of all matrices together; ties as in :func:`keep_top`.

    Raises ValueError for a NaN among the scores.
    """
    values = [matrix.detach() for matrix in scores]
    total = sum(matrix.numel() for matrix in values)
    dtype = torch.float64 if any(matrix.dtype == torch.float64 for matrix in values) else torch.float32
    flat = [matrix.flatten().to(dtype) for matrix in values]
    refuse_nan(flat)
    if count in (0, total):
        return [torch.full_like(matrix, count > 0, dtype=torch.bool) for matrix in values]
    if all(matrix.device.type == "cpu" for matrix in flat):
        masks = [torch.from_numpy(mask) for mask in _largest_numpy([matrix.numpy() for matrix in flat], count)]
    else:
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
) -> Shaped[Tensor, "layers units"]:
    """A copy of ``alive`` (non-zero: living) without its ``count`` least important living units.

    Units of all layers compete. In every layer the ``keep_at_least`` most important living units are out of
    reach, dead ones do not count. Among equals the lower flat index goes first.

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
    lowest = importance.flatten()[candidates].argsort(stable=True)[:count]
    survivors = alive.flatten().clone()
    survivors[candidates[lowest]] = 0
    return survivors.view(alive.shape)


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


def _largest_numpy(chunks: list[np.ndarray], count: int) -> list[np.ndarray]:
    """For CPUs, where a few vectorised comparisons beat every selection; 0 < count < total."""
    threshold = _kth_largest(chunks, count)
    masks = [chunk >= threshold for chunk in chunks]
    excess = sum(int(np.count_nonzero(mask)) for mask in masks) - count
    for chunk, mask in zip(reversed(chunks), reversed(masks), strict=True):
        if excess == 0:
            break
        excess -= _drop_last_ties(chunk, mask, threshold, excess)
    return masks


def _drop_last_ties(chunk: np.ndarray, mask: np.ndarray, threshold: np.floating, excess: int) -> int:
    """Clear, in place, the last ``excess`` scores equal to ``threshold``, or all; returns how many it were."""
    tied = chunk == threshold
    number = int(np.count_nonzero(tied))
    begin = _position(tied, number - excess) if number > excess else 0
    np.greater(chunk[begin:], threshold, out=mask[begin:])
    return min(number, excess)


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


def _kth_largest(chunks: list[np.ndarray], k: int) -> np.floating:
    """The exact k-th largest score: a sample brackets it, and only what lies in the bracket is partitioned.

    Where the sample misleads, everything is partitioned.
    """
    total = sum(map(len, chunks))
    low, high = _bracket(chunks, k, total)
    not_below_high = sum(int(np.count_nonzero(chunk >= high)) for chunk in chunks)
    if k > not_below_high:
        inside = np.concatenate([np.compress((chunk > low) & (chunk < high), chunk) for chunk in chunks])
        rank = not_below_high + len(inside) - k
        if rank >= 0:
            return np.partition(inside, rank)[rank]
        if k <= sum(int(np.count_nonzero(chunk >= low)) for chunk in chunks):
            return low
    elif k > sum(int(np.count_nonzero(chunk > high)) for chunk in chunks):
        return high
    return np.partition(np.concatenate(chunks), total - k)[total - k]


def _bracket(chunks: list[np.ndarray], k: int, total: int) -> tuple[np.floating, np.floating]:
    """Two scores that the k-th largest lies between unless the sample is more than four deviations off."""
    # Odd, so that a power of two in the width of a matrix does not make the sample see few of its columns.
    step = max(1, total // _SAMPLE_SIZE) | 1
    sample = np.sort(np.concatenate([chunk[::step] for chunk in chunks]))
    share = (total - k) / total
    centre = share * len(sample)
    margin = 4 * math.sqrt(len(sample) * share * (1 - share)) + 2
    infinity = sample.dtype.type(np.inf)
    low = sample[int(centre - margin)] if centre > margin else -infinity
    high = sample[int(centre + margin)] if centre + margin < len(sample) else infinity
    return low, high
