"""Schedules: golden values of the released code, the written-out formula, and their invariants."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from contraprune.schedules import cubic, penalty, units_per_stage

densities = st.floats(0, 1)
phases = {
    "total_steps": st.integers(1, 20_000),
    "warmup_steps": st.integers(0, 2_000),
    "initial": densities,
    "final": densities,
    "initial_warmup": st.integers(0, 4),
    "final_warmup": st.integers(0, 4),
}


def test_cubic_and_penalty_equal_the_released_code(golden):
    cases = json.loads((golden / "schedule_threshold.json").read_text())
    assert len(cases) == 154
    for case in cases:
        threshold = cubic(
            case["step"],
            case["total_step"],
            warmup_steps=case["warmup_steps"],
            initial=case["initial_threshold"],
            final=case["final_threshold"],
            initial_warmup=case["initial_warmup"],
            final_warmup=case["final_warmup"],
        )
        assert threshold == pytest.approx(case["threshold"], abs=1e-12), case
        weight = penalty(threshold, final_threshold=case["final_threshold"], final_penalty=case["final_lambda"])
        assert weight == pytest.approx(case["lambda"], abs=1e-9), case


@given(step=st.integers(0, 20_000), **phases)
def test_cubic_equals_the_written_out_formula(step, total_steps, **settings):
    expected = reference.cubic(step, total_steps, **settings)
    assert cubic(step, total_steps, **settings) == pytest.approx(expected, abs=1e-12)


@given(steps=st.lists(st.integers(0, 20_000), min_size=2, max_size=20).map(sorted), **phases)
def test_cubic_goes_one_way_and_stays_between_its_ends(steps, total_steps, **settings):
    values = [cubic(step, total_steps, **settings) for step in steps]
    low, high = sorted((settings["initial"], settings["final"]))
    assert all(low - 1e-12 <= value <= high + 1e-12 for value in values)
    falling = sorted(values, reverse=settings["initial"] > settings["final"])
    assert values == pytest.approx(falling, abs=1e-12)


def test_cubic_ends_exactly():
    settings = {"warmup_steps": 100, "initial": 1.0, "final": 0.1, "initial_warmup": 1, "final_warmup": 2}
    assert cubic(0, 1000, **settings) == 1.0
    assert cubic(100, 1000, **settings) == 1.0
    assert cubic(101, 1000, **settings) < 1.0
    assert cubic(799, 1000, **settings) > 0.1
    assert cubic(800, 1000, **settings) == 0.1
    assert cubic(1000, 1000, **settings) == 0.1


def test_units_per_stage_equal_the_released_code(golden):
    cases = [case for case in json.loads((golden / "pruning_sequence.json").read_text()) if case["order"] == "by_name"]
    assert len(cases) == 63
    for case in cases:
        layers, percents = case["n_layers"], case["percents"]
        heads, at_least = layers * case["n_heads"], layers * case["at_least"]
        if case["error"]:
            with pytest.raises(ValueError, match="must stay"):
                units_per_stage(heads, percents, keep_at_least=at_least)
            continue
        assert units_per_stage(heads, percents, keep_at_least=at_least) == case["heads"], case
        if percents == sorted(percents):  # the released code forgets to sort them for the neurons
            assert units_per_stage(layers * case["n_intermediate"], percents) == case["intermediate"], case


@given(total=st.integers(1, 40_000), percents=st.lists(st.integers(0, 100), max_size=10))
def test_stages_add_up(total, percents):
    stages = units_per_stage(total, percents)
    assert len(stages) == len(percents)
    assert all(stage >= 0 for stage in stages)
    assert sum(stages) == total * max(percents, default=0) // 100


@pytest.mark.parametrize("percents", [[-1, 50], [50, 101]])
def test_impossible_percentages_are_refused(percents):
    with pytest.raises(ValueError, match=r"\[0, 100\]"):
        units_per_stage(100, percents)
