"""What Contrastive Pruning adds to a step of plain fine-tuning, and what it does not depend on.

    OMP_NUM_THREADS=1 python benchmarks/training.py --model MINILM --data_dir D/glue/sst2 --output FILE.json \\
        [--parts steps rows memory encoding] [--rounds 5] [--bf16 true] [any other flag of TrainingArguments]

``steps``: a whole step (batch of 32, masks, losses, optimiser) of movement pruning at density 0.1 with three sources,
3 snapshots, distillation and 4,096 extra examples, against a step of fine-tuning on the same batches; also without
masks, as in the stages of ``taylor``. For the model given and for BERT-base with random weights. Plain and masked steps
are also taken with torch's stock matrix products (contraprune/products.py), as training without contraprune has them.
With tokens and operations per second, and with --peak_tflops their share of what the card can do.
``rows``: the same step with banks of 10 thousand to 1 million examples, mapped from disk.
``memory``: what such a process holds, one for each size: memory of its own, and pages of files, which the system takes
back when it needs them (Linux).
``encoding``: filling a bank against nothing but the forward passes of the same batches with torch's stock products and
with ours, and against stock passes of batches in the order of the data.

Variants take turns in one process, over the same batches; a ratio is the median over all steps, each against the other
variant's with the same batch in the same round; in ``all_batches`` it is that of all batches together, as in an epoch.
On a CPU with one thread time is the processor's, which other work on the machine changes least; else it is wall time.
Freed memory is kept, as in every run of ``contraprune`` (--stock_allocator: it is not). Parts that FILE.json holds from
before stay in it.
"""

import argparse
import copy
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    HfArgumentParser,
    TrainerCallback,
)

from contraprune.allocator import keep_freed_memory
from contraprune.bank import Bank, RowFile, RowSpec
from contraprune.callbacks import GradualPruning
from contraprune.config import ContrastConfig, DataConfig, PruneArguments
from contraprune.criteria import CRITERIA
from contraprune.encoding import Reader, encode, features_of, readable
from contraprune.machine import describe
from contraprune.masking import mask_linears
from contraprune.products import fast_products, other_library_is_exact, stock_products
from contraprune.pruning_config import PruningConfig
from contraprune.saving import load_for_finetuning, load_tokenizer
from contraprune.structure import find_layers
from contraprune.tasks import Task, load_task
from contraprune.trainer import ContrastTrainer, Knowledge, MaskedTrainer, TaskTrainer

SNAPSHOTS = 3
STOCK = "stock_"  # the names of variants with torch's own choice of library begin so
PAIRS = (
    ("masked", "plain"),
    ("unmasked", "plain"),
    ("masked", f"{STOCK}plain"),
    (f"{STOCK}masked", f"{STOCK}plain"),
)
WARM_UP = 3  # steps of every block that do not count


def now() -> float:
    on_one_thread = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() if on_one_thread else time.perf_counter()


@dataclass
class StepTimes(TrainerCallback):
    """Seconds from the beginning of each step to that of the next: all that happens in between counts.

    Attributes:
        seconds: of each step, round after round; step i of every round has the same batch.
    """

    seconds: list[list[float]] = field(default_factory=list)
    started: list[float] = field(default_factory=list)

    def over(self, other: "StepTimes") -> float:
        """Of a batch like most."""
        pairs = zip(chain(*self.seconds), chain(*other.seconds), strict=True)
        return round(median(mine / theirs for mine, theirs in pairs), 3)

    def in_all_over(self, other: "StepTimes") -> float:
        """Of all batches together, each with the median of its rounds."""
        return round(self.in_all() / other.in_all(), 3)

    def in_all(self) -> float:
        return sum(median(rounds) for rounds in zip(*self.seconds, strict=True))

    def median(self) -> float:
        return median(chain(*self.seconds))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started.append(now())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(np.diff(self.started)[WARM_UP:].tolist())
        self.started.clear()


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A task and a model with everything a trainer needs."""

    model: Any
    tokenizer: Any
    task: Task
    dataset: Any
    arguments: PruneArguments
    folder: Path
    tokens: int | None = None  # every text padded to so many; None: each batch to its longest

    def options(self) -> dict[str, Any]:
        arguments = copy.copy(self.arguments)
        arguments.output_dir = str(self.folder / "unused")
        return {
            "model": copy.deepcopy(self.model),
            "args": arguments,
            "task": self.task,
            "train_dataset": self.dataset,
            "evaluation": {"validation": self.dataset},
            "processing_class": self.tokenizer,
            "data_collator": self.collator(),
        }

    def collator(self) -> Any:
        if self.tokens is None:
            return self.task.collator(self.tokenizer)
        return DataCollatorWithPadding(self.tokenizer, padding="max_length", max_length=self.tokens)

    def plain(self) -> TaskTrainer:
        return TaskTrainer(**self.options())

    def unmasked(self) -> ContrastTrainer:
        options = self.options()
        return ContrastTrainer(**options, **self.contrast(options["model"]))

    def masked(self, bank_rows: int | None = None) -> MaskedTrainer:
        options = self.options()
        contrast = self.contrast(options["model"], bank_rows)
        linears = mask_linears(
            {name: module for layer in find_layers(options["model"]) for name, module in layer.linears.items()},
            learn_scores=True,
        )
        config = PruningConfig(method="movement", density=0.1, prune_warmup=0, prune_cooldown=1, freeze_masks=0)
        criterion = CRITERIA["movement"](linears, config)
        criterion.start_from({name: linear.weight.detach() ** 2 for name, linear in linears.items()})
        trainer = MaskedTrainer(**options, **contrast, criterion=criterion)
        trainer.add_callback(GradualPruning(trainer, config))
        return trainer

    def contrast(self, model: Any, bank_rows: int | None = None) -> dict[str, Any]:
        """Settings, random banks and random teacher outputs."""
        rows = bank_rows or max(self.dataset["idx"]) + 1
        width, classes = model.config.hidden_size, torch.arange(rows) % 2
        files = [
            self.rows(f"{width}-{number}", rows, width, in_memory=bank_rows is None) for number in range(2 + SNAPSHOTS)
        ]
        return {
            "contrast": ContrastConfig().for_task(self.task),
            "knowledge": Knowledge(
                banks={
                    "pretrained": Bank(classes, files[:1]),
                    "finetuned": Bank(classes, files[1:2]),
                    "snapshots": Bank(classes, files[2:]),
                },
                teacher_outputs=self.rows("outputs", rows, 2, dtype="float32", in_memory=bank_rows is None),
                classes=classes,
            ),
            "reader": Reader(model, pooling="mean", use_pooler=False),
        }

    def rows(self, name: str, rows: int, width: int, *, in_memory: bool, dtype: Any = "float16") -> RowFile:
        path, spec = self.folder / f"{name}-{rows}", RowSpec(rows=rows, width=width, dtype=dtype)
        found = RowFile.open(path, spec, in_memory=in_memory, provenance={})
        if found is not None:
            return found
        file = RowFile.create(path, spec, in_memory=in_memory)
        for ids in torch.arange(rows).split(1 << 14):
            file.write(ids, F.normalize(torch.randn(len(ids), width), dim=-1))
        file.seal({})
        return file


def interleaved(trainers: dict[str, TaskTrainer], rounds: int) -> dict[str, StepTimes]:
    """Trains each for a block of steps, in turns; the batches are the same for all."""
    times = {name: StepTimes() for name in trainers}
    for name, trainer in trainers.items():
        trainer.add_callback(times[name])
    for trainer in trainers.values():  # until each has the memory it needs
        trainer.train()
    for of_variant in times.values():
        of_variant.seconds.clear()
    for _ in range(rounds):
        for name, trainer in trainers.items():
            gc.collect()
            with stock_products() if name.startswith(STOCK) else nullcontext():
                trainer.train()
    return times


def counted(collator: Any, tokens: list[int]) -> Any:
    """The collator, noting how many tokens each batch has, padding included."""

    def collate(rows: Any) -> Any:
        batch = collator(rows)
        tokens.append(batch["input_ids"].numel())
        return batch

    return collate


def operations(model: Any) -> int:
    """Multiplications and additions of a step for one token: each weight of the layers once forward, twice backward."""
    return 6 * sum(module.weight.numel() for layer in find_layers(model) for module in layer.linears.values())


def measure_steps(subject: Subject, rounds: int, peak_tflops: float | None) -> dict[str, Any]:
    trainers = {"plain": subject.plain(), "unmasked": subject.unmasked(), "masked": subject.masked()}
    trainers |= {f"{STOCK}plain": subject.plain(), f"{STOCK}masked": subject.masked()}
    of_batches: list[int] = []
    trainers["plain"].data_collator = counted(trainers["plain"].data_collator, of_batches)
    masked = trainers["masked"]
    assert isinstance(masked, MaskedTrainer)
    spent = timed_parts(masked)
    times = interleaved(trainers, rounds)
    medians = {name: of_variant.median() for name, of_variant in times.items()}
    tokens = median(of_batches)
    tflops = {name: tokens * operations(subject.model) / value / 1e12 for name, value in medians.items()}
    on_card = peak_tflops and {name: round(value / peak_tflops, 4) for name, value in tflops.items()}
    return {
        "tokens_of_a_step": tokens,
        "tokens_per_second": {name: round(tokens / value) for name, value in medians.items()},
        "tflops": {name: round(value, 3) for name, value in tflops.items()},
        "share_of_peak": on_card,
        "parameters": sum(p.numel() for p in trainers["plain"].model.parameters()),
        "seconds": {name: round(value, 4) for name, value in medians.items()},
        **{f"{mine}_over_{theirs}": times[mine].over(times[theirs]) for mine, theirs in PAIRS},
        "all_batches": {f"{mine}_over_{theirs}": times[mine].in_all_over(times[theirs]) for mine, theirs in PAIRS},
        "share_of_masked_step": {
            name: round(median(values) / medians["masked"], 4) for name, values in spent.items() if values
        },
        "batches_measured": len(times["plain"].seconds[0]),
        "rounds": len(times["plain"].seconds),
    }


def timed_parts(trainer: MaskedTrainer) -> dict[str, list[float]]:
    """Wraps the parts that plain fine-tuning lacks, so that their seconds are booked per call."""
    spent: dict[str, list[float]] = {}

    def book(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        seconds = spent.setdefault(name, [])

        def timed(*arguments: Any, **options: Any) -> Any:
            start = now()
            result = call(*arguments, **options)
            seconds.append(now() - start)
            return result

        return timed

    criterion = trainer.criterion
    criterion.update_masks = book("masks", criterion.update_masks)  # type: ignore[method-assign]
    trainer.training_loss = book("losses_forward", trainer.training_loss)  # type: ignore[method-assign]
    trainer.finish_gradients = book("gradients_of_masked_weights", trainer.finish_gradients)  # type: ignore[method-assign]
    return spent


def measure_rows(subject: Subject, rounds: int, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Steps with banks of several sizes; the examples of the batches are spread over the whole bank."""
    base = subject.dataset
    trainers = {}
    for size in sizes:
        spread = np.linspace(0, size - 1, len(base)).astype(int).tolist()
        dataset = base.remove_columns("idx").add_column("idx", spread)
        trainers[str(size)] = Subject(**{**vars(subject), "dataset": dataset}).masked(bank_rows=size)
    times = interleaved(trainers, rounds)
    first = times[str(sizes[0])]
    return [
        {
            "bank_rows": int(name),
            "seconds": round(of_size.median(), 4),
            "of_the_first": of_size.over(first),
        }
        for name, of_size in times.items()
    ]


def measure_memory(sizes: tuple[int, ...]) -> list[dict[str, int]]:
    """Megabytes at the end of some steps, each size in a fresh process with the flags of this one."""
    found = []
    for size in sizes:
        flags = ["--parts", "held", "--rows", str(size), "--models", "given"]
        shown = subprocess.check_output([sys.executable, *sys.argv, *flags], stderr=subprocess.DEVNULL, text=True)
        found.append({"bank_rows": size, **json.loads(shown.splitlines()[-1])})
    return found


def measure_held(subject: Subject, rows: int) -> None:
    measure_rows(subject, 1, (rows,))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    kinds = {"own_mb": "RssAnon", "of_files_mb": "RssFile"}
    print(json.dumps({name: int(status[kind].split()[0]) // 1024 for name, kind in kinds.items()}))


def measure_encoding(subject: Subject, rounds: int) -> dict[str, Any]:
    trainer = subject.plain()
    model = trainer.model.to(trainer.args.device)
    batch = trainer.args.per_device_eval_batch_size
    seconds: dict[str, list[float]] = {}

    def bank() -> None:
        reader = Reader(model, pooling="mean", use_pooler=False)
        spec = RowSpec(rows=len(subject.dataset), width=model.config.hidden_size)
        file = RowFile.create(subject.folder / "encoding", spec, in_memory=True)
        for encoded in encode(
            model,
            reader,
            subject.task,
            subject.dataset,
            collator=trainer.data_collator,
            batch_size=batch,
            accelerator=trainer.accelerator,
            description="",
            progress=False,
        ):
            file.write(encoded.ids, encoded.representations)
        file.seal({})
        reader.remove()

    def forward(order: list[int], products: Any) -> None:
        rows = subject.dataset.select(order).remove_columns("length")
        loader = torch.utils.data.DataLoader(rows, batch_size=batch, collate_fn=trainer.data_collator)
        model.eval()
        with torch.inference_mode(), trainer.accelerator.autocast(), products:
            for features in trainer.accelerator.prepare(loader):
                model(**features_of(features, subject.task.objective))

    lengths = subject.dataset["length"]
    by_length = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    runs = {
        "bank": bank,
        "forward": lambda: forward(by_length, fast_products(model)),
        "stock_forward": lambda: forward(by_length, stock_products()),
        "stock_in_order_of_the_data": lambda: forward(list(range(len(lengths))), stock_products()),
    }
    bank()  # so that the first one does not have the memory to find
    for _ in range(rounds):
        for name, run in runs.items():
            start = now()
            run()
            seconds.setdefault(name, []).append(now() - start)
    medians = {name: median(values) for name, values in seconds.items()}
    return {
        "examples": len(lengths),
        "seconds": {name: round(value, 3) for name, value in medians.items()},
        **{f"bank_over_{name}": round(medians["bank"] / medians[name], 3) for name in runs if name != "bank"},
    }


def subjects(options: argparse.Namespace, flags: list[str], folder: Path) -> dict[str, Subject]:
    """The model given, and BERT-base with random weights and the same tokenizer."""
    tokenizer = load_tokenizer(options.model)
    examples = options.examples
    data = DataConfig(task="sst2", data_dir=options.data_dir, max_train_samples=examples, max_eval_samples=8)
    task = load_task(**data.source(), seed=0)
    small, _ = load_for_finetuning(task.auto_class, options.model, **task.model_options())
    base = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **task.model_options()))
    quiet = ["--eval_strategy=no", "--save_strategy=no", "--disable_tqdm=true", "--report_to=none"]
    found = {}
    for name, model in ((options.name, small), ("bert-base, random", base)):
        steps = options.steps if model is small else options.base_steps
        values = [
            *quiet,
            f"--max_steps={steps + WARM_UP + 1}",
            f"--output_dir={folder}",
            "--num_train_epochs=1",
            "--learning_rate=1e-5",
            *flags,
        ]
        (arguments,) = HfArgumentParser((PruneArguments,)).parse_args_into_dataclasses(values)
        fitted = task.for_model(model.config, name)
        assert fitted.train is not None
        dataset = readable(fitted.encode(fitted.train, tokenizer, max_length=128), model, fitted.objective)
        found[name] = Subject(
            model=model, tokenizer=tokenizer, task=fitted, dataset=dataset, arguments=arguments, folder=folder
        )
    return found


def padded(subject: Subject, tokens: int) -> Subject:
    shorter = subject.dataset.filter(lambda length: length <= tokens, input_columns="length")
    return Subject(**{**vars(subject), "dataset": shorter, "tokens": tokens})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--name", default="MiniLM", help="what the model is called in the results")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--parts", nargs="+", default=["steps", "rows", "memory", "encoding"])
    parser.add_argument("--examples", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=8, help="measured steps of a block")
    parser.add_argument("--base_steps", type=int, default=3, help="the same for BERT-base")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--tokens", type=int, nargs="*", default=[40], help="the steps also at these lengths")
    parser.add_argument(
        "--peak_tflops", type=float, help="what the card can do in this precision: gives the share of it"
    )
    parser.add_argument("--stock_allocator", action="store_true")
    parser.add_argument("--models", nargs="+", default=["given", "base"], choices=["given", "base"])
    options, flags = parser.parse_known_args()
    kept = not options.stock_allocator and keep_freed_memory()
    result: dict[str, Any] = {
        "machine": describe(),
        "flags": flags,
        "freed_memory_is_kept": kept,
        "products_are_stock": not other_library_is_exact(),
    }
    with tempfile.TemporaryDirectory() as folder:
        found = subjects(options, flags, Path(folder))
        found = {
            name: found[name] for name, kind in zip(found, ("given", "base"), strict=True) if kind in options.models
        }
        first = next(iter(found.values()))
        if "steps" in options.parts:
            result["steps"] = [
                {
                    "model": name,
                    "tokens": tokens or "batch's longest",
                    **measure_steps(variant, options.rounds, options.peak_tflops),
                }
                for name, subject in found.items()
                for tokens in (None, *options.tokens)
                for variant in [subject if tokens is None else padded(subject, tokens)]
            ]
        if "rows" in options.parts:
            result["rows"] = measure_rows(first, options.rounds, tuple(options.rows))
        if "held" in options.parts:
            measure_held(first, options.rows[0])
            return
        if "memory" in options.parts:
            result["memory"] = measure_memory(tuple(options.rows))
        if "encoding" in options.parts:
            result["encoding"] = measure_encoding(first, max(1, options.rounds // 2))
    print(json.dumps(result, indent=2))
    if options.output:
        before = json.loads(options.output.read_text()) if options.output.exists() else {}
        options.output.write_text(json.dumps(before | result, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
