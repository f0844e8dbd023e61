"""What happens between the steps of a training run: masks, snapshots, the log file, the progress bar."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from contraprune.schedules import cubic
from contraprune.trainer import MaskedTrainer


class GradualPruning(TrainerCallback):
    """Sets the masks once per optimiser step, following the cubic density schedule.

    New masks are made right after the step, so that what is evaluated, saved or encoded between two steps is the
    model as it stands.

    Args:
        trainer: whose criterion ranks the weights; its masks may have been restored from a checkpoint.
        density: final fraction of weights kept.
        warmup: fraction of the run at density 1.
        cooldown: fraction of the run at the final density.
        frozen: fraction of the run, at its end, in which the masks stay as they are.
    """

    def __init__(
        self, trainer: MaskedTrainer, *, density: float, warmup: float, cooldown: float, frozen: float
    ) -> None:
        self.trainer = trainer
        self.density = density
        self.warmup = warmup
        self.cooldown = cooldown
        self.frozen = frozen

    def density_at(self, step: int, total: int) -> float:
        """The density after ``step`` of ``total`` optimiser steps."""
        return cubic(
            step,
            total,
            warmup_steps=1,
            initial=1.0,
            final=self.density,
            initial_warmup=round(self.warmup * total),
            final_warmup=round(self.cooldown * total),
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self.trainer.masks_restored:
            self._update(state)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.criterion.observe_gradients()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step <= (1 - self.frozen) * state.max_steps:
            self._update(state)

    def _update(self, state: TrainerState) -> None:
        density = self.density_at(state.global_step, state.max_steps)
        try:
            self.trainer.criterion.update_masks(density)
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


class Progress(ProgressCallback):
    """The stock progress bar, showing the current density and the last loss."""

    def __init__(self, density_at: Callable[[int, int], float] | None = None) -> None:
        super().__init__()
        self.density_at = density_at

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.training_bar is None or not logs:
            return
        shown: dict[str, str] = {key: f"{logs[key]:.3f}" for key in ("loss", "eval_loss") if key in logs}
        if self.density_at is not None:
            shown["density"] = f"{self.density_at(state.global_step, state.max_steps):.3f}"
        self.training_bar.set_postfix(shown)
