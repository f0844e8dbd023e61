"""A run over its steps: losses, density, metric."""

from collections.abc import Iterable, Sequence
from typing import Any

from contraprune.report.charts import Chart, Series, line_chart
from contraprune.report.parts import Section, readable
from contraprune.report.record import Run

SOURCES = {"pretrained": "PrC", "snapshots": "SnC", "finetuned": "FiC"}


class Timeline:
    """The log of a run on one axis of steps: those of a structured run count on from stage to stage."""

    def __init__(self, log: Sequence[dict[str, Any]]) -> None:
        self.entries: list[dict[str, Any]] = []
        self.boundaries: list[int] = []
        offset, last, stage = 0, 0, None
        for entry in log:
            if entry.get("stage") != stage:
                offset, stage = last, entry.get("stage")
                if offset:
                    self.boundaries.append(offset)
            last = offset + entry["step"]
            self.entries.append({**entry, "step": last})
        self.last = last

    def points(self, key: str) -> list[tuple[float, float]]:
        """(step, value) of every entry that has ``key``."""
        return [
            (float(entry["step"]), float(entry[key]))
            for entry in self.entries
            if isinstance(entry.get(key), int | float)
        ]

    def keys(self) -> list[str]:
        return list(dict.fromkeys(key for entry in self.entries for key in entry))


def training(run: Run) -> Section:
    """Loss, its parts, density and metric over the steps."""
    time = Timeline(run.log)
    charts = [chart for chart in (_progress(run, time), _density(run, time), *_losses(time)) if chart is not None]
    note = "Point at a chart for its values." if charts else "There is no log.jsonl with entries."
    if run.structured and time.boundaries:
        note += " Vertical lines: heads and neurons are removed there, and training starts again."
    return Section(title="Over time", charts=charts, note=note)


def _progress(run: Run, time: Timeline) -> Chart | None:
    name, value = run.metric
    points = time.points(f"eval_{name}")
    if run.structured and not points:
        points = _after_stages(run, time, [stage["metrics"][name] for stage in run.results["stages"]])
    elif not points or points[-1][0] < time.last:
        points = [*points, (float(time.last), value)]
    if time.last == 0 or len(points) < 2:
        return None
    reference = ("dense teacher", float(run.results["teacher_metrics"][name])) if run.pruned else None
    series = [Series(name=readable(name), points=points, colour=0)]
    return line_chart(
        f"{readable(name).capitalize()} on the validation data",
        series,
        x_label="step",
        y_label=readable(name),
        reference=reference,
        last=time.last,
        boundaries=time.boundaries,
    )


def _density(run: Run, time: Timeline) -> Chart | None:
    if run.structured:
        points = _kept_after_stages(run, time)
        label, steps = "fraction of the parameters", True
    else:
        points, label, steps = time.points("density"), "density of the encoder", False
    if len(points) < 2 or not time.last:
        return None
    series = [Series(name=label, points=points, colour=2, steps=steps)]
    return line_chart(
        "What is left", series, x_label="step", y_label=label, last=time.last, boundaries=time.boundaries, zero=True
    )


def _kept_after_stages(run: Run, time: Timeline) -> list[tuple[float, float]]:
    before = run.results["parameters"]["before"]
    fractions = [stage["parameters"] / before for stage in run.results["stages"]]
    ends = _after_stages(run, time, fractions)
    starts = [0.0, *(end for end, _ in ends[:-1])]
    return [*zip(starts, fractions, strict=True), ends[-1]] if ends else []


def _after_stages(run: Run, time: Timeline, values: Sequence[float]) -> list[tuple[float, float]]:
    """(last step, value) of every stage; nothing where the log was cut."""
    ends = [*map(float, time.boundaries), float(time.last)]
    return list(zip(ends, values, strict=True)) if len(ends) == len(values) and time.last else []


def _losses(time: Timeline) -> Iterable[Chart | None]:
    def chart(
        title: str, keys: Sequence[tuple[str, str, int, bool]], note: str = "", *, zero: bool = True
    ) -> Chart | None:
        series = [
            Series(name=name, points=points, colour=colour, dashed=dashed)
            for key, name, colour, dashed in keys
            if (points := time.points(key))
        ]
        if not series or not time.last:
            return None
        return line_chart(
            title,
            series,
            x_label="step",
            y_label="loss",
            last=time.last,
            boundaries=time.boundaries,
            zero=zero,
            note=note,
        )

    yield chart("Loss", [("loss", "training loss", 0, False), ("eval_loss", "validation, task loss alone", 1, True)])
    yield chart(
        "Task and distillation",
        [("loss_ce", "task loss on the labels", 4, False), ("loss_kd", "distillation", 5, False)],
        note="Unweighted.",
    )
    yield chart(
        "Contrastive losses, same example",
        [(f"loss_{source}_unsupervised", f"{short} ({source})", n, False)
         for n, (source, short) in enumerate(SOURCES.items())],
        note="Unweighted. Unsupervised: an example against its own row in the bank.",
        zero=False,
    )  # fmt: skip
    yield chart(
        "Contrastive losses, same label",
        [(f"loss_{source}_supervised", f"{short} ({source})", n, False)
         for n, (source, short) in enumerate(SOURCES.items())],
        note="Unweighted. Supervised: an example against the bank's rows with its label.",
        zero=False,
    )  # fmt: skip
    yield chart("Penalty of the criterion", [("penalty", "penalty", 6, False)], note="Unweighted.")
