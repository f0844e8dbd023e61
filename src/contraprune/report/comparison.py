"""Several runs on one page: metric against density with error bars over seeds, a table, and what each source adds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contraprune.errors import UserError
from contraprune.jobs import NOT_IDENTITY
from contraprune.report.charts import Chart, Series, bar_chart, point_chart
from contraprune.report.page import render
from contraprune.report.parts import Figure, Section, Table, readable
from contraprune.report.record import Run, read_run
from contraprune.saving import write_text
from contraprune.spread import Spread

_NOT_A_VARIANT = NOT_IDENTITY | {"seed", "density", "model", "teacher"}
_SPREAD_NOTE = "± and the lines in the chart: one standard deviation over seeds each way."


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What taking a part of the method away changes, over seeds."""

    part: str
    difference: Spread


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        series: what they have in common with those of other densities.
        density: of the encoder's weights, the mean.
    """

    series: str
    density: float
    metric: Spread
    retained: Spread | None
    parameters: float
    runs: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was read from several directories."""

    task: str
    metric: str
    groups: Sequence[Group]
    teacher: float | None
    effects: Sequence[Effect]

    def note(self) -> str:
        return _SPREAD_NOTE if any(group.metric.std is not None for group in self.groups) else ""

    def table(self) -> Table:
        rows = []
        for group in sorted(self.groups, key=lambda group: -group.density):
            shown = f"{group.metric.mean:.4f}"
            if group.metric.std is not None:
                shown += f" ± {group.metric.std:.4f}"
            kept = f"{group.retained.mean:.1%}" if group.retained else ""
            parameters = f"{group.parameters / 1e6:.2f} M"
            rows.append([group.series, f"{group.density:.4f}", shown, kept, parameters, str(group.runs)])
        headers = ["runs", "encoder density", readable(self.metric), "of the teacher's", "parameters left", "n"]
        return Table(headers=headers, rows=rows, note=self.note())


def write_comparison(
    members: Sequence[tuple[Path, str | None]], file: Path, *, effects: Sequence[Effect] = ()
) -> Table:
    """Writes a page that compares finished runs, and returns its table.

    Args:
        members: the directories of the runs, and what each is called; None for what tells it apart.
        effects: of an ablation.

    Raises:
        UserError: a path holds no finished run, or the runs are of different tasks.
    """
    found = compare(members, effects)
    write_text(file, comparison_page(found))
    return found.table()


def compare(members: Sequence[tuple[Path, str | None]], effects: Sequence[Effect] = ()) -> Comparison:
    """Groups runs by all that tells them apart but the seed."""
    named = [(read_run(path), name) for path, name in members]
    if not named:
        raise UserError("report: no run of the study is finished yet")
    runs = [run for run, _ in named]
    kinds = sorted({f"{run.results['task']} ({run.metric[0]})" for run in runs})
    if len(kinds) > 1:
        raise UserError(f"report: expected runs of one task and metric, found {', '.join(kinds)}")
    teachers = {run.results["teacher_metrics"][run.metric[0]] for run in runs if run.pruned}
    names_of_series = [name or other for (_, name), other in zip(named, _variant_names(runs), strict=True)]
    return Comparison(
        task=runs[0].results["task"],
        metric=runs[0].metric[0],
        groups=_groups(runs, names_of_series),
        teacher=teachers.pop() if len(teachers) == 1 else None,
        effects=effects,
    )


def comparison_page(found: Comparison) -> str:
    """The page of a comparison."""
    charts = [_density_chart(found)]
    shown = [Section(title=f"{readable(found.metric).capitalize()} against density", charts=charts)]
    shown.append(Section(title="Runs", table=found.table()))
    if found.effects:
        shown.append(Section(title="What each part adds", charts=[_effect_chart(found)]))
    runs = sum(group.runs for group in found.groups)
    return render(
        title=f"{found.task}: {runs} runs compared",
        subtitle="a group of runs differs in the seed alone",
        figures=_headline(found),
        shown=shown,
    )


def _headline(found: Comparison) -> list[Figure]:
    pruned = [group for group in found.groups if group.density < 1] or found.groups
    best = max(pruned, key=lambda group: group.metric.mean)
    smallest = min(pruned, key=lambda group: (group.density, -group.metric.mean))
    figures = []
    for question, group in (("Best", best), ("Smallest", smallest)):
        spread = "" if group.metric.std is None else f" ± {group.metric.std:.4f}"
        details = [f"{readable(found.metric)}{spread}", f"{group.series} at density {group.density:.3g}"]
        if group.retained:
            details.append(f"{group.retained.mean:.1%} of the teacher's")
        figures.append(Figure(question=question, value=f"{group.metric.mean:.4f}", details=details))
    if found.teacher is not None:
        figures.append(Figure(question="Dense teacher", value=f"{found.teacher:.4f}", details=[readable(found.metric)]))
    return figures


def _density_chart(found: Comparison) -> Chart:
    series = []
    for colour, name in enumerate(dict.fromkeys(group.series for group in found.groups)):
        groups = sorted((group for group in found.groups if group.series == name), key=lambda group: group.density)
        series.append(
            Series(
                name=name,
                points=[(group.density, group.metric.mean) for group in groups],
                errors=[group.metric.std for group in groups],
                colour=colour,
                dashed=colour >= 8,
            )
        )
    return point_chart(
        f"{readable(found.metric).capitalize()} on the validation data",
        series,
        x_label="density of the encoder's weights",
        y_label=readable(found.metric),
        reference=None if found.teacher is None else ("dense teacher", found.teacher),
    )


def _effect_chart(found: Comparison) -> Chart:
    return bar_chart(
        "Difference to the full method with the same seed",
        [(effect.part, effect.difference.mean, effect.difference.std) for effect in found.effects],
        x_label=f"difference in {readable(found.metric)}",
        note="Below zero: the part helped. Lines: one standard deviation over seeds each way.",
        signed=True,
    )


# ---- grouping ----


def _groups(runs: Sequence[Run], names: Sequence[str]) -> list[Group]:
    members: dict[tuple[str, Any], list[Run]] = {}
    for run, name in zip(runs, names, strict=True):
        target = run.results.get("density", {}).get("target")
        members.setdefault((name, target if run.pruned else "dense"), []).append(run)
    groups = []
    for (series, _), together in members.items():
        metric = Spread.of([run.metric[1] for run in together])
        assert metric is not None
        kept = [run.results["retained"] for run in together if run.results.get("retained") is not None]
        parameters = [run.results["parameters"] for run in together]
        left = Spread.of([counts.get("after", counts.get("nonzero")) for counts in parameters])
        density = Spread.of([run.results["density"]["encoder"] if run.pruned else 1.0 for run in together])
        assert left is not None
        assert density is not None
        groups.append(
            Group(
                series=series,
                density=density.mean,
                metric=metric,
                retained=Spread.of(kept),
                parameters=left.mean,
                runs=len(together),
            )
        )
    return groups


def _variant_names(runs: Sequence[Run]) -> list[str]:
    """What tells the runs apart beside seed and density, in as few settings as it takes."""
    pruned = [run for run in runs if run.pruned]
    keys = ["method", "contrast", *sorted({key for run in pruned for key in run.options} - {"method", "contrast"})]
    telling: list[str] = []
    for key in keys:
        if key in _NOT_A_VARIANT:
            continue
        with_key, without = (len({_values(run, chosen) for run in pruned}) for chosen in ([*telling, key], telling))
        if with_key > without:
            telling.append(key)
    return [_variant_name(run, telling) for run in runs]


def _variant_name(run: Run, telling: Sequence[str]) -> str:
    if not run.pruned:
        return "fine-tuned, dense"
    parts = [str(run.options[key]) if key == "method" else f"{key} {run.options.get(key)}" for key in telling]
    return ", ".join(parts) or str(run.results["method"])


def _values(run: Run, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(run.options.get(key)) for key in keys)
