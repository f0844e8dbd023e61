"""What happens between the steps of a training run: masks, snapshots, the log file, progress."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from contraprune.progress import Lines
from contraprune.pruning_config import PruningConfig
from contraprune.schedules import Moment
from contraprune.trainer import MaskedTrainer


class GradualPruning(TrainerCallback):
    """Has the criterion set the masks once per optimiser step, until they freeze.

    New masks are made right after the step, so that what is evaluated, saved or encoded between two steps is the
    model as it stands.

    Args:
        trainer: whose criterion makes the masks; they may have been restored from a checkpoint.
        config: when the schedules start and end, and when the masks freeze.
    """

    def __init__(self, trainer: MaskedTrainer, config: PruningConfig) -> None:
        self.trainer = trainer
        self.config = config

    def moment(self, step: int, total: int) -> Moment:
        """Where the run stands after ``step`` of ``total`` optimiser steps."""
        return Moment(
            step=step,
            total=total,
            warmup=round(self.config.prune_warmup * total),
            cooldown=round(self.config.prune_cooldown * total),
            last=step >= self._last_update(total),
        )

    def _last_update(self, total: int) -> int:
        return math.floor((1 - self.config.freeze_masks) * total)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self.trainer.masks_restored:
            self._update(state)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.finish_gradients()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step <= self._last_update(state.max_steps):
            self._update(state)

    def _update(self, state: TrainerState) -> None:
        try:
            self.trainer.criterion.update_masks(self.moment(state.global_step, state.max_steps))
        except ValueError as error:  # scores that are NaN: the step before went wrong
            raise self.trainer.divergence(self.trainer.mean_parts()) from error


class Snapshots(TrainerCallback):
    """Takes a snapshot of the model being pruned at the start of every epoch after the first (SnC).

    Args:
        take: called with the epoch (1, 2, ...); encodes the training set with the masks of that moment.
    """

    def __init__(self, take: Callable[[int], None]) -> None:
        self.take = take
        self.next_epoch = 1

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        epoch = int(state.epoch or 0)
        while self.next_epoch <= epoch:  # after a resume, the earlier ones are read back
            self.take(self.next_epoch)
            self.next_epoch += 1


class LogFile(TrainerCallback):
    """Appends everything the trainer logs to ``log.jsonl``; a resumed run drops what comes after its checkpoint.

    Args:
        stage: marks the lines of one training among several in the same file.
    """

    def __init__(self, path: Path, stage: str = "") -> None:
        self.path = path
        self.mark = {"stage": stage} if stage else {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        kept = [line for line in lines if self._is_before(json.loads(line), state.global_step)]
        self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def _is_before(self, entry: dict[str, Any], step: int) -> bool:
        mine = {key: entry[key] for key in ("stage",) if key in entry} == self.mark
        return not mine or 0 < entry["step"] <= step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**self.mark, "step": state.global_step, **(logs or {})}) + "\n")


class _Facts:
    """What progress says beside the steps: the last loss and, where there are masks, their density."""

    def __init__(self, density: Callable[[], float] | None) -> None:
        self.density = density
        self.shown: dict[str, str] = {}

    def update(self, logs: dict[str, float]) -> dict[str, str]:
        self.shown |= {key: f"{logs[key]:.3f}" for key in ("loss", "eval_loss") if key in logs}
        if self.density is not None:
            self.shown["density"] = f"{self.density():.3f}"
        return self.shown


class Progress(ProgressCallback):
    """The stock progress bar, showing the last loss and, where there are masks, their density."""

    def __init__(self, density: Callable[[], float] | None = None) -> None:
        super().__init__()
        self.facts = _Facts(density)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.training_bar is not None and logs:
            self.training_bar.set_postfix(self.facts.update(logs))


class ProgressLines(TrainerCallback):
    """The same where no bar can be drawn: lines in a log.

    Args:
        description: what is trained.
    """

    def __init__(self, description: str, density: Callable[[], float] | None = None) -> None:
        self.description = description
        self.facts = _Facts(density)
        self.lines: Lines | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.lines = Lines(self.description, state.max_steps, done=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self.lines is not None
        self.lines.step(state.global_step, ", ".join(f"{name} {value}" for name, value in self.facts.shown.items()))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self.facts.update(logs or {})
