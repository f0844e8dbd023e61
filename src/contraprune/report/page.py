"""Pages of one file: template, style sheet and pictures together; no script, nothing from the network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from contraprune.report import sections
from contraprune.report.headline import headline
from contraprune.report.parts import Figure, Section, Table
from contraprune.report.record import Run, read_run, shown_settings
from contraprune.report.timeline import training
from contraprune.runs import RunDirectory
from contraprune.saving import write_text

_PAGES = Environment(
    loader=PackageLoader("contraprune.report", "."),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(path: Path, file: Path | None = None) -> Path:
    """Writes ``report.html`` of the finished run at ``path``, or another ``file``, from the run's files alone.

    Raises:
        UserError: no finished run is there, or a file of it is damaged.
    """
    run = read_run(path)
    file = file or RunDirectory(path).report
    write_text(file, run_page(run))
    return file


def run_page(run: Run) -> str:
    """The page of one run."""
    shown = [
        sections.metrics(run),
        sections.latency(run),
        training(run),
        sections.stages(run),
        sections.anatomy(run),
        sections.representations(run),
        _settings("Settings", shown_settings(run.options)),
        _settings("Environment", shown_settings({**run.environment, "seed": run.results.get("seed")})),
        _settings("Seconds", ((name, f"{value:.1f}") for name, value in run.results["seconds"].items())),
    ]
    did = f"pruned by {run.results['method']}" if run.pruned else "fine-tuned"
    contrast = ", ".join(run.results.get("contrast", [])) or "none"
    facts = [f"contrast: {contrast}"] if run.pruned else []
    if run.environment.get("date"):
        facts.append(str(run.environment["date"])[:10])
    return render(
        title=f"{run.results['task']}, {did}",
        subtitle=" · ".join([run.name, *facts]),
        figures=headline(run),
        shown=[section for section in shown if section is not None],
    )


def render(*, title: str, subtitle: str, figures: Sequence[Figure], shown: Sequence[Section]) -> str:
    """The page with a headline and sections."""
    return _PAGES.get_template("page.html").render(title=title, subtitle=subtitle, figures=figures, sections=shown)


def _settings(title: str, pairs: Any) -> Section:
    return Section(title=title, table=Table(headers=["", ""], rows=[list(pair) for pair in pairs]), open=False)
