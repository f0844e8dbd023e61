"""What the page of one run shows, section by section; the template only lays it out."""

from collections.abc import Sequence

import numpy as np

from contraprune.inspection import LayerSummary, Summary, unit_densities
from contraprune.report.charts import Chart, bar_chart, heat_map, map_chart
from contraprune.report.parts import Section, Table, readable, tokens
from contraprune.report.record import Run

MODELS = {"pretrained": "pre-trained", "finetuned": "fine-tuned teacher", "pruned": "pruned"}
_NEURON_COLUMNS = 48


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


def latency(run: Run) -> Section | None:
    """What was measured by ``contraprune bench``; None where nothing was."""
    if run.bench is None:
        return None
    charts = []
    for shape in dict.fromkeys(one.shape for one in run.bench.timings):
        timings = sorted((one for one in run.bench.timings if one.shape == shape), key=lambda one: one.p50)
        bars = [(f"{one.runtime}, {'dense' if one.dense else one.model}", one.p50, None) for one in timings]
        charts.append(bar_chart(f"Latency, {tokens(shape)}", bars, x_label="milliseconds, median"))
    compared = any(one.speedup is not None for one in run.bench.timings)
    rows = [
        [one.shape, "dense" if one.dense else one.model, one.runtime, f"{one.p50:.2f}", f"{one.p95:.2f}",
         *([] if one.speedup is None else [f"{one.speedup:.2f}×"])]
        for one in run.bench.timings
    ]  # fmt: skip
    headers = ["texts x tokens", "model", "runtime", "median ms", "95 % ms", *(["times dense"] if compared else [])]
    note = (
        "Times dense: how many times faster than the dense model in its fastest runtime."
        if compared
        else "No dense model was measured beside these."
    )
    table = Table(headers=headers, rows=rows, note=note)
    return Section(title="Latency", charts=charts, table=table, note=f"Measured on {run.bench.machine}.")


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
    headers = ["removed (plan)", "heads", "neurons", "parameters", readable(name), "of the teacher's"]
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
