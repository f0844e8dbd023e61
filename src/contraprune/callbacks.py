"""What happens between the steps of a training run: masks, snapshots, the log file, progress."""

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from contraprune.errors import Interrupted
from contraprune.files import write_text
from contraprune.progress import Lines
from contraprune.pruning_config import PruningConfig
from contraprune.runs import Stopwatch
from contraprune.schedules import Moment
from contraprune.trainer import MaskedTrainer

_BOOKING = 10.0  # seconds of training that a run which is killed may lose count of


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
            raise self.trainer.divergence(state.global_step, str(error)) from error


class Snapshots(TrainerCallback):
    """Takes a snapshot of the model being pruned at the start of every epoch after the first (SnC).

    Args:
        take: called with the epoch (1, 2, ...), and whether it starts at this moment: encodes the training set with
            the masks of then, or after a resume reads back what was encoded.
    """

    def __init__(self, take: Callable[[int, bool], None]) -> None:
        self.take = take
        self.next_epoch = 1

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        epoch = int(state.epoch or 0)
        while self.next_epoch <= epoch:  # after a resume, the earlier ones are read back
            self.take(self.next_epoch, self.next_epoch == state.epoch)
            self.next_epoch += 1


class NoLastCheckpoint(TrainerCallback):
    """Saves no checkpoint after the last step, where the model itself is saved right after training."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps and not args.load_best_model_at_end:
            control.should_save = False

    on_epoch_end = on_step_end


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
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.is_file() else []
        write_text(self.path, "".join(line + "\n" for line in lines if self._stays(line, state.global_step)))

    def _stays(self, line: str, step: int) -> bool:
        try:
            entry = json.loads(line)
            mine = {key: entry[key] for key in ("stage",) if key in entry} == self.mark
            return not mine or 0 < entry["step"] <= step
        except (ValueError, LookupError, TypeError):  # a process that was killed left half a line
            return False

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


class Laps(TrainerCallback):
    """Books the seconds of training as they pass, so that those of a run that is killed count too."""

    def __init__(self, stopwatches: Sequence[Stopwatch]) -> None:
        self.stopwatches = stopwatches
        self._booked = time.monotonic()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if time.monotonic() - self._booked > _BOOKING:
            self.on_save(args, state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._booked = time.monotonic()
        for stopwatch in self.stopwatches:
            stopwatch.lap("train")


class Interruption(TrainerCallback):
    """Ctrl-C ends a training after the step it is in, with a checkpoint; a second one ends it at once."""

    def __init__(self) -> None:
        self._asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes Ctrl-C over while a training runs in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        earlier = signal.signal(signal.SIGINT, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, earlier)

    def _ask(self, number: int, frame: Any) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        print("\nstopping after this step; Ctrl-C once more stops at once", file=sys.stderr, flush=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_save |= self._asked

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._asked:
            raise Interrupted(f"state saved after step {state.global_step} of {state.max_steps}")


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
