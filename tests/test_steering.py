"""The controller on made-up models whose scores answer a penalty slowly, quickly, or against a drift."""

import math

import numpy as np
import pytest

from contraprune.schedules import cubic
from contraprune.steering import Pressure, steer


def follow(*, steps, drift, hold):
    """Scores of 2,001 weights, each held by a pull of its own; (density, wanted) at every step until masks freeze.

    A score moves at the learning rate in the direction of the sum of what holds it and of the penalty, as Adam moves
    it. Learning rates fall linearly, as in a run.
    """
    scores = np.linspace(0, 1, 2001)
    pulls = hold * scores + drift
    pressure, found = Pressure(), []
    phases = {"initial_warmup": steps // 10, "final_warmup": steps * 3 // 10}
    for step in range(1, round(0.85 * steps) + 1):
        density = max(np.count_nonzero(scores > 0), 10) / 2001
        wanted = cubic(step, steps, warmup_steps=1, initial=1.0, final=0.1, **phases)
        found.append((density, wanted))
        pressure = steer(pressure, density=density, wanted=wanted, steps=steps)
        scores = scores + 10 / steps * (1 - step / steps) * np.tanh(pulls - pressure.weight(1.0))
    return found


@pytest.mark.parametrize("steps", [60, 1000])
@pytest.mark.parametrize("drift", [-0.3, 0.0, 0.3])
@pytest.mark.parametrize("hold", [0.1, 30.0])
def test_the_density_follows_its_schedule(steps, drift, hold):
    found = follow(steps=steps, drift=drift, hold=hold)
    density, wanted = found[-1]
    assert wanted == 0.1
    assert density == pytest.approx(wanted, rel=0.2)


def test_the_weight_has_the_sign_of_the_error_and_grows_faster_than_it():
    weights = [steer(Pressure(), density=d, wanted=0.2, steps=100).weight(3.0) for d in (0.1, 0.19, 0.2, 0.21, 0.4)]
    assert weights == sorted(weights)
    assert weights[2] == 0.0
    assert weights[0] < 0 < weights[-1]
    assert weights[4] / weights[3] > math.log(2) / math.log(1.05) > 1


def test_an_error_that_stays_raises_the_pressure_up_to_a_limit_and_its_end_is_felt_at_once():
    pressure = Pressure()
    values = []
    for _ in range(1000):
        pressure = steer(pressure, density=0.3, wanted=0.2, steps=200)
        values.append(pressure.value)
    assert values == sorted(values)
    assert values[-1] == values[-2] == 8.0
    after = steer(pressure, density=0.2, wanted=0.3, steps=200)
    assert after.value < 0.5 * pressure.value
