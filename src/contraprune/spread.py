"""Mean and standard deviation of a few numbers, such as the results of several seeds."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """Mean and sample standard deviation (None for a single number)."""

    mean: float
    std: float | None

    @classmethod
    def of(cls, numbers: Sequence[float]) -> "Spread | None":
        if not numbers:
            return None
        return cls(statistics.mean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None)
