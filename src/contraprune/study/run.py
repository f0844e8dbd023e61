"""A study from its flags to its table."""

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from contraprune.config import (
    ContrastConfig,
    DataConfig,
    PruneArguments,
    PruneRunConfig,
    StructuredConfig,
)
from contraprune.errors import UserError
from contraprune.pruning_config import PruningConfig
from contraprune.report import write_comparison
from contraprune.saving import load_config, load_pretrained, load_tokenizer
from contraprune.settings import refuse_unless_default
from contraprune.study.directory import StudyDirectory
from contraprune.study.grid import StudyConfig, fixed_settings
from contraprune.study.plan import planned
from contraprune.study.table import Row
from contraprune.tasks import Task, load_task


def run_study(
    kind: str,
    config: StudyConfig,
    run: PruneRunConfig,
    data: DataConfig,
    pruning: PruningConfig,
    structured: StructuredConfig,
    contrast: ContrastConfig,
    arguments: PruneArguments,
) -> tuple[list[Row], dict[str, str]]:
    """Runs every trial of a study that is not finished, each in a process of its own, and writes its tables.

    The directory then holds ``runs/NAME/`` (a run directory per trial), ``logs/NAME.log``, ``study.json``,
    ``table.md`` and ``table.csv``, rewritten after every trial, and in the end ``report.html``. The same command again
    goes on where it was stopped, and tries failed trials once more; at the same time, in another shell or (with
    ``--storage``) on another machine that sees the directory, it shares the work. More seeds, densities or methods
    extend the study.

    Returns:
        The rows of the table, and the errors of failed trials by their names.

    Raises:
        UserError: flags, files or models cannot be used, or the directory holds something else.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UserError('study: needs an optional part of contraprune: pip install "contraprune[study]"')
    from contraprune.study.queue import Queue, describe_end, start_process  # noqa: PLC0415 - optional

    if arguments.world_size > 1:
        raise UserError("study: start it without torchrun; --workers N runs N trials at once, on a GPU each")
    refuse_unless_default(run, ("overwrite",), "a study keeps what is finished; delete its directory to start again")
    refuse_unless_default(arguments, ("push_to_hub",), "a study is not for the hub; push the run you choose")
    refuse_unless_default(arguments, ("resume_from_checkpoint",), "each trial has checkpoints of its own")
    task, teacher, has_classes = _what_is_pruned(run, data, contrast, arguments)
    settings = (run, data, pruning, structured, contrast, arguments)
    asked, options = planned(kind, config, *settings, task=task, model=teacher, has_classes=has_classes)
    del task, teacher  # each trial reads its own
    directory = StudyDirectory(arguments.output_dir or "")
    with directory.claim(kind, fixed_settings(options), asked) as identity:
        url = config.storage or f"sqlite:///{directory.database.resolve()}"
        queue = Queue(url, identity)
        finished = directory.results()
        queue.add({trial.name: dict(trial.options) for trial in asked if trial.name not in finished})

    def start(name: str, changes: Mapping[str, Any], device: str | None) -> Any:
        own = {**options, **changes, "output_dir": str(directory.runs / name), "run_name": name}
        return start_process(own, directory.logs / f"{name}.lock", directory.logs / f"{name}.log", device)

    def done(name: str) -> None:
        _report(name, *directory.update(queue.ends()))

    queue.work(
        start,
        lambda name, code: describe_end(directory.logs / f"{name}.log", code),
        done,
        devices=_devices(config.workers, 0 if arguments.use_cpu else torch.cuda.device_count()),
    )
    _, errors = directory.update(queue.ends())
    if members := directory.members():
        write_comparison(members, directory.report, effects=directory.effects())
    return directory.rows(), errors


def _what_is_pruned(
    run: PruneRunConfig, data: DataConfig, contrast: ContrastConfig, arguments: PruneArguments
) -> tuple[Task, PreTrainedModel, bool]:
    """The task, the teacher, and whether there are classes to contrast by.

    Raises:
        UserError: data or models cannot be used.
    """
    configs = {name: load_config(name) for name in (run.teacher, run.model)}
    tokenizer = load_tokenizer(run.teacher)
    task = load_task(**data.source(), seed=arguments.seed)
    max_length = data.for_task(task, configs).max_length
    assert max_length is not None
    teacher = load_pretrained(task.auto_class, run.teacher)
    task = task.for_model(teacher.config, run.teacher)
    assert task.train is not None
    first = task.encode(task.train.select([0]), tokenizer, max_length=max_length)
    return task, teacher, task.classes(first) is not None or contrast.supervised_bins is not None


def _devices(workers: int | None, gpus_there: int) -> list[str | None]:
    """The GPU of each worker, as CUDA_VISIBLE_DEVICES names it; None without."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",")[:gpus_there] if visible else [str(number) for number in range(gpus_there)]
    devices: list[str | None] = [*gpus] or [None]
    return [devices[worker % len(devices)] for worker in range(workers or len(devices))]


def _report(name: str, results: Mapping[str, Any], errors: Mapping[str, str]) -> None:
    found = errors.get(name, "")
    if name in results:
        metric, value = next(iter(results[name]["metrics"].items()))
        found = f"{metric} {value:.4f}, {results[name]['seconds']['total']:.0f} s"
    print(f"{len(results)} finished; {name}: {found}", flush=True)
