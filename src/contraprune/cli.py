"""The command line: flags to settings, results to tables, errors to one line."""

import argparse
import dataclasses
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any, NoReturn

from contraprune.allocator import keep_freed_memory
from contraprune.errors import UserError

_EPILOG = """\
a first run:
  contraprune demo

the usual way, with your own data:
  contraprune finetune --model bert-base-uncased --task sst2 --output_dir runs/teacher
  contraprune prune --model bert-base-uncased --teacher runs/teacher/model --task sst2 --density 0.1 \\
    --output_dir runs/pruned
  contraprune evaluate runs/pruned/model --task sst2

Every command explains itself: contraprune prune --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code (0, or 2 after an error that the user can mend)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        command, rest = _command(arguments)
        command(rest)
    except UserError as error:
        print(f"contraprune: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        print(f"contraprune: {_interrupted(arguments, str(interruption))}", file=sys.stderr)
        return 130
    except (OSError, RuntimeError, MemoryError) as error:
        from contraprune.failures import explain

        if (explained := explain(error, "output", "lower --batch_size or --max_length")) is None:
            raise
        print(f"contraprune: {' '.join(str(explained).split())}", file=sys.stderr)
        return 2
    return 0


def _interrupted(arguments: list[str], saved: str) -> str:
    """What to say after Ctrl-C, given what was saved."""
    if not arguments or arguments[0] not in _TRAINING:
        return "interrupted"
    how = "continues from there" if saved else "continues from what was saved last"
    without = " without --overwrite" if "--overwrite" in arguments else ""
    return f"interrupted{f' ({saved})' if saved else ''}; the same command{without} {how}"


def _command(arguments: list[str]) -> tuple[Callable[[list[str]], None], list[str]]:
    import contraprune

    parser = argparse.ArgumentParser(
        prog="contraprune",
        description="Makes fine-tuned Hugging Face models smaller by Contrastive Pruning (Xu et al., AAAI 2022).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="help", help="Show this help and exit.")
    parser.add_argument("--version", action="version", version=f"contraprune {contraprune.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=argparse.ArgumentParser)
    for name, (_, summary) in _COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    if not arguments:
        parser.print_help()
        raise SystemExit(0)
    name = arguments[0]
    if name.startswith("-"):
        parser.parse_args(arguments[:1])
    if name not in _COMMANDS:
        from contraprune.config import suggestion

        raise UserError(f"{name}: no such command{suggestion(name, set(_COMMANDS))}; see contraprune --help")
    return _COMMANDS[name][0], arguments[1:]


# ---- flags to settings ----


class _Formatter(argparse.HelpFormatter):
    """Shows each default, and leaves room for long flags."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=min(110, max(80, _columns())))

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        default = action.default
        if text and default not in (None, argparse.SUPPRESS, [], "") and not isinstance(default, bool):
            shown = getattr(default, "value", default)
            text += f" [{shown}]".replace("%", "%%")
        return text


def _columns() -> int:
    import shutil

    return shutil.get_terminal_size().columns


def _parser(command: str, classes: Sequence[type], *, positional: str | None = None, nargs: str | None = None) -> Any:
    """A parser whose flags are the fields of ``classes``; training-loop fields beyond the usual stay unlisted."""
    from transformers import HfArgumentParser, TrainingArguments

    from contraprune.config import SHOWN_TRAINING_FIELDS

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UserError(f"{command}: {_readable(message, self)}")

    parser = Parser(
        list(classes),
        prog=f"contraprune {command}",
        usage=f"contraprune {command} {_USAGE[command]}",
        description=_COMMANDS[command][1],
        formatter_class=_Formatter,
        allow_abbrev=False,
        add_help=False,
    )
    if positional is not None:
        parser.add_argument("path", metavar=positional, nargs=nargs, help=_POSITIONAL[positional])
    parser.add_argument("-h", "--help", action="help", help="Show this help and exit.")
    parser.add_argument(
        "--config", metavar="FILE.yaml", help="Read options from a YAML file ('option: value'); flags override it."
    )
    unlisted = {field.name for field in dataclasses.fields(TrainingArguments)} - set(SHOWN_TRAINING_FIELDS)
    for action in parser._actions:
        action.option_strings = [flag for flag in action.option_strings if flag[:2] != "--" or "-" not in flag[2:]]
        if action.type in _METAVARS and action.choices is None and action.dest != "help":
            action.metavar = _METAVARS[action.type]
        if any(issubclass(cls, TrainingArguments) for cls in classes) and action.dest in unlisted:
            action.help = argparse.SUPPRESS
    return parser


_POSITIONAL = {
    "MODEL": "Directory (or hub name) of the model.",
    "DIR": "Directories of finished runs, or of studies.",
    "KIND": "What to vary: ablation (parts of the method), sparsity (densities) or criteria (methods).",
}
_METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT"}


def _readable(message: str, parser: argparse.ArgumentParser) -> str:
    from contraprune.config import suggestion

    prefix = "unrecognized arguments: "
    if message.startswith(prefix):
        flag = message.removeprefix(prefix).split()[0]
        known = {option.lstrip("-") for action in parser._actions for option in action.option_strings}
        return f"{flag}: no such flag{suggestion(flag.lstrip('-'), known)}"
    return message


def parse(
    command: str,
    classes: Sequence[type],
    arguments: list[str],
    *,
    positional: str | None = None,
    nargs: str | None = None,
) -> Any:
    """Settings of ``classes`` from flags, over those of ``--config``, over the defaults (and the namespace)."""
    import transformers

    transformers.utils.logging.disable_progress_bar()  # of loading and saving weights: seconds at most
    parser = _parser(command, classes, positional=positional, nargs=nargs)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    config = first.parse_known_args(arguments)[0].config
    defaults = _as_flags(config, parser) if config is not None else []
    *settings, unknown = parser.parse_args_into_dataclasses(
        [*defaults, *arguments], look_for_args_file=False, return_remaining_strings=True
    )
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return settings


def _as_flags(path: str, parser: argparse.ArgumentParser) -> list[str]:
    from contraprune.config import read_yaml, suggestion
    from contraprune.runs import RECORD

    known = {action.dest for action in parser._actions}
    flags: list[str] = []
    for key, value in read_yaml(path).items():
        if key == RECORD or value is None:
            continue
        if key not in known:
            raise UserError(f"--config {path}: {key}: no such option{suggestion(key, known)}")
        if isinstance(value, Mapping):
            raise UserError(f"--config {path}: {key}: expected a value, found a mapping")
        values = [_as_text(item, f"--config {path}: {key}") for item in (value if isinstance(value, list) else [value])]
        if len(values) == 1:
            flags.append(f"--{key}={values[0]}")
        elif values:
            flags += [f"--{key}", *values]
    return [*flags, f"--config={path}"]  # ends a flag of several values, before the positional that may follow


def _as_text(value: Any, place: str) -> str:
    """A value of YAML as a flag has it; nothing that would be another flag, or a structure."""
    if not isinstance(value, str | int | float | date):
        raise UserError(f"{place}: expected plain values, found {type(value).__name__}")
    try:
        text = str(value)
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{place}: {error}") from error
    if isinstance(value, str) and text.startswith("--"):
        raise UserError(f"{place}: expected values that do not start with --, found {text:.80}")
    return text


# ---- the commands ----


def _finetune(arguments: list[str]) -> None:
    from contraprune.pipeline import FINETUNE_SETTINGS, run_finetune

    settings = parse("finetune", FINETUNE_SETTINGS, arguments)[: len(FINETUNE_SETTINGS)]
    _show_run(run_finetune(*settings), settings[-1].output_dir)


def _prune(arguments: list[str]) -> None:
    from contraprune.pipeline import PRUNE_SETTINGS, run_prune

    settings = parse("prune", PRUNE_SETTINGS, arguments)[: len(PRUNE_SETTINGS)]
    _show_run(run_prune(*settings), settings[-1].output_dir)


def _evaluate(arguments: list[str]) -> None:
    import json

    from contraprune.config import DataConfig, EvaluationConfig
    from contraprune.evaluation import evaluate_path

    data, evaluation, namespace = parse("evaluate", (DataConfig, EvaluationConfig), arguments, positional="MODEL")
    result = evaluate_path(namespace.path, data, evaluation)
    if evaluation.json:
        print(json.dumps({"metrics": result.metrics, "seconds": round(result.seconds, 3)}))
        return
    from contraprune.tables import show_metrics

    show_metrics(result.metrics, result.seconds, namespace.path)


def _inspect(arguments: list[str]) -> None:
    from contraprune.config import InspectionConfig
    from contraprune.inspection import summarise
    from contraprune.pictures import check_picture, draw_summary
    from contraprune.saving import load, model_directory
    from contraprune.tables import show_summary

    config, namespace = parse("inspect", (InspectionConfig,), arguments, positional="MODEL")
    picture = None if config.picture is None else check_picture(config.picture)
    directory = model_directory(namespace.path)
    summary = summarise(load(directory, engine="torch"), directory)
    show_summary(summary, str(directory))
    if picture is not None:
        draw_summary(summary, picture, str(directory))
        print(f"drawn to {picture}")


def _study(arguments: list[str]) -> None:
    from contraprune.pipeline import PRUNE_SETTINGS
    from contraprune.study.grid import StudyConfig
    from contraprune.study.run import run_study
    from contraprune.study.table import cells
    from contraprune.tables import show_table

    config, *settings, namespace = parse("study", (StudyConfig, *PRUNE_SETTINGS), arguments, positional="KIND")
    rows, errors = run_study(namespace.path, config, *settings)
    output_dir = settings[-1].output_dir
    show_table(*cells(rows), note=f"tables in {output_dir}/table.md and table.csv, runs in {output_dir}/runs")
    for name, error in errors.items():
        raise UserError(f"study: {len(errors)} runs failed, first {name}: {error}")


def _probe(arguments: list[str]) -> None:
    import json

    from contraprune.config import EvaluationConfig
    from contraprune.probing import ProbeConfig, probe
    from contraprune.tables import show_probe

    config, evaluation, namespace = parse("probe", (ProbeConfig, EvaluationConfig), arguments, positional="MODEL")
    results = probe(namespace.path, config, evaluation)
    if evaluation.json:
        print(json.dumps(results))
        return
    show_probe(results)


def _export(arguments: list[str]) -> None:
    from contraprune.config import DataConfig
    from contraprune.export import ExportConfig, run_export
    from contraprune.tables import show_export

    export, data, namespace = parse("export", (ExportConfig, DataConfig), arguments, positional="MODEL")
    show_export(run_export(namespace.path, data, export), export.output_dir)


def _report(arguments: list[str]) -> None:
    from pathlib import Path

    from contraprune.config import ReportConfig
    from contraprune.report import write_comparison, write_report
    from contraprune.study.directory import RECORD, StudyDirectory
    from contraprune.tables import show_table

    config, namespace = parse("report", (ReportConfig,), arguments, positional="DIR", nargs="+")
    paths = [Path(path) for path in namespace.path]
    studies = {path: StudyDirectory(path) for path in paths if (path / RECORD).is_file()}
    if len(paths) == 1 and not studies:
        print(f"written to {write_report(paths[0], None if config.output is None else Path(config.output))}")
        return
    members = [member for path in paths for member in (studies[path].members() if path in studies else [(path, None)])]
    usual = paths[0] / "report.html" if len(paths) == 1 else Path("comparison.html")
    file = usual if config.output is None else Path(config.output)
    effects = [effect for study in studies.values() for effect in study.effects()]
    table = write_comparison(members, file, effects=effects)
    show_table(table.headers, table.rows, note=f"written to {file}")


def _bench(arguments: list[str]) -> None:
    from contraprune.benchmarking.job import BenchConfig, run_bench
    from contraprune.pictures import check_picture, draw_bench
    from contraprune.tables import show_bench

    config, namespace = parse("bench", (BenchConfig,), arguments, positional="MODEL", nargs="+")
    picture = None if config.picture is None else check_picture(config.picture)
    report = run_bench(namespace.path, config)
    show_bench(report)
    if picture is not None:
        draw_bench(report, picture)
        print(f"drawn to {picture}")


def _demo(arguments: list[str]) -> None:
    from contraprune.demo import DemoConfig, run_demo

    (config, _) = parse("demo", (DemoConfig,), arguments)
    run_demo(config)


def _show_run(results: Mapping[str, Any], output_dir: str) -> None:
    from contraprune.tables import show_results

    if int(os.environ.get("RANK", "0")) == 0:
        show_results(results, output_dir)


_COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "demo": (_demo, "Fine-tune and prune a small real model on a small made-up data set, in a few minutes."),
    "finetune": (_finetune, "Fine-tune a pre-trained model on a task: makes the teacher that is pruned next."),
    "prune": (_prune, "Prune a fine-tuned model to a given density, holding it to its teacher and its past."),
    "evaluate": (_evaluate, "Metrics of a model on a task's validation data."),
    "inspect": (_inspect, "Living heads and neurons of a model, density of its matrices, its parameters and its size."),
    "export": (_export, "Write a model in the format it is deployed in: sparse, dense, onnx or openvino."),
    "bench": (
        _bench,
        "Latency, memory and size of models in every runtime that is installed, against the dense model.",
    ),
    "study": (_study, "Prune many times: parts of the method taken away, densities or methods, each over seeds."),
    "report": (_report, "A page to look at: of one run, or of several runs and studies compared."),
    "probe": (_probe, "What a model still knows of other tasks: linear heads on its frozen encoder."),
}
_TRAINING = ("demo", "finetune", "prune", "study")


_DATA_USAGE = "(--task T [--data_dir D] | --train_file F --validation_file F)"
_USAGE = {
    "demo": "[--output_dir DIR]",
    "finetune": f"--model M {_DATA_USAGE} --output_dir DIR [options]",
    "prune": f"--model M --teacher DIR {_DATA_USAGE} --density X --output_dir DIR [options]",
    "evaluate": f"MODEL {_DATA_USAGE} [options]",
    "inspect": "MODEL [--picture FILE.png]",
    "export": f"MODEL --format sparse|dense|onnx|openvino --output_dir DIR [options] [{_DATA_USAGE}]",
    "bench": "MODEL [MODEL ...] --against DENSE [options]",
    "study": f"KIND --model M --teacher DIR {_DATA_USAGE} --seeds 1,2,3 --output_dir DIR [options]",
    "report": "DIR [DIR ...] [--output FILE.html]",
    "probe": "MODEL [--against MODEL ...] --tasks T,T [--data_dir DIR] [options]",
}


def entry_point() -> NoReturn:
    """``contraprune`` of the shell."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    if sys.argv[1:] and sys.argv[1] in _TRAINING:
        keep_freed_memory()
    sys.exit(main())
