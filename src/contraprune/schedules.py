"""How much to keep at which step, and how many units to remove in which stage. Plain Python numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


def cubic(
    step: int,
    total_steps: int,
    *,
    warmup_steps: int,
    initial: float,
    final: float,
    initial_warmup: int | float,
    final_warmup: int | float,
) -> float:
    """The pruning threshold (a density for top-k methods) after ``step`` of ``total_steps`` optimiser steps.

    It stays at ``initial`` for the first ``initial_warmup * warmup_steps`` steps, is ``final`` for the last
    ``final_warmup * warmup_steps`` steps, and falls (or rises) between them with the cube of the time left:
    ``final + (initial - final) * (1 - progress) ** 3``. Note the units: as in the authors' released code,
    ``initial_warmup`` and ``final_warmup`` are multiples of ``warmup_steps``, not steps. Where the two flat
    phases overlap, the first one wins.

    Source: Zhu & Gupta 2017 (arXiv 1710.01878, eq. 1) with the two flat phases of Sanh et al. 2020.
    """
    begin = initial_warmup * warmup_steps
    end = total_steps - final_warmup * warmup_steps
    if step <= begin:
        return initial
    if step > end:
        return final
    remaining = 1 - (step - begin) / (end - begin)
    return final + (initial - final) * remaining**3


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where a run stands after ``step`` of ``total`` optimiser steps.

    What is scheduled stays as it began for ``warmup`` steps and is at its end for the last ``cooldown`` steps.
    """

    step: int
    total: int
    warmup: int
    cooldown: int
    last: bool  # the masks made now are final

    def cubic(self, initial: float, final: float) -> float:
        """:func:`cubic` between two values."""
        return cubic(
            self.step,
            self.total,
            warmup_steps=1,
            initial=initial,
            final=final,
            initial_warmup=self.warmup,
            final_warmup=self.cooldown,
        )


def penalty(threshold: float, *, final_threshold: float, final_penalty: float) -> float:
    """The weight λ of the L1 term on sigmoid(scores) in soft movement pruning, at the current ``threshold``.

    It grows in proportion to the threshold and reaches ``final_penalty`` at ``final_threshold`` (not zero).

    Source: Sanh et al. 2020 (arXiv 2005.07683, section 4), as in the released code of CAP.
    """
    return final_penalty * threshold / final_threshold


def units_per_stage(total: int, percents: Sequence[int | float], *, keep_at_least: int = 0) -> list[int]:
    """How many of ``total`` heads or neurons each stage removes.

    At the end of a stage its percentage of ``total``, rounded down, has been removed: ``percents`` are
    cumulative (and sorted first). ``keep_at_least`` is the number of units, of all layers together, that must
    survive the last stage.

    Raises ValueError for a percentage outside [0, 100] or when fewer units than that would survive.

    Source: the released code of CAP.
    """
    ordered = sorted(percents)
    if ordered and not (ordered[0] >= 0 and ordered[-1] <= 100):
        raise ValueError(f"stage percentages must lie in [0, 100], found {list(percents)}")
    removed = [0, *(int(total * percent / 100) for percent in ordered)]
    if total - removed[-1] < keep_at_least:
        raise ValueError(
            f"removing {ordered[-1]:g} % of {total} units leaves {total - removed[-1]}, "
            f"and at least {keep_at_least} must stay"
        )
    return [after - before for before, after in pairwise(removed)]
