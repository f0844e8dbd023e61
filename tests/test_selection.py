"""Selection: golden masks, sorting everything in plain Python, torch.topk, and exact counts whatever comes."""

import math
from itertools import chain
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from contraprune import selection
from contraprune.selection import Threshold, keep_above, keep_largest, keep_top, keep_top_together, remove_lowest

# Few distinct values, so that ties at the threshold are the rule, beside arbitrary ones.
tied = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, math.inf, -math.inf])
score = st.one_of(tied, st.floats(width=16, allow_nan=False))
scores = st.one_of(
    st.lists(score, max_size=60),
    st.lists(tied, max_size=60),
    st.builds(lambda value, size: [value] * size, score, st.integers(0, 60)),
)
density = st.one_of(st.sampled_from([0.0, 0.03, 0.1, 0.5, 1.0]), st.floats(0, 1))
float_types = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])


@pytest.mark.parametrize("criterion", ["topk", "magnitude"])
def test_keep_top_equals_the_released_masks(golden, criterion):
    values = np.load(golden / "binarizers.npz")
    checked = 0
    for key in values.files:
        matrix, _, case = key.partition("/")
        if not case.startswith(f"{criterion}@"):
            continue
        given_scores = torch.from_numpy(values[f"{matrix}/input"])
        ties = values[f"{matrix}/has_ties"]
        if criterion == "magnitude":
            given_scores, ties = given_scores.abs(), values[f"{matrix}/has_abs_ties"]
        mask, released = keep_top(given_scores, float(case.split("@")[1])), torch.from_numpy(values[key])
        assert mask.sum() == released.sum(), key
        assert ties or torch.equal(mask, released.bool()), key
        checked += 1
    assert checked == 35


def test_keep_above_equals_the_released_masks(golden):
    values = np.load(golden / "binarizers.npz")
    keys = [key for key in values.files if "/sigmoid@" in key]
    assert len(keys) == 35
    for key in keys:
        matrix, threshold = key.split("/sigmoid@")
        given_scores, released = torch.from_numpy(values[f"{matrix}/input"]), values[key].astype(bool)
        mask = keep_above(given_scores, float(threshold)).numpy()
        if released.any():
            np.testing.assert_array_equal(mask, released, key)
        else:  # all scores are equal, and the released floor keeps none of them
            assert matrix == "allzero_8x8"
            assert mask.sum() == 1


@given(values=scores, density=density, dtype=float_types)
@settings(deadline=None, max_examples=400)
def test_keep_top_equals_sorting_everything(values, density, dtype):
    tensor = torch.tensor(values, dtype=dtype)
    mask = keep_top(tensor, density)
    expected = reference.keep_largest(tensor.tolist(), int(density * len(values)))
    assert mask.tolist() == expected


@given(values=scores.filter(lambda values: len(values) > 1), data=st.data())
@settings(deadline=None)
def test_the_accelerators_selection_equals_sorting_everything(values, data):
    count = data.draw(st.integers(1, len(values) - 1))
    mask = selection._largest_torch(torch.tensor(values), count)
    assert mask.tolist() == reference.keep_largest(values, count)


@given(matrices=st.lists(scores, max_size=4), density=density)
@settings(deadline=None)
def test_keep_top_together_is_keep_top_of_all_in_a_row(matrices, density):
    masks = keep_top_together([torch.tensor(values) for values in matrices], density)
    together = list(chain(*matrices))
    expected = reference.keep_largest(together, int(density * len(together)))
    assert [mask.shape[0] for mask in masks] == [len(values) for values in matrices]
    assert list(chain(*(mask.tolist() for mask in masks))) == expected


@pytest.mark.parametrize("distribution", ["normal", "tied", "constant"])
@pytest.mark.parametrize("density", [0.03, 0.5, 0.97])
def test_large_matrices_equal_topk(distribution, density):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(384, 1536, generator=generator)
    if distribution == "tied":
        matrix = matrix.round()
    elif distribution == "constant":
        matrix = torch.zeros_like(matrix)
    mask = keep_top(matrix, density)
    kept, dropped = matrix[mask], matrix[~mask]
    count = int(density * matrix.numel())
    assert len(kept) == count
    assert kept.min() >= dropped.max()
    assert torch.equal(kept.sort().values, matrix.flatten().topk(count).values.flip(0))


@given(values=scores.filter(lambda values: len(values) > 1), bracket=st.tuples(score, score), data=st.data())
@settings(deadline=None, max_examples=400)
def test_the_masks_are_exact_whatever_the_bracket(values, bracket, data):
    array, count = torch.tensor(values), data.draw(st.integers(1, len(values) - 1))
    cut = data.draw(st.integers(0, len(values)))
    with mock.patch.object(selection, "_bracket", return_value=bracket):
        masks = keep_largest([array[:cut], array[cut:]], count)
    assert torch.cat(masks).tolist() == reference.keep_largest(values, count)


@given(steps=st.lists(st.tuples(scores, density), max_size=6), dtype=float_types)
@settings(deadline=None, max_examples=400)
def test_the_memory_of_the_last_time_never_changes_a_mask(steps, dtype):
    last = Threshold()
    for values, kept in steps:
        tensor = torch.tensor(values, dtype=dtype)
        (mask,) = keep_top_together([tensor], kept, last=last)
        assert mask.tolist() == reference.keep_largest(tensor.tolist(), int(kept * len(values)))


def test_slowly_changing_scores_are_sampled_once():
    """As in a run of movement pruning: the memory serves all later steps, and reaches as far as the scores move."""
    generator, last = torch.Generator().manual_seed(0), Threshold()
    matrix = torch.rand(384, 384, generator=generator)
    with mock.patch.object(selection, "_bracket", wraps=selection._bracket) as sampled:
        for step in range(60):
            kept = max(0.1, 1 - 0.02 * step - 0.01)
            mask = keep_top_together([matrix], kept, last=last)[0]
            assert torch.equal(mask, keep_top(matrix, kept)), step
            matrix += 1e-3 * torch.randn(384, 384, generator=generator)
    known = last.bracket()
    assert sampled.call_count <= 60 + 3  # once a step without the memory; with it, where the density starts and stops
    assert known is not None
    low, high = known
    assert 0 < high - low < 0.01


@pytest.mark.parametrize("place", [0, 50, 99])
def test_nan_is_refused_with_a_memory_too(place):
    last, bad = Threshold(), torch.arange(100.0)
    keep_top_together([bad], 0.5, last=last)
    bad[place] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        keep_top_together([bad], 0.5, last=last)


@pytest.mark.parametrize("density", [0.001, 0.03, 0.5, 0.999])
def test_the_bracket_is_narrow_and_right_whatever_the_columns(density):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(384, 1536, generator=generator) + torch.arange(1536).remainder(24)
    flat, k = matrix.flatten().numpy(), int(density * matrix.numel())
    low, high = selection._bracket([flat], k)
    assert low < np.sort(flat)[-k] < high
    assert np.count_nonzero((flat > low) & (flat < high)) < 0.05 * len(flat)


def test_masks_follow_layout_and_need_no_gradient():
    matrix = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mask = keep_top(matrix.T, 0.25)
    assert torch.equal(mask, keep_top(matrix, 0.25).T)
    assert mask.dtype == torch.bool
    assert keep_top(torch.tensor(3.0), 1.0).tolist() is True
    assert keep_top(torch.empty(0, 3), 0.5).shape == (0, 3)
    finer = torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64)
    masks = keep_top_together([torch.tensor([1.0]), finer], 0.4)
    assert [mask.tolist() for mask in masks] == [[False], [False, True]]


@pytest.mark.parametrize("place", [0, 17, 99])
def test_nan_is_refused(place):
    bad = torch.arange(100.0)
    bad[place] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        keep_top(bad, 0.5)
    with pytest.raises(ValueError, match="NaN"):
        keep_top_together([torch.zeros(3), bad], 0.0)
    with pytest.raises(ValueError, match="NaN"):
        keep_above(bad, 0.5)


@pytest.mark.parametrize("density", [-0.1, 1.1, math.nan])
def test_an_impossible_density_is_refused(density):
    with pytest.raises(ValueError, match="density"):
        keep_top(torch.zeros(3), density)


@given(values=scores, threshold=st.floats(0, 1), min_density=density)
@settings(deadline=None)
def test_keep_above_is_the_threshold_or_the_floor(values, threshold, min_density):
    tensor = torch.tensor(values)
    mask = keep_above(tensor, threshold, min_density=min_density)
    above = (torch.sigmoid(tensor) > threshold).tolist()
    floor = min(int(min_density * len(values)) + 1, len(values))
    expected = above if sum(above) >= floor else reference.keep_largest(values, floor)
    assert mask.tolist() == expected


def released_cases(golden):
    values = np.load(golden / "what_to_prune.npz")
    for name in sorted({key.split("/")[0] for key in values.files}):
        case = {key: values[f"{name}/{key}"] for key in ("importance", "old", "new")}
        at_least = values[f"{name}/at_least"] if name.startswith("head") else 0
        yield name, *map(torch.from_numpy, case.values()), int(values[f"{name}/n"]), int(at_least)


def test_remove_lowest_equals_the_released_choice_where_that_leaves_living_units(golden):
    equal, refused, defects = [], [], []
    for name, importance, old, new, count, at_least in released_cases(golden):
        removable = (old.sum(1) - at_least).clamp_min(0).sum()
        if count > removable:
            refused.append(name)
            with pytest.raises(ValueError, match="cannot remove"):
                remove_lowest(importance, old, count, keep_at_least=at_least)
            continue
        ours = remove_lowest(importance, old, count, keep_at_least=at_least)
        loop = reference.remove_lowest(importance.tolist(), old.tolist(), count, keep_at_least=at_least)
        assert ours.bool().tolist() == loop, name
        if (new.sum(1) >= old.sum(1).clamp_max(at_least)).all():
            equal.append(name)
            assert torch.equal(ours, new), name
        else:
            defects.append(name)
            assert (ours.sum(1) >= old.sum(1).clamp_max(at_least)).all(), name
    assert len(equal) + len(refused) + len(defects) == 73
    assert "head_layer_emptied" in defects
    assert {"headtie6", "mlptie5"} <= set(equal)


def test_a_layer_keeps_a_living_head_even_where_the_best_one_is_dead(golden):
    cases = {name: case for name, *case in released_cases(golden)}
    importance, old, new, count, at_least = cases["head_layer_emptied"]
    assert new[0].sum() == 0  # what the released code does
    ours = remove_lowest(importance, old, count, keep_at_least=at_least)
    assert ours.tolist() == [[0, 0, 1, 0], [0, 1, 1, 1]]


@st.composite
def unit_tables(draw):
    layers, units = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    table = st.lists(st.lists(tied, min_size=units, max_size=units), min_size=layers, max_size=layers)
    return draw(table), [[draw(st.booleans()) for _ in range(units)] for _ in range(layers)]


@given(
    table=unit_tables(),
    count=st.integers(0, 12),
    keep_at_least=st.integers(0, 3),
    dtype=st.sampled_from([torch.bool, torch.float32]),
)
@settings(deadline=None, max_examples=300)
def test_remove_lowest_equals_one_unit_at_a_time(table, count, keep_at_least, dtype):
    importance, alive = torch.tensor(table[0]), torch.tensor(table[1]).to(dtype)
    before = alive.clone()
    expected = reference.remove_lowest(*table, count, keep_at_least=keep_at_least)
    if expected is None:
        with pytest.raises(ValueError, match=f"cannot remove {count} units"):
            remove_lowest(importance, alive, count, keep_at_least=keep_at_least)
        return
    after = remove_lowest(importance, alive, count, keep_at_least=keep_at_least)
    assert after.dtype == dtype
    assert after.bool().tolist() == expected
    assert int(before.sum()) - int(after.sum()) == count
    assert torch.equal(alive, before)


@given(
    layers=st.lists(st.tuples(st.lists(st.integers(-4, 4), min_size=7, max_size=7), st.integers(0, 127)), min_size=1),
    share=st.floats(0, 1),
    keep_at_least=st.integers(0, 3),
    divisor=st.integers(2, 4),
)
@settings(deadline=None, max_examples=300)
def test_remove_lowest_with_a_divisor_equals_one_group_at_a_time(layers, share, keep_at_least, divisor):
    table = [[12.0 * value for value in row] for row, _ in layers]  # so that every mean is a whole number
    alive = [[bool(flags >> unit & 1) for unit in range(7)] for _, flags in layers]
    count = int(share * sum(max(0, sum(flags) - keep_at_least) for flags in alive))
    after = remove_lowest(torch.tensor(table), torch.tensor(alive), count, keep_at_least=keep_at_least, divisor=divisor)
    options = {"keep_at_least": keep_at_least, "divisor": divisor}
    assert after.tolist() == reference.remove_lowest_by_groups(table, alive, count, **options)
    for before, left in zip(map(sum, alive), after.sum(dim=1).tolist(), strict=True):
        assert left == before or (left % divisor == 0 and left >= keep_at_least)


@pytest.mark.parametrize(("units", "count", "divisor"), [(19, 13, 16), (29, 20, 16), (50, 31, 7)])
def test_rounding_of_means_leaves_multiples_too(units, count, divisor):
    for value in (0.1, 0.3, 1 / 3, 0.7):
        left = remove_lowest(
            torch.full((1, units), value), torch.ones(1, units).bool(), count, keep_at_least=0, divisor=divisor
        )
        assert int(left.sum()) % divisor == 0


def test_nan_importance_matters_only_for_living_units():
    importance, alive = torch.tensor([[math.nan, 1.0, 2.0]]), torch.tensor([[False, True, True]])
    assert remove_lowest(importance, alive, 1).tolist() == [[False, False, True]]
    with pytest.raises(ValueError, match="NaN"):
        remove_lowest(importance, ~alive, 1, keep_at_least=0)
