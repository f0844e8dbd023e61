"""Fills the banks: one pass of a model over the training set each, kept for later runs where it can be."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from filelock import FileLock
from torch import nn
from transformers import PreTrainedModel

from contraprune.bank import DType, RowFile, RowSpec
from contraprune.config import ContrastConfig
from contraprune.encoding import Reader, encode, features_of
from contraprune.errors import UserError
from contraprune.objectives import Objective
from contraprune.pooling import Pooling
from contraprune.tasks import Task

Collator = Callable[[list[dict[str, Any]]], Any]
OUTPUTS: DType = "float32"


def cache_directory(asked: str | None) -> Path:
    """``--cache_dir``, else ``$XDG_CACHE_HOME/contraprune``, else ``~/.cache/contraprune``."""
    if asked is not None:
        return Path(asked)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "contraprune"


def model_fingerprint(model: nn.Module, *, pooler: bool = True) -> str:
    """SHA-256 (hex) of the names, types and values of every weight and buffer of a model, and its class.

    Args:
        pooler: whether the weights of its pooler count.
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in sorted(model.state_dict().items()):
        if not pooler and "pooler" in name.split("."):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def encoded_fingerprint(dataset: datasets.Dataset, objective: Objective) -> str:
    """SHA-256 (hex) of what a model reads of an encoded data set: its tokens, rows in order."""
    columns = [name for name in dataset.column_names if name not in (*objective.targets, "idx", "length")]
    digest = hashlib.sha256(json.dumps(columns).encode())
    for batch in dataset.with_format("arrow").iter(10_000):
        for column in columns:
            values = batch[column].combine_chunks()
            digest.update(np.ascontiguousarray(values.value_lengths().to_numpy()).data)
            digest.update(np.ascontiguousarray(values.flatten().to_numpy()).data)
    return digest.hexdigest()


def output_width(model: PreTrainedModel, task: Task, dataset: datasets.Dataset, collator: Collator) -> int:
    """Numbers that a task's outputs have for a row of the data set, encoded for ``model``."""
    row = collator([dataset.remove_columns("length")[0]])
    features = {name: value.to(model.device) for name, value in features_of(row, task.objective).items()}
    was_training = model.training
    with torch.no_grad():
        outputs = task.outputs(model.eval()(**features), features)
    model.train(was_training)
    return outputs.shape[-1] * (max(dataset["length"]) if task.objective.per_token else 1)


@dataclass(frozen=True, kw_only=True)
class SourceBuilder:
    """Encodes one training set with any model, into files that are reused when they are there.

    Attributes:
        dataset: the encoded training set.
        pooling, use_pooler: how representations are made (see ``Reader``).
        in_memory: which files to hold in memory (``"representations"``, ``"outputs"``); others are memory-mapped.
        writes: whether this process writes the files; the others read them.
        on_each_node: every node has files of its own.
    """

    task: Task
    dataset: datasets.Dataset
    config: ContrastConfig
    pooling: Pooling
    use_pooler: bool
    in_memory: frozenset[str]
    collator: Collator
    batch_size: int
    accelerator: Accelerator
    writes: bool
    on_each_node: bool
    progress: bool

    def cached(
        self, model: PreTrainedModel, cache: Path, description: str, *, with_outputs: bool
    ) -> tuple[RowFile, RowFile | None]:
        """Representations of a fixed model, and its outputs if asked for, from the cache if computed before.

        What was computed is named by the weights it depends on, the tokens the model read and how it was pooled; an
        edited model or data set is therefore never answered from the cache. Without outputs the head does not count:
        that of a pre-trained model is new, and differs from seed to seed. Of several runs that want the same thing
        at once, one computes it and the others wait.
        """
        if with_outputs:
            depends_on = {
                "model": model_fingerprint(model),
                "outputs": f"{type(self.task).__name__} {self.task.label_order}",
            }
        else:
            depends_on = {"encoder": model_fingerprint(model.base_model, pooler=self.use_pooler)}
        provenance = depends_on | {
            "tokens": encoded_fingerprint(self.dataset, self.task.objective),
            "pooling": f"{self.pooling}{'+pooler' if self.use_pooler else ''}",
            "precision": str(self.accelerator.mixed_precision),
        }
        key = hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()[:20]
        reader = Reader(model, pooling=self.pooling, use_pooler=self.use_pooler)
        width = output_width(model, self.task, self.dataset, self.collator) if with_outputs else None
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{key}.lock") if self.writes else nullcontext():
            found = self.encode(model, reader, cache / key, provenance, description, outputs=width)
        reader.remove()
        return found

    def encode(
        self,
        model: PreTrainedModel,
        reader: Reader,
        path: Path,
        provenance: dict[str, Any],
        description: str,
        *,
        outputs: int | None = None,
        again: bool = True,
    ) -> tuple[RowFile, RowFile | None]:
        """Representations, and outputs if their width is given, read from ``path`` or computed to it.

        Args:
            again: whether ``model`` is still the one to compute them with, if they cannot be read.

        Raises:
            UserError: the files at ``path`` are damaged, or missing where it is not.
        """
        advice = "delete it to rebuild" if again else "the model that it is of is gone; use --overwrite to start again"
        rows = len(self.dataset)
        specs = {
            "representations": RowSpec(rows=rows, width=int(model.config.hidden_size), dtype=self.config.bank_dtype)
        }
        if outputs is not None:
            specs["outputs"] = RowSpec(rows=rows, width=outputs, dtype=OUTPUTS)
        accelerator = self.accelerator
        first = accelerator.local_main_process_first if self.on_each_node else accelerator.main_process_first
        with first():  # the others find what the first process made
            files = {
                name: RowFile.open(
                    path / name, spec, in_memory=name in self.in_memory, provenance=provenance, advice=advice
                )
                for name, spec in specs.items()
            }
        missing = torch.tensor(any(file is None for file in files.values()), dtype=torch.int, device=accelerator.device)
        if accelerator.reduce(missing, "sum"):  # on any node: all take part in the encoding
            if not again:
                raise UserError(f"{path}: {description} is missing; {advice}")
            files = self._compute(model, reader, path, specs, provenance, description)
        return files["representations"], files.get("outputs")  # type: ignore[return-value]

    def _compute(
        self,
        model: PreTrainedModel,
        reader: Reader,
        path: Path,
        specs: dict[str, RowSpec],
        provenance: dict[str, Any],
        description: str,
    ) -> dict[str, RowFile | None]:
        made = {
            name: RowFile.create(path / name, spec, in_memory=name in self.in_memory)
            for name, spec in specs.items()
            if self.writes
        }
        passes = encode(
            model,
            reader,
            self.task,
            self.dataset,
            collator=self.collator,
            batch_size=self.batch_size,
            accelerator=self.accelerator,
            description=description,
            progress=self.progress,
        )
        for batch in passes:
            for name, file in made.items():
                file.write(batch.ids, getattr(batch, name))
        for file in made.values():
            file.seal(provenance)
        self.accelerator.wait_for_everyone()
        if self.writes:
            return dict(made)
        return {
            name: RowFile.open(path / name, spec, in_memory=name in self.in_memory, provenance=provenance)
            for name, spec in specs.items()
        }
