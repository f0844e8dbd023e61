"""What the runs of a study found, as one table: a row per variant, mean and standard deviation over the seeds."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contraprune.spread import Spread
from contraprune.study.grid import FULL, Trial

NOTE = "± is the standard deviation over the seeds; differences are those of runs with the same seed."


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant.

    Attributes:
        finished: how many of its runs are.
        wanted: how many runs it has.
        metrics: by name, the task's main metric first; empty where no run is finished.
        difference: main metric minus that of the full method with the same seed; None for the full method itself.
        retained: main metric divided by the teacher's.
        density: of the encoder's weights.
        seconds: of a run.
    """

    variant: str
    method: str
    target: float | None
    finished: int
    wanted: int
    metrics: dict[str, Spread]
    difference: Spread | None
    retained: Spread | None
    density: Spread | None
    seconds: Spread | None


def rows_of(trials: Sequence[Trial], results: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """A row for every variant, in the order of the trials.

    Args:
        results: the content of ``results.json`` of the finished ones, by the name of the trial.
    """
    variants: dict[tuple[str, str, float | None], list[Trial]] = {}
    for trial in trials:
        variants.setdefault((trial.variant, trial.method, trial.density), []).append(trial)
    return [_row(of_variant, variants.get((FULL, method, density), []), results)
            for (_, method, density), of_variant in variants.items()]  # fmt: skip


def _row(trials: Sequence[Trial], full: Sequence[Trial], results: Mapping[str, Mapping[str, Any]]) -> Row:
    first = trials[0]
    found = [results[trial.name] for trial in trials if trial.name in results]
    metrics = {name: [result["metrics"][name] for result in found] for name in found[0]["metrics"]} if found else {}
    reference = {trial.seed: _main(results[trial.name]) for trial in full if trial.name in results}
    differences = [
        _main(results[trial.name]) - reference[trial.seed]
        for trial in trials
        if trial.name in results and trial.seed in reference
    ]
    return Row(
        variant=first.variant,
        method=first.method,
        target=first.density,
        finished=len(found),
        wanted=len(trials),
        metrics={name: spread for name, numbers in metrics.items() if (spread := Spread.of(numbers))},
        difference=None if first.variant == FULL else Spread.of(differences),
        retained=Spread.of([result["retained"] for result in found if result["retained"] is not None]),
        density=Spread.of([result["density"]["encoder"] for result in found]),
        seconds=Spread.of([result["seconds"]["total"] for result in found]),
    )


def _main(result: Mapping[str, Any]) -> float:
    metrics: Mapping[str, float] = result["metrics"]
    return next(iter(metrics.values()))


# ---- as text ----


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headers, and the cells of each row; columns that are the same or empty everywhere are left out."""
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    columns: dict[str, list[str]] = {}
    if len({row.variant for row in rows}) > 1:
        columns["variant"] = [row.variant for row in rows]
    if len({row.method for row in rows}) > 1 or not columns:
        columns["method"] = [row.method for row in rows]
    if len({row.target for row in rows}) > 1:
        columns["density"] = ["" if row.target is None else f"{row.target:g}" for row in rows]
    for name in metrics:
        columns[name] = [_shown(row.metrics.get(name), ".4f") for row in rows]
        if name == metrics[0] and any(row.difference for row in rows):
            columns["difference"] = [_shown(row.difference, "+.4f") for row in rows]
    columns["of the teacher's"] = [_shown(row.retained, ".1%") for row in rows]
    columns["encoder density"] = [_shown(row.density, ".4f", spread=False) for row in rows]
    columns["seconds"] = [_shown(row.seconds, ".0f", spread=False) for row in rows]
    columns["n"] = [str(row.finished) if row.finished == row.wanted else f"{row.finished}/{row.wanted}" for row in rows]
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def _shown(value: Spread | None, style: str, *, spread: bool = True) -> str:
    if value is None:
        return ""
    shown = format(value.mean, style)
    if not spread or value.std is None:
        return shown
    return f"{shown} ± {format(value.std, style.lstrip('+'))}"


def markdown(title: str, rows: Sequence[Row], errors: Mapping[str, str]) -> str:
    """A page with the table and the errors of the runs that failed, by the name of the run."""
    headers, body = cells(rows)
    lines = [headers, ["---"] * len(headers), *body]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    failed = "".join(f"- {name}: {error}\n" for name, error in errors.items())
    return f"# {title}\n\n{table}\n\n{NOTE}\n" + (f"\nFailed:\n\n{failed}" if failed else "")


def comma_separated(rows: Sequence[Row]) -> str:
    """Every number of the rows, unrounded, as CSV with a header."""
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    spreads = ["difference", "retained", "density", "seconds"]
    header = ["variant", "method", "target_density", "finished", "wanted"]
    header += [f"{name}_{part}" for name in (*metrics, *spreads) for part in ("mean", "std")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        values = [row.metrics.get(name) for name in metrics] + [getattr(row, name) for name in spreads]
        numbers = [number for value in values for number in (value or (None, None))]
        writer.writerow([row.variant, row.method, row.target, row.finished, row.wanted, *numbers])
    return text.getvalue()
