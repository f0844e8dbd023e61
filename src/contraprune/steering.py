"""The weight of a sparsity penalty, steered so that the density follows its schedule. Plain Python numbers."""

import math
from dataclasses import dataclass

# Chosen on runs of 128 to 1,000 steps (docs/recipes.md). An error is the logarithm of density / wanted density.
_PROPORTIONAL = 12.0  # an error of 0.1 gives a pressure of 1.2
_INTEGRAL = 240.0  # an error of 0.1 over a tenth of the run gives a pressure of 2.4
_LARGEST = 8.0  # sinh(8) is 1,490 times the unit


@dataclass(frozen=True, kw_only=True)
class Pressure:
    """What a controller remembers, and the pressure that follows from it: towards fewer weights where positive."""

    integral: float = 0.0
    value: float = 0.0

    def weight(self, unit: float) -> float:
        """The weight of the penalty: proportional to the pressure while that is small, then exponential in it.

        Scores differ in what holds them by orders of magnitude, so the weight has to, too. A negative weight
        rewards what the penalty penalises, and so brings weights back.

        Args:
            unit: the weight at which the penalty pulls at the scores about as much as the rest of the loss.
        """
        return unit * math.sinh(self.value)


def steer(pressure: Pressure, *, density: float, wanted: float, steps: int) -> Pressure:
    """One step of a proportional-integral controller on log(density / wanted).

    The integral does not grow while the pressure is at its largest (anti-windup), so that it answers at once when
    the error turns.

    Args:
        density: of the masks now; positive.
        wanted: what the schedule says now; positive.
        steps: optimiser steps in the run: the controller acts on fractions of a run, whatever its length.
    """
    error = math.log(density / wanted)
    integral = pressure.integral + _INTEGRAL * error / steps
    value = _PROPORTIONAL * error + integral
    if abs(value) > _LARGEST:
        integral = pressure.integral
        value = math.copysign(_LARGEST, value)
    return Pressure(integral=integral, value=value)
