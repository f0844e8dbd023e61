"""Results as tables in the terminal."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from contraprune.inspection import LayerSummary, Matrix, Summary

_WIDE = 160  # columns, where no window says how many there are


def _console() -> Console:
    """Standard output; into a file or a pipe tables go unbroken."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=_WIDE)


def show_results(results: Mapping[str, Any], output_dir: str) -> None:
    """The end of a run: metrics beside the teacher's, density, parameters, and where things are."""
    console = _console()
    teacher: Mapping[str, float] = results.get("teacher_metrics", {})
    title = f"{results['task']}, {results['method']}"
    table = Table("", *(["teacher", "pruned"] if teacher else ["model"]), title=title)
    for name, value in results["metrics"].items():
        table.add_row(name, *([f"{teacher[name]:.4f}"] if teacher else []), f"{value:.4f}")
    if teacher:
        parameters = results["parameters"]
        table.add_row("encoder density", "1", f"{results['density']['encoder']:.4f}")
        table.add_row("non-zero parameters", f"{parameters['before']:,}", f"{parameters['after']:,}")
    console.print(table)
    if "stages" in results:
        console.print(_stages(results["stages"]))
    if results.get("retained") is not None:
        console.print(f"keeps {results['retained']:.1%} of the teacher's {next(iter(results['metrics']))}")
    console.print(
        f"{results['seconds']['total']:.0f} s; model in {output_dir}/model, numbers in results.json", soft_wrap=True
    )
    console.print(f"to look at: {output_dir}/report.html", soft_wrap=True, highlight=False)


def show_metrics(metrics: Mapping[str, float], seconds: float, name: str) -> None:
    """What ``contraprune evaluate`` found."""
    console = _console()
    console.print(name, highlight=False, soft_wrap=True)
    table = Table("metric", "value")
    for metric, value in metrics.items():
        table.add_row(metric, f"{value:.4f}")
    table.add_row("seconds", f"{seconds:.1f}")
    console.print(table)


def show_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, note: str) -> None:
    """Any table: its first column on the left, the others, which are numbers, on the right."""
    console = _console()
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for number, header in enumerate(headers):
        table.add_column(header, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(note, soft_wrap=True, highlight=False)


def show_probe(results: Mapping[str, Any]) -> None:
    """What ``contraprune probe`` found: a row per task, a column per model, and what the others are ahead or behind."""
    console = _console()
    first, *others = models = results["models"]
    letters = {model: chr(ord("A") + number) for number, model in enumerate(models)}
    for model, letter in letters.items():
        console.print(f"{letter}  {model}", soft_wrap=True, highlight=False)
    headers = ["task", "metric", "constant", *letters.values(), *(f"A - {letters[other]}" for other in others)]
    rows = [
        [name, task["metric"], f"{task['constant']:.4f}", *(f"{task['scores'][model]:.4f}" for model in models)]
        + [f"{task['scores'][first] - task['scores'][other]:+.4f}" for other in others]
        for name, task in results["tasks"].items()
    ]
    means = [results["mean"][model] for model in models]
    rows.append(
        ["mean", "", "", *(f"{mean:.4f}" for mean in means), *(f"{means[0] - mean:+.4f}" for mean in means[1:])]
    )
    show_table(headers, rows, note="constant: the best answer that is the same for every text")


def show_export(record: Mapping[str, Any], output_dir: str) -> None:
    """What ``contraprune export`` wrote, and what its number formats cost."""
    console = _console()
    table = Table("", "before", "after")
    table.add_row("weights", *(f"{record['bytes'][when] / 1e6:.1f} MB" for when in ("before", "after")))
    for metric, values in record.get("metrics", {}).items():
        table.add_row(metric, f"{values['before']:.4f}", f"{values['after']:.4f}")
    console.print(table)
    if "largest_difference" in record:
        console.print(f"outputs differ from PyTorch's by at most {record['largest_difference']:.1e} on random tokens")
    console.print(f"{record['format']} model in {output_dir}", soft_wrap=True)


_NO_BASELINE = "no dense baseline, so no speed-up: name the dense model with --against"


def show_bench(report: Mapping[str, Any]) -> None:
    """What ``contraprune bench`` measured: a table per shape, the fastest first, then sizes and memory."""
    machine = report["machine"]
    names = {path: chr(ord("A") + n) for n, path in enumerate(dict.fromkeys(row["model"] for row in report["models"]))}
    dense = {row["model"] for row in report["models"] if row["dense"]}
    packages = ", ".join(f"{name} {machine[name]}" for name in ("torch", "onnxruntime", "openvino") if machine[name])
    console = _console()
    for line in (
        f"{machine['cpu']} ({' '.join(machine['cpu_features'])}), {machine['threads']} thread(s); {packages}",
        *(f"{letter}  {path}" + (" (dense)" * (path in dense)) for path, letter in names.items()),
    ):
        console.print(line, soft_wrap=True, highlight=False)
    for shape in report["shapes"]:
        strongest = report["strongest_dense"][shape]
        headers = [
            shape,
            "p50 ms",
            "p95 ms",
            "texts/s",
            *(f"x {runtime}" for runtime in dict.fromkeys(strongest.values())),
        ]
        rows = sorted(report["models"], key=lambda row: row["latency"][shape]["p50_ms"])
        cells = []
        for row in rows:
            latency = row["latency"][shape]
            ratios = {runtime: latency["speedup_over_dense"][kind] for kind, runtime in strongest.items()}
            numbers = [f"{latency[name]:.2f}" for name in ("p50_ms", "p95_ms")]
            numbers += [f"{latency['texts_per_second']:.0f}", *(f"{ratio:.2f}" for ratio in ratios.values())]
            cells.append([f"{names[row['model']]} {row['runtime']}", *numbers])
        best = " and ".join(f"{runtime} ({kind})" for kind, runtime in strongest.items())
        note = f"x: times faster than the dense model in its fastest runtime, {best}"
        show_table(headers, cells, note=f"{note if strongest else _NO_BASELINE}\n")
    cells = [
        [
            f"{names[row['model']]} {row['runtime']}",
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['peak_bytes'] / 1e6:.0f}",
            f"{row['import_seconds']:.2f}",
            f"{row['load_seconds']:.2f}",
            "" if row["difference"] is None else f"{row['difference']:.0e}",
        ]
        for row in report["models"]
    ]
    headers = ["", "MB on disk", "MB memory", "import s", "load s", "difference"]
    show_table(headers, cells, note="memory: peak of a process; difference: of the outputs from PyTorch's")
    for line in report["skipped"]:
        console.print(f"not measured: {line}", soft_wrap=True, highlight=False)


def _stages(stages: list[Mapping[str, Any]]) -> Table:
    main = next(iter(stages[0]["metrics"]))
    table = Table("removed (plan)", "heads", "neurons", "parameters", main, "seconds", title="stages")
    for stage in stages:
        table.add_row(
            f"{stage['removed_percent']:g} %",
            f"{sum(stage['heads']):,}",
            f"{sum(stage['neurons']):,}",
            f"{stage['parameters']:,}",
            f"{stage['metrics'][main]:.4f}",
            f"{sum(stage['seconds'].values()):.0f}",
        )
    return table


def show_summary(summary: Summary, name: str) -> None:
    """A model's living heads and neurons per layer, the density of each matrix if any is sparse, and the totals."""
    console = _console()
    console.print(f"{name} ({summary.model_class})", highlight=False, soft_wrap=True)
    console.print(_units(summary, ("#", ".") if console.options.ascii_only else ("█", "░")))
    if summary.encoder_density < 1:
        console.print(_matrices(summary))
    totals = Table("", "all", "non-zero", "density")
    totals.add_row(
        "encoder weights",
        f"{summary.encoder_weights:,}",
        f"{summary.encoder_nonzero:,}",
        f"{summary.encoder_density:.4f}",
    )
    density = summary.nonzero / summary.parameters
    totals.add_row("all parameters", f"{summary.parameters:,}", f"{summary.nonzero:,}", f"{density:.4f}")
    console.print(totals)
    if summary.bytes_on_disk:
        console.print(f"weights on disk: {summary.bytes_on_disk / 1e6:.1f} MB")


def _units(summary: Summary, marks: tuple[str, str]) -> Table:
    """Bars of the heads and neurons that are alive, out of those that there were."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("layer", justify="right")
    for header in ("heads", "neurons"):
        table.add_column(header)
        table.add_column("", justify="right")
    for number, layer in enumerate(summary.layers):
        cells = [str(number)]
        for units in (layer.heads, layer.neurons):
            cells += [_bar(units.living / max(1, units.before), marks), f"{units.living}/{units.before}"]
        table.add_row(*cells)
    return table


def _bar(fraction: float, marks: tuple[str, str], width: int = 24) -> str:
    """What is alive never looks like nothing, and what is gone never like all."""
    filled = round(width * fraction)
    if 0 < fraction < 1:
        filled = min(max(filled, 1), width - 1)
    return marks[0] * filled + marks[1] * (width - filled)


def _matrices(summary: Summary) -> Table:
    columns = _short_names([matrix for layer in summary.layers for matrix in layer.matrices])
    headers = [column.replace(".", "\n") for column in columns.values()]  # fits 80 columns
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), title="density")
    for header in ("layer", *headers, "all"):
        table.add_column(header, justify="right", overflow="fold")
    for number, layer in enumerate(summary.layers):
        table.add_row(str(number), *_row(layer, list(columns)))
    return table


def _short_names(matrices: list[Matrix]) -> dict[str, str]:
    """Matrix name -> the shortest ending of it that no other has, in the order of the layers."""
    names = list(dict.fromkeys(matrix.name for matrix in matrices))
    short: dict[str, str] = {}
    for name in names:
        parts = name.split(".")
        endings = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
        taken = [sum(("." + other).endswith("." + ending) for other in names) for ending in endings]
        short[name] = endings[taken.index(1)] if 1 in taken else name
    return short


def _row(layer: LayerSummary, columns: list[str]) -> list[str]:
    densities = {matrix.name: matrix.nonzero / max(1, matrix.numel) for matrix in layer.matrices}
    cells = [f"{densities[name]:.3f}" if name in densities else "" for name in columns]
    return [*cells, f"{layer.density:.3f}"]
