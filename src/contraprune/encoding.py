"""Sentence representations of a whole data set: what fills the banks.

The representation is read off the model's own forward pass by a hook on its encoder, so the same reading serves
anchors (training, with gradients) and banks (eval mode, without), for every task head.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from contraprune.objectives import Objective
from contraprune.pooling import Pooling, pool
from contraprune.products import fast_products
from contraprune.progress import progress as tracked
from contraprune.tasks import Task


def readable(dataset: datasets.Dataset, model: PreTrainedModel, objective: Objective) -> datasets.Dataset:
    """The data set with only what the model's forward pass takes, the targets, ``idx`` and ``length``."""
    taken = {*inspect.signature(model.forward).parameters, *objective.targets, "idx", "length"}
    return dataset.remove_columns([name for name in dataset.column_names if name not in taken])


def features_of(batch: Mapping[str, Tensor], objective: Objective) -> dict[str, Tensor]:
    """What of a batch the model reads."""
    return {name: value for name, value in batch.items() if name not in (*objective.targets, "idx")}


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Indices from the longest text to the shortest, so that batches cut from them have little padding."""
    return sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)


def pack_tokens(
    outputs: Float[Tensor, "batch length width"], attention_mask: Int[Tensor, "batch length"], *, tokens: int
) -> Float[Tensor, "batch columns"]:
    """Outputs per token as rows of one length: those of real tokens first, then zeros up to ``tokens`` of them."""
    packed = outputs.new_zeros(len(outputs), tokens, outputs.shape[-1])
    real = attention_mask.bool()
    packed[_leading(real.sum(dim=1), tokens)] = outputs[real]
    return packed.flatten(1)


def unpack_tokens(
    rows: Float[Tensor, "batch columns"], attention_mask: Int[Tensor, "batch length"], *, width: int
) -> Float[Tensor, "batch length width"]:
    """The inverse of :func:`pack_tokens`, with zeros at padding."""
    packed = rows.unflatten(1, (-1, width))
    outputs = packed.new_zeros(*attention_mask.shape, width)
    real = attention_mask.bool()
    outputs[real] = packed[_leading(real.sum(dim=1), packed.shape[1])]
    return outputs


def _leading(counts: Int[Tensor, " batch"], length: int) -> Bool[Tensor, "batch length"]:
    return torch.arange(length, device=counts.device) < counts.unsqueeze(1)


class Reader:
    """Keeps the encoder output of a model's last forward pass and pools it on request.

    Args:
        model: any transformers model; read at ``model.base_model``.
        pooling: see :func:`contraprune.pooling.pool`.
        use_pooler: with ``"cls"``, take the pooler output where the model has one.
    """

    def __init__(self, model: PreTrainedModel, *, pooling: Pooling, use_pooler: bool) -> None:
        self.pooling = pooling
        self.use_pooler = use_pooler
        self._output: Any = None
        self._handle = model.base_model.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._output = output

    def take(self, attention_mask: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        """The representation of the last forward pass, not normalised; can be taken once."""
        output, self._output = self._output, None
        pooler_output = getattr(output, "pooler_output", None) if self.use_pooler else None
        return pool(output.last_hidden_state, attention_mask, pooling=self.pooling, pooler_output=pooler_output)

    def remove(self) -> None:
        self._handle.remove()


class Encoded(NamedTuple):
    """One batch of a pass over a data set."""

    ids: Int[Tensor, " batch"]
    representations: Float[Tensor, "batch dim"]
    outputs: Float[Tensor, "batch width"]


@torch.no_grad()
def encode(
    model: PreTrainedModel,
    reader: Reader,
    task: Task,
    dataset: datasets.Dataset,
    *,
    collator: Callable[[list[dict[str, Any]]], Any],
    batch_size: int,
    accelerator: Accelerator,
    description: str,
    progress: bool,
) -> Iterator[Encoded]:
    """Runs ``model`` over ``dataset`` in eval mode and yields unit representations (float32) and outputs.

    Outputs per token are packed to rows as long as the longest text needs (:func:`pack_tokens`). Batches are sorted
    by length, so there is hardly any padding; the ids (column ``idx``) say which row is which.
    Under data parallelism every process gets every row. The model's mode and the random state are left as found.
    """
    was_training = model.training
    model.eval()
    lengths = dataset["length"]
    by_length = dataset.select(longest_first(lengths))
    loader = DataLoader(
        by_length.remove_columns("length"),
        batch_size=batch_size,
        collate_fn=collator,
        generator=torch.Generator(),  # the loader draws a seed, not from the global stream
    )
    loader = accelerator.prepare(loader)
    longest = max(lengths)
    with fast_products(model):
        for batch in tracked(loader, description, show=progress):
            features = features_of(batch, task.objective)
            with accelerator.autocast():
                outputs = task.outputs(model(**features), features)
            mask = features["attention_mask"]
            representations = F.normalize(reader.take(mask).float(), dim=-1)
            if task.objective.per_token:
                outputs = pack_tokens(outputs, mask, tokens=longest)
            yield Encoded(*accelerator.gather_for_metrics((batch["idx"], representations, outputs)))
    model.train(was_training)
