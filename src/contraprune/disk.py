"""The disk that a run will need, said before it takes hours to find out."""

import math
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from torch import nn
from transformers import TrainingArguments

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def checkpoint_bytes(model: nn.Module, *, scored_weights: int = 0, learned_scores: bool = False) -> int:
    """Weights, two numbers per trained one (Adam's), and for scored matrices a mask and learned scores.

    Args:
        scored_weights: in matrices that are pruned by weight.
        learned_scores: whether a score of each is trained too.
    """
    weights = sum(parameter.nbytes for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return weights + 8 * trained + scored_weights * (1 + 12 * learned_scores)


def steps(arguments: TrainingArguments, examples: int) -> tuple[int, int]:
    """Optimiser steps of an epoch, and of the whole training."""
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    of_epoch = max(1, math.ceil(examples / batch))
    total = arguments.max_steps if arguments.max_steps > 0 else math.ceil(arguments.num_train_epochs * of_epoch)
    return of_epoch, total


def most_checkpoints(arguments: TrainingArguments, examples: int) -> int:
    """How many checkpoints of one training are on disk at once: those that are kept, and the one being written."""
    steps_per_epoch, total = steps(arguments, examples)
    every = arguments.save_steps if arguments.save_steps >= 1 else max(1, math.ceil(arguments.save_steps * total))
    written = {"no": 1, "steps": total // int(every), "epoch": math.ceil(total / steps_per_epoch)}  # no: Ctrl-C's
    saves = max(1, written.get(arguments.save_strategy.value, total))
    return min(saves, (arguments.save_total_limit or saves) + 1)


def announce(needs: Mapping[Path, Mapping[str, int]]) -> None:
    """Says on standard error how many bytes go where at most, and whether there is room.

    Args:
        needs: directory -> what for -> bytes.
    """
    said = []
    for place, parts in needs.items():
        shown = ", ".join(f"{what} {readable(size)}" for what, size in parts.items() if size)
        free = shutil.disk_usage(_existing(place)).free
        total = sum(parts.values())
        there = sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) if place.is_dir() else 0
        scarce = " - NOT ENOUGH" if total - there > free else ""
        said.append(f"up to {readable(total)} in {place} ({shown}), where {readable(free)} are free{scarce}")
    print(f"disk: {'; '.join(said)}", file=sys.stderr, flush=True)


def readable(size: float) -> str:
    """A number of bytes with a unit that suits it."""
    unit = 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.0f} {_UNITS[unit]}" if unit < 2 or size >= 100 else f"{size:.1f} {_UNITS[unit]}"


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
