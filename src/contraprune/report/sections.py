"""What the page of one run shows, section by section; the template only lays it out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from contraprune.inspection import LayerSummary, Summary, unit_densities
from contraprune.progress import duration
from contraprune.report.charts import Chart, Series, bar_chart, heat_map, line_chart, map_chart
from contraprune.report.record import Run, Timing
from contraprune.report.svg import number

SOURCES = {"pretrained": "PrC", "snapshots": "SnC", "finetuned": "FiC"}
MODELS = {"pretrained": "pre-trained", "finetuned": "fine-tuned teacher", "pruned": "pruned"}
_NEURON_COLUMNS = 48


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number of the headline: what it answers, the number, and what it is compared with."""

    question: str
    value: str
    details: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Headers and rows; cells are text."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with charts and tables under it."""

    title: str
    charts: Sequence[Chart] = ()
    table: Table | None = None
    note: str = ""
    open: bool = field(default=True)  # whether a long table is shown without a click


# ---- the headline ----


def headline(run: Run) -> list[Figure]:
    """How small, how good, how fast."""
    return [_size(run), _quality(run), _speed(run)]


def _size(run: Run) -> Figure:
    weights = f"{run.bytes_on_disk() / 1e6:.1f} MB of weights on disk" if run.model.is_dir() else ""
    parameters = run.results["parameters"]
    if not run.pruned:
        return Figure(question="How large", value=number(parameters["all"]), details=["parameters", weights])
    kind = "of the parameters" if run.structured else "non-zero parameters"
    before, after = parameters["before"], parameters["after"]
    details = [
        "of the encoder's weights",
        f"{after / 1e6:.2f} M of {before / 1e6:.2f} M {kind.removeprefix('of the ')} ({after / before:.0%})",
    ]
    if run.structured:
        details.append(weights)
    elif weights:
        details.append(f"{weights}: zeros are stored too, until contraprune export --format sparse")
    return Figure(question="How small", value=f"{run.results['density']['encoder']:.1%}", details=details)


def _quality(run: Run) -> Figure:
    name, value = run.metric
    error = run.standard_error()
    details = [f"{readable(name)}" + (f", standard error {error:.3f}" if error is not None else "")]
    if run.pruned:
        details.append(f"the dense teacher has {run.results['teacher_metrics'][name]:.4f}")
        if run.results.get("retained") is not None:
            details.append(f"so {run.results['retained']:.1%} of it is kept")
    return Figure(question="How good", value=f"{value:.4f}", details=details)


def _speed(run: Run) -> Figure:
    seconds = run.results["seconds"]["total"]
    took = f"the run took {duration(seconds)}"
    fastest = min((one for one in _timings(run) if not one.dense), key=lambda one: one.p50, default=None)
    if fastest is not None:
        details = [
            f"the dense model in its fastest runtime: {fastest.p50:.1f} ms in {fastest.runtime}",
            f"{_tokens(fastest.shape)}",
        ]
        return Figure(question="How fast", value=f"{fastest.speedup:.1f}×", details=details)
    if not run.pruned:
        return Figure(question="How long", value=duration(seconds), details=["for the whole run"])
    if run.structured:
        return Figure(
            question="How fast",
            value=f"{1 / max(run.results['density']['encoder'], 1e-9):.1f}× fewer",
            details=["multiplications in the encoder's matrices, in any runtime; not timed in this run", took],
        )
    return Figure(
        question="How fast",
        value="as dense",
        details=["in PyTorch, which multiplies by zeros too; the sparse CPU engine skips them", took],
    )


def _timings(run: Run) -> list[Timing]:
    """Those of the first shape."""
    timings = [] if run.bench is None else run.bench.timings
    return [one for one in timings if one.shape == timings[0].shape]


def _tokens(shape: str) -> str:
    """``8x128`` in words."""
    texts, _, tokens = shape.partition("x")
    return f"{texts} text{'s' * (texts != '1')} of {tokens} tokens"


def latency(run: Run) -> Section | None:
    """What was measured by ``contraprune bench``; None where nothing was."""
    if run.bench is None:
        return None
    charts = []
    for shape in dict.fromkeys(one.shape for one in run.bench.timings):
        timings = sorted((one for one in run.bench.timings if one.shape == shape), key=lambda one: one.p50)
        bars = [(f"{one.runtime}, {'dense' if one.dense else one.model}", one.p50, None) for one in timings]
        charts.append(bar_chart(f"Latency, {_tokens(shape)}", bars, x_label="milliseconds, median"))
    rows = [
        [one.shape, "dense" if one.dense else one.model, one.runtime, f"{one.p50:.2f}", f"{one.p95:.2f}",
         f"{one.speedup:.2f}×"]
        for one in run.bench.timings
    ]  # fmt: skip
    headers = ["texts x tokens", "model", "runtime", "median ms", "95 % ms", "times dense"]
    note = "Times dense: how many times faster than the dense model in its fastest runtime."
    table = Table(headers=headers, rows=rows, note=note)
    return Section(title="Latency", charts=charts, table=table, note=f"Measured on {run.bench.machine}.")


def readable(name: str) -> str:
    """``matthews_correlation`` without underscores."""
    return name.replace("_", " ")


# ---- metrics ----


def metrics(run: Run) -> Section:
    """Every metric beside that of the dense teacher."""
    found = run.results["metrics"]
    if not run.pruned:
        table = Table(headers=["metric", "value"], rows=[[readable(k), f"{v:.4f}"] for k, v in found.items()])
        return Section(title="Metrics", table=table)
    teacher = run.results["teacher_metrics"]
    rows = [
        [readable(name), f"{teacher[name]:.4f}", f"{value:.4f}", f"{value - teacher[name]:+.4f}"]
        for name, value in found.items()
    ]
    headers = ["metric", "dense teacher", "pruned", "difference"]
    error = run.standard_error()
    note = (
        f"The standard error of the first line is {error:.3f}: differences of that size say nothing."
        if error is not None
        else ""
    )
    return Section(title="Pruned against dense", table=Table(headers=headers, rows=rows, note=note))


# ---- over time ----


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


# ---- what is left ----


def anatomy(run: Run) -> Section | None:
    """Density or living heads and neurons of every layer; None for a run that prunes nothing."""
    if not run.pruned:
        return None
    summary = run.summary()
    if summary is None:
        return Section(title="What is left of each layer", note="The model is not in the run's directory any more.")
    charts = [
        _units(summary, kind, unit, title)
        for kind, unit, title in (("heads", "head", "Attention heads"), ("neurons", "neuron", "FFN neurons"))
    ]
    note = "Removed units are drawn at the end of their layer: a model does not say which ones they were."
    return Section(
        title="What is left of each layer",
        charts=charts,
        table=None if run.structured else _matrices(summary.layers),
        note=note if run.structured else "",
        open=False,
    )


def _units(summary: Summary, kind: str, unit: str, title: str) -> Chart:
    groups = [getattr(layer, kind) for layer in summary.layers]
    cells = unit_densities(groups, _NEURON_COLUMNS)
    living, before = (sum(getattr(units, count) for units in groups) for count in ("living", "before"))
    per_column = -(-max(units.before for units in groups) // cells.shape[1])
    columns = f", {per_column} to a cell" if per_column > 1 else ""
    return heat_map(
        f"{title}: {living:,} of {before:,} alive",
        cells,
        names=[str(layer) for layer in range(len(groups))],
        counts=[f"{units.living}/{units.before}" for units in groups],
        x_label=f"{unit}s of each layer{columns}; right: alive",
        unit=unit,
        per_column=per_column,
        densest=float(np.nanmax(cells)) or 1.0,
    )


def _matrices(layers: Sequence[LayerSummary]) -> Table:
    rows = [
        [str(layer), matrix.name, f"{matrix.nonzero:,}", f"{matrix.nonzero / max(1, matrix.numel):.4f}"]
        for layer, summary in enumerate(layers)
        for matrix in summary.matrices
    ]
    return Table(headers=["layer", "matrix", "non-zero weights", "density"], rows=rows)


def stages(run: Run) -> Section | None:
    """The stages of a structured run."""
    if not run.structured:
        return None
    name = run.metric[0]
    teacher = run.results["teacher_metrics"][name]
    rows = [
        [
            f"{stage['removed_percent']:g} %",
            f"{sum(stage['heads']):,}",
            f"{sum(stage['neurons']):,}",
            f"{stage['parameters'] / 1e6:.2f} M",
            f"{stage['metrics'][name]:.4f}",
            f"{stage['metrics'][name] / teacher:.1%}" if teacher else "",
        ]
        for stage in run.results["stages"]
    ]
    headers = ["removed", "heads", "neurons", "parameters", readable(name), "of the teacher's"]
    return Section(title="Stages", table=Table(headers=headers, rows=rows))


# ---- the map ----


def representations(run: Run) -> Section | None:
    """Where training examples lie for each model."""
    if not run.pruned:
        return None
    title = "Map of the representations"
    found = run.map
    if "skipped" in found:
        return Section(title=title, note=f"No map: {found['skipped']}.")
    labels = np.asarray(found["labels"])
    points = {name: np.asarray(rows, dtype=float) for name, rows in found["points"].items()}
    everything = np.concatenate([*points.values()])
    bounds = (everything.min(axis=0), everything.max(axis=0))
    names = [name or "example" for name in found["names"]]
    charts = [map_chart(MODELS[model].capitalize(), rows, labels, names, bounds) for model, rows in points.items()]
    legend = [(f"swatch c{label}", name) for label, name in enumerate(names)] if found["names"] != [""] else []
    charts = [Chart(title=chart.title, picture=chart.picture, legend=legend) for chart in charts]
    explained = sum(found["explained"])
    note = (
        f"The same {found['examples']} training examples as each model represents them, on the two principal "
        f"components of all rows together ({explained:.0%} of their variance); one scale for all."
    )
    return Section(title=title, charts=charts, note=note + ("" if legend else " The task has no labels to colour by."))
