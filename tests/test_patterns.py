"""Patterns: exact counts, groups and blocks looked at one by one, and the moment at which a pattern is met."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contraprune.patterns import Blocks, NOfM, best_of_groups, keep_in_pattern, parse_blocks, parse_n_of_m
from reference import keep_largest

entries = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 0.5]), st.floats(-4, 4, width=16))
densities = st.one_of(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]), st.floats(0, 1))


@st.composite
def matrices(draw, row_unit=1, column_unit=1):
    rows, columns = row_unit * draw(st.integers(1, 3)), column_unit * draw(st.integers(1, 4))
    size = rows * columns
    return torch.tensor(draw(st.lists(entries, min_size=size, max_size=size))).view(rows, columns)


@st.composite
def grouped(draw):
    """An N:M pattern and some matrices whose rows divide into its groups."""
    group = draw(st.integers(2, 6))
    pattern = NOfM(keep=draw(st.integers(1, group - 1)), group=group)
    return pattern, draw(st.lists(matrices(column_unit=group), min_size=1, max_size=3))


@st.composite
def tiled(draw):
    """Blocks and some matrices that divide into them."""
    blocks = Blocks(rows=draw(st.integers(1, 4)), columns=draw(st.integers(1, 3)))
    return blocks, draw(st.lists(matrices(blocks.rows, blocks.columns), min_size=1, max_size=3))


def groups_of(matrix, pattern):
    """Every group as a list, row by row."""
    size = pattern.group
    return [row[start : start + size] for row in matrix.tolist() for start in range(0, len(row), size)]


@given(case=grouped(), density=densities)
@settings(deadline=None, max_examples=300)
def test_n_of_m_keeps_exactly_as_many_and_never_more_of_a_group(case, density):
    pattern, scores = case
    masks = keep_in_pattern(scores, density, pattern)
    total = sum(matrix.numel() for matrix in scores)
    count = int(density * total)
    assert sum(int(mask.sum()) for mask in masks) == count
    best = [keep_largest(group, pattern.keep) for matrix in scores for group in groups_of(matrix, pattern)]
    kept = [group for mask in masks for group in groups_of(mask, pattern)]
    flat = [score for matrix in scores for group in groups_of(matrix, pattern) for score in group]
    is_best = [flag for group in best for flag in group]
    if count <= sum(is_best):
        assert all(sum(group) <= pattern.keep for group in kept)
        order = sorted((i for i in range(total) if is_best[i]), key=lambda i: (-flat[i], i))[:count]
    else:
        rest = sorted((i for i in range(total) if not is_best[i]), key=lambda i: (-flat[i], i))
        order = [i for i in range(total) if is_best[i]] + rest[: count - sum(is_best)]
    assert [flag for group in kept for flag in group] == [i in set(order) for i in range(total)]


@given(case=grouped())
@settings(deadline=None)
def test_at_its_own_density_every_group_is_full(case):
    pattern, scores = case
    for matrix in scores:
        kept = groups_of(best_of_groups(matrix, pattern), pattern)
        assert kept == [keep_largest(group, pattern.keep) for group in groups_of(matrix, pattern)]


@given(case=tiled(), density=densities)
@settings(deadline=None, max_examples=300)
def test_blocks_stay_or_go_as_one_and_exactly_as_many(case, density):
    blocks, scores = case
    masks = keep_in_pattern(scores, density, blocks)
    sums, kept = [], []
    for matrix, mask in zip(scores, masks, strict=True):
        for row in range(0, matrix.shape[0], blocks.rows):
            for column in range(0, matrix.shape[1], blocks.columns):
                tile = mask[row : row + blocks.rows, column : column + blocks.columns]
                assert tile.all() or not tile.any()
                kept.append(bool(tile.any()))
                inside = matrix[row : row + blocks.rows, column : column + blocks.columns]
                sums.append(math.fsum(inside.flatten().tolist()))
    count = int(density * len(sums))
    assert sum(kept) == count
    lowest_kept = min((s for s, stays in zip(sums, kept, strict=True) if stays), default=math.inf)
    highest_gone = max((s for s, stays in zip(sums, kept, strict=True) if not stays), default=-math.inf)
    assert lowest_kept >= highest_gone - 1e-5


def test_large_groups_of_four_equal_torch_topk():
    scores = torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(96, 32, 4).scatter(-1, scores.view(96, 32, 4).topk(2).indices, 1.0).view(96, 128)
    assert torch.equal(best_of_groups(scores, NOfM(keep=2, group=4)).float(), expected)


@pytest.mark.parametrize("pattern", [NOfM(keep=1, group=2), Blocks(rows=2, columns=1)])
def test_nan_and_impossible_densities_are_refused(pattern):
    bad = torch.zeros(2, 4)
    bad[1, 2] = math.nan
    for density in (0.25, 0.75):
        with pytest.raises(ValueError, match="NaN"):
            keep_in_pattern([torch.zeros(2, 2), bad], density, pattern)
    with pytest.raises(ValueError, match="density"):
        keep_in_pattern([torch.zeros(2, 2)], 1.5, pattern)


def test_texts_are_read_or_refused():
    assert parse_n_of_m("2:4") == NOfM(keep=2, group=4)
    assert parse_blocks("4x1") == Blocks(rows=4, columns=1)
    assert [str(parse_n_of_m("1:8")), str(parse_blocks("2x3"))] == ["1:8", "2x3"]
    assert [parse_n_of_m(text) for text in ("4:4", "0:4", "2", "2:4:8", "a:b", "-1:4", "")] == [None] * 7
    assert [parse_blocks(text) for text in ("1x1", "0x4", "4", "4:1", "4x", "")] == [None] * 6
