"""Pictures: which heads and neurons of a model are left, how dense they are, and how fast models run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from contraprune.errors import UserError
from contraprune.inspection import Summary, unit_densities

ENDINGS = (".png", ".svg")
_BINS = 96  # of neurons, in the order in which they stand


def check_picture(path: str) -> Path:
    """The path of a picture, if one can be drawn there.

    Raises:
        UserError: another ending than ``.png`` or ``.svg``, or matplotlib is not installed.
    """
    if Path(path).suffix.lower() not in ENDINGS:
        raise UserError(f"--picture {path}: expected a name that ends in {' or '.join(ENDINGS)}")
    _pyplot()
    return Path(path)


def draw_summary(summary: Summary, path: Path, title: str) -> None:
    """A heat map of the density of every head and neuron, layer by layer.

    What was removed for good is left blank at the end of its layer: a model does not say which its units were.

    Args:
        path: ends in ``.png`` or ``.svg``; an existing file is replaced.
    """
    pyplot = _pyplot()
    heads, neurons = ([getattr(layer, kind) for layer in summary.layers] for kind in ("heads", "neurons"))
    height = 1.6 + 0.28 * len(summary.layers)
    figure, axes = pyplot.subplots(1, 2, figsize=(11, height), width_ratios=(1, 2), layout="constrained")
    panels = [unit_densities(groups, _BINS) for groups in (heads, neurons)]
    densest = max(float(np.nan_to_num(cells).max(initial=0)) for cells in panels) or 1.0
    names = ("attention heads", "FFN neurons")
    for axis, groups, found, name in zip(axes, (heads, neurons), panels, names, strict=True):
        cells = found if found.size else np.full((len(groups), 1), np.nan)  # nothing is left in any layer: blank
        image = axis.imshow(cells, aspect="auto", interpolation="nearest", cmap="viridis", vmin=0, vmax=densest)
        axis.set_facecolor("0.88")
        living, before = (sum(getattr(units, count) for units in groups) for count in ("living", "before"))
        axis.set_title(f"{name}: {living:,} of {before:,} alive", fontsize=10)
        axis.set_yticks(range(len(groups)))
        widest = max(units.before for units in groups)
        ticks = np.linspace(0, cells.shape[1], 5 if found.size else 0)
        axis.set_xticks(ticks - 0.5, [f"{tick / cells.shape[1] * widest:.0f}" for tick in ticks])
    axes[0].set_ylabel("layer")
    bar = figure.colorbar(image, ax=axes, shrink=0.9)
    bar.set_label("density\n(blank: removed, drawn last)", fontsize=8)  # short enough for two layers
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def draw_bench(report: Mapping[str, Any], path: Path) -> None:
    """Bars of the p50 latency of every model and runtime, a panel per shape, with a line up to the p95.

    Args:
        report: of ``contraprune bench``.
        path: ends in ``.png`` or ``.svg``; an existing file is replaced.
    """
    pyplot = _pyplot()
    rows, shapes = report["models"], report["shapes"]
    height = 1.4 + 0.24 * len(rows)
    figure, axes = pyplot.subplots(
        1, len(shapes), figsize=(6.5 * len(shapes), height), layout="constrained", squeeze=False
    )
    for axis, shape in zip(axes[0], shapes, strict=True):
        ordered = sorted(rows, key=lambda row: row["latency"][shape]["p50_ms"], reverse=True)
        middle, high = ([row["latency"][shape][name] for row in ordered] for name in ("p50_ms", "p95_ms"))
        colours = ["0.7" if row["dense"] else "tab:blue" for row in ordered]
        names = [f"{row['runtime']}, {Path(row['model']).name if not row['dense'] else 'dense'}" for row in ordered]
        axis.barh(range(len(ordered)), middle, color=colours)
        axis.hlines(range(len(ordered)), middle, high, color="black", linewidth=1)
        axis.set_yticks(range(len(ordered)), names, fontsize=8)
        axis.set_title(f"{shape} tokens", fontsize=10)
        axis.set_xlabel("milliseconds: p50, line to p95")
    machine = report["machine"]
    figure.suptitle(f"{machine['cpu']}, {machine['threads']} thread(s)", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise UserError("--picture: needs matplotlib; pip install 'contraprune[pictures]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
