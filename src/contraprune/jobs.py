"""What both jobs share: the task, the run directory, the trainer's set-up, and the results."""

import copy
import dataclasses
import datetime
import importlib.metadata
import platform
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from accelerate.utils import broadcast_object_list, gather_object
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback

from contraprune.callbacks import Interruption, Laps, LogFile, Progress, ProgressLines
from contraprune.config import SHOWN_TRAINING_FIELDS, DataConfig, FinetuneArguments, RunConfig
from contraprune.disk import announce, most_checkpoints
from contraprune.encoding import readable
from contraprune.errors import UserError
from contraprune.failures import TRAINING, explained
from contraprune.files import check, sealed
from contraprune.prediction import Evaluation, evaluate
from contraprune.progress import draws_bars
from contraprune.runs import RunDirectory, Stopwatch
from contraprune.saving import load_pretrained, save_model
from contraprune.tasks import Task
from contraprune.trainer import TaskTrainer

NOT_IDENTITY = frozenset(
    ("output_dir", "overwrite", "cache_dir", "disable_tqdm", "report_to", "logging_steps", "save_strategy",
     "save_steps", "save_total_limit", "eval_strategy", "resume_from_checkpoint", "per_device_eval_batch_size",
     "bank_memory_gb", "run_name", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision")
)  # fmt: skip
"""Settings that may differ when a run is taken up again: they say how it reports and saves, not what it computes."""


_NOTHING_TO_LEARN = (
    "there is nothing to fine-tune on, its only targets are a teacher's: prune a sentence encoder as it is, with "
    "--teacher and --model both naming it"
)


@dataclass(kw_only=True)
class Job:
    """One run: fine-tuning or pruning of one task's data into one directory."""

    task: Task
    max_length: int
    arguments: TrainingArguments
    directory: RunDirectory
    finished: bool
    stopwatch: Stopwatch
    _train: datasets.Dataset | None = None
    _evaluation: dict[str, datasets.Dataset] = field(default_factory=dict)
    _collator: Any = None

    @classmethod
    def start(
        cls, command: str, task: Task, run: RunConfig, settings: tuple[Any, ...], arguments: FinetuneArguments
    ) -> "Job":
        """Claims the run directory.

        Args:
            settings: as they are to be recorded, those of the data first.

        Raises:
            UserError: a setting means nothing for the task, or the directory holds something else.
        """
        data: DataConfig = settings[0]
        assert data.max_length is not None, "for_task() comes first"
        check_smoothing(task, arguments)
        if command == "finetune" and not task.objective.targets:
            raise UserError(f"--task_type {data.task_type}: {_NOTHING_TO_LEARN}")
        directory = RunDirectory(arguments.output_dir or "")
        resolved = resolved_options((run, *settings), arguments)
        record = {"command": command, "data": task.fingerprint, **_environment()}
        status: list[Any] = [None]
        if arguments.process_index == 0:
            defaults = {
                setting.name: _default(setting) for part in (run, *settings) for setting in dataclasses.fields(part)
            }
            identity = {name: defaults.get(name) for name in resolved if name not in NOT_IDENTITY}
            status = [directory.claim(resolved, record, identity=identity, overwrite=run.overwrite)]
        broadcast_object_list(status)
        main = arguments.process_index == 0
        return cls(
            task=task,
            max_length=data.max_length,
            arguments=arguments,
            directory=directory,
            finished=status[0] == "finished",
            stopwatch=Stopwatch(directory.seconds, write=main and status[0] != "finished"),
        )

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        self.directory.release()

    @property
    def main(self) -> bool:
        """Whether this process writes the results."""
        return self.arguments.process_index == 0

    @property
    def keeps_banks(self) -> bool:
        """Whether this process writes banks: the main one, or with ``--save_on_each_node`` the first of every node."""
        return bool(self.arguments.should_save)

    @property
    def progress(self) -> bool:
        return self.main and not self.arguments.disable_tqdm

    def lap(self, name: str) -> None:
        """Books the seconds since the last lap under ``name``, to those of earlier starts."""
        self.stopwatch.lap(name)

    def agree(self, found: Any, what: str) -> None:
        """Asks whether all processes have found the same in the run directory.

        Raises:
            UserError: they have not: it is another one on another node.
        """
        everywhere = gather_object([found])
        if any(other != everywhere[0] for other in everywhere):
            raise UserError(
                f"--output_dir {self.directory.path}: not every process finds the same {what} there; an interrupted "
                "run continues where all nodes share the directory: elsewhere begin anew, with --overwrite"
            )

    def trainer_options(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, stage: str = ""
    ) -> dict[str, Any]:
        """Keyword arguments of ``transformers.Trainer``: encoded data, collator, metrics.

        Args:
            stage: the sub-folder for its checkpoints, where a run trains several times.
        """
        assert self._train is not None, "encode_for() comes first"
        return {
            "model": model,
            "args": _trainer_arguments(self.arguments, self.directory.checkpoints / stage),
            "task": self.task,
            "train_dataset": self._train,
            "evaluation": self._evaluation,
            "processing_class": tokenizer,
            "data_collator": self._collator,
        }

    def encode_for(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        """Encodes the data for a model and all that share its tokenizer and labels.

        Raises:
            UserError: the model, ``name`` in messages, was made for something else.
        """
        self.task = task = self.task.for_model(model.config, name)
        assert task.train is not None
        encoded = task.encode(task.train, tokenizer, max_length=self.max_length)
        self._train = readable(encoded, model, task.objective)
        self._evaluation = {
            split: task.encode(rows, tokenizer, max_length=self.max_length) for split, rows in task.evaluation.items()
        }
        self._collator = task.collator(tokenizer)

    def announce_disk(
        self, model: PreTrainedModel, *, checkpoint: int, copies: int = 1, more: Mapping[Path, Mapping[str, int]] = {}
    ) -> None:
        """Says how much disk the run will need at most.

        Args:
            checkpoint: bytes of one.
            copies: saved models that are there at once.
            more: what else goes where.
        """
        assert self._train is not None, "encode_for() comes first"
        model_bytes = sum(parameter.nbytes for parameter in model.parameters())
        own = {
            "checkpoints": checkpoint * most_checkpoints(self.arguments, len(self._train)),
            "model": model_bytes * copies,
        }
        needs = {self.directory.path: own | dict(more.get(self.directory.path, {}))}
        if self.main:
            announce(needs | {place: parts for place, parts in more.items() if place != self.directory.path})

    def train(
        self,
        trainer: TaskTrainer,
        *,
        density: Callable[[], float] | None = None,
        stage: str = "",
        stopwatches: Sequence[Stopwatch] = (),
    ) -> None:
        """Trains to the end, from the last checkpoint of this directory (and stage) if there is one.

        Args:
            stopwatches: book the seconds of training too.

        Raises:
            UserError: it diverged, memory or the disk ran out, or the checkpoint is damaged.
        """
        trainer.pop_callback(ProgressCallback)
        trainer.pop_callback(PrinterCallback)
        if self.progress:
            description = f"{stage or 'training'}, steps"
            trainer.add_callback(Progress(density) if draws_bars() else ProgressLines(description, density))
        trainer.add_callback(LogFile(self.directory.log, stage))
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
                callback.logging_dir = str(self.directory.tensorboard / stage)  # its default is among the checkpoints
        watches = (self.stopwatch, *stopwatches)
        trainer.add_callback(Laps(watches))
        checkpoint = _checked(self.arguments.resume_from_checkpoint) or self.directory.last_checkpoint(stage)
        self.agree(checkpoint and Path(checkpoint).name, "checkpoint")
        interruption = Interruption()
        with explained(self.directory.path, TRAINING), ExitStack() as stack:
            if self.arguments.world_size == 1:  # several would have to agree on the step
                trainer.add_callback(interruption)
                stack.enter_context(interruption.listening())
            trainer.train(resume_from_checkpoint=checkpoint)
        trainer.refuse_divergence()
        for stopwatch in watches:
            stopwatch.lap("train")

    def evaluate(self, model: PreTrainedModel) -> Evaluation:
        return evaluate(
            model,
            self.task,
            self._evaluation,
            self._collator,
            batch_size=self.arguments.per_device_eval_batch_size,
            progress=self.progress,
        )

    def save(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Evaluation:
        """Saves the model, then reads it back and evaluates what was saved."""
        saved = model
        if self.main:
            save_model(model, tokenizer, self.directory.model, files=self.task.files())
            saved = load_pretrained(self.task.auto_class, str(self.directory.model))
        evaluation = self.evaluate(saved.to(self.arguments.device))
        self.lap("evaluate")
        return evaluation

    def finish(self, results: dict[str, Any]) -> dict[str, Any]:
        """Writes results.json, which marks the run finished, and removes what only a running run needs."""
        seconds = {name: round(value, 2) for name, value in self.stopwatch.seconds.items()}
        seconds["total"] = round(sum(seconds.values()), 2)
        examples = {split: len(rows) for split, rows in (("train", self._train), *self._evaluation.items()) if rows}
        results = {"task": self.task.name, **results, "examples": examples}
        results |= {"seconds": seconds, "seed": self.arguments.seed}
        if self.main:
            self.directory.finish(results)
        elif self.keeps_banks:
            shutil.rmtree(self.directory.banks, ignore_errors=True)
        return results


def check_smoothing(task: Task, arguments: TrainingArguments) -> None:
    """Refuses ``label_smoothing_factor`` where labels cannot be smoothed.

    Raises:
        UserError: the task has no classes.
    """
    smoothing = arguments.label_smoothing_factor
    if smoothing and not task.objective.smooths_labels:
        raise UserError(f"--label_smoothing_factor {smoothing}: only for tasks with classes, not for {task.name}")


def _checked(checkpoint: str | None) -> str | None:
    """``--resume_from_checkpoint``, if it is what a run wrote."""
    if checkpoint is not None:
        if not sealed(Path(checkpoint)):
            found = "another folder" if Path(checkpoint).is_dir() else "none"
            raise UserError(f"--resume_from_checkpoint {checkpoint}: expected a whole checkpoint, found {found}")
        check(Path(checkpoint), "choose another checkpoint")
    return checkpoint


def resolved_options(settings: Iterable[Any], arguments: TrainingArguments) -> dict[str, Any]:
    """Every setting that config.yaml records: all of ours, and those of the training loop that were chosen."""
    ours = {f.name: getattr(part, f.name) for part in settings for f in dataclasses.fields(part)}
    stock = {f.name: f.default for f in dataclasses.fields(TrainingArguments)}
    usual = {f.name: _default(f) for f in dataclasses.fields(arguments)}  # which differ, of some
    chosen = {
        name: value
        for name, value in arguments.to_dict().items()
        if name in SHOWN_TRAINING_FIELDS
        or (name in stock and not stock[name] == usual[name] == value and _plain(value) and not name.endswith("_token"))
    }
    return ours | chosen


def _default(setting: "dataclasses.Field[Any]") -> Any:
    return setting.default if setting.default_factory is dataclasses.MISSING else setting.default_factory()


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _environment() -> dict[str, Any]:
    packages = ("contraprune", "torch", "transformers", "accelerate", "datasets", "numpy")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def _trainer_arguments(arguments: TrainingArguments, folder: Path) -> TrainingArguments:
    """The same arguments with checkpoints in a folder of their own, which are not pushed to the hub."""
    changed = copy.copy(arguments)
    changed.output_dir = str(folder)
    changed.push_to_hub = False
    return changed
