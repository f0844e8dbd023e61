"""Masks that hardware likes: at most N of M consecutive weights, or whole blocks. Exact counts, ties included."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from contraprune.selection import Threshold, keep_largest, keep_top_together, refuse_nan


@dataclass(frozen=True, kw_only=True)
class NOfM:
    """At most ``keep`` of every ``group`` consecutive weights of a row stay: along the input, as sparse tensor
    cores want it (2:4, Mishra et al. 2021, arXiv 2104.08378)."""

    keep: int
    group: int

    @property
    def density(self) -> float:
        """The largest fraction that can stay."""
        return self.keep / self.group

    def fits(self, shape: Sequence[int]) -> bool:
        return shape[1] % self.group == 0

    def __str__(self) -> str:
        return f"{self.keep}:{self.group}"


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Blocks of ``rows`` outputs times ``columns`` inputs stay or go as one (Lagunas et al. 2021, arXiv 2109.04838)."""

    rows: int
    columns: int

    def fits(self, shape: Sequence[int]) -> bool:
        return shape[0] % self.rows == 0 and shape[1] % self.columns == 0

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"


Pattern = NOfM | Blocks


def parse_n_of_m(text: str) -> NOfM | None:
    """``"2:4"``; None for anything else than N:M with 0 < N < M."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or not 0 < int(found[1]) < int(found[2]):
        return None
    return NOfM(keep=int(found[1]), group=int(found[2]))


def parse_blocks(text: str) -> Blocks | None:
    """``"4x1"``, rows times columns; None for anything else than RxC of two weights or more."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or int(found[1]) * int(found[2]) < 2:
        return None
    return Blocks(rows=int(found[1]), columns=int(found[2]))


def units(shape: Sequence[int], pattern: Pattern | None) -> int:
    """How many things of a matrix of this shape stay or go on their own: weights, or blocks."""
    size = shape[0] * shape[1]
    return size // (pattern.rows * pattern.columns) if isinstance(pattern, Blocks) else size


def keep_in_pattern(
    scores: Sequence[Float[Tensor, "_out _in"]],
    density: float,
    pattern: Pattern | None,
    *,
    last: Threshold | None = None,
) -> list[Bool[Tensor, "_out _in"]]:
    """The masks of the largest scores of all matrices together that a pattern allows.

    Args:
        scores: matrices whose shapes fit the pattern, all on one device.
        density: of weights; exactly ``int(density * weights)`` stay, or ``int(density * blocks)`` blocks.
        pattern: with :class:`NOfM`, the best N of each group go last: above the pattern's own density groups are
            still being thinned (the pattern is not met yet), at it or below only the best N of a group stay.
            With :class:`Blocks`, a block's score is the sum over its weights. None: any weight may stay.
        last: this selection's memory of its last time.

    Raises ValueError for a NaN among the scores or a density outside [0, 1].
    """
    match pattern:
        case None:
            return keep_top_together(scores, density, last=last)
        case NOfM():
            return _keep_n_of_m(scores, density, pattern, last)
        case Blocks():
            masks = keep_top_together([block_sums(matrix, pattern) for matrix in scores], density, last=last)
            return [spread(mask, pattern) for mask in masks]


def block_sums(scores: Float[Tensor, "_out _in"], blocks: Blocks) -> Float[Tensor, "_down _across"]:
    """The sum over each block, in float32 or finer."""
    rows, columns = scores.shape
    tiles = scores.reshape(rows // blocks.rows, blocks.rows, columns // blocks.columns, blocks.columns)
    return tiles.sum(dim=(1, 3), dtype=torch.promote_types(scores.dtype, torch.float32))


def block_means(scores: Float[Tensor, "_out _in"], blocks: Blocks) -> Float[Tensor, "_down _across"]:
    """The mean over each block, in float32 or finer."""
    return block_sums(scores, blocks) / (blocks.rows * blocks.columns)


def spread(values: Tensor, blocks: Blocks) -> Tensor:
    """Gives every weight the value of its block: the inverse shape of :func:`block_sums`."""
    return values.repeat_interleave(blocks.rows, 0).repeat_interleave(blocks.columns, 1)


def best_of_groups(scores: Float[Tensor, "_out _in"], pattern: NOfM) -> Bool[Tensor, "_out _in"]:
    """The mask of the N largest scores of every group; among equal ones the first stays."""
    groups = scores.detach().reshape(-1, pattern.group)
    better = torch.zeros(groups.shape, dtype=torch.int16, device=groups.device)  # how many of its group come before
    for place in range(pattern.group):
        rival = groups[:, place, None]
        better[:, :place] += rival > groups[:, :place]
        better[:, place + 1 :] += rival >= groups[:, place + 1 :]
    return (better < pattern.keep).view(scores.shape)


def _keep_n_of_m(scores: Sequence[Tensor], density: float, pattern: NOfM, last: Threshold | None) -> list[Tensor]:
    if not 0 <= density <= 1:
        raise ValueError(f"density must lie in [0, 1], found {density}")
    refuse_nan(scores)
    best = [best_of_groups(matrix, pattern) for matrix in scores]
    count, of_best = int(density * sum(matrix.numel() for matrix in scores)), sum(int(mask.sum()) for mask in best)
    thinning = count >= of_best
    rivals = [~mask if thinning else mask for mask in best]
    compared = [matrix[rival] for matrix, rival in zip(scores, rivals, strict=True)]
    chosen = keep_largest(compared, count - of_best if thinning else count, last=last)
    masks = []
    for mask, rival, stays in zip(best, rivals, chosen, strict=True):
        result = mask.clone() if thinning else torch.zeros_like(mask)
        result[rival] = stays
        masks.append(result)
    return masks
