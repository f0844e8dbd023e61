"""Sentence representations of a whole data set: what fills the banks.

The representation is read off the model's own forward pass by a hook on its encoder, so the same reading serves
anchors (training, with gradients) and banks (eval mode, without), for every task head.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import datasets
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from contraprune.pooling import Pooling, pool


def readable(dataset: datasets.Dataset, model: PreTrainedModel) -> datasets.Dataset:
    """The data set without the tokenizer's columns that the model's forward pass does not take."""
    taken = {*inspect.signature(model.forward).parameters, "labels", "idx", "length"}
    return dataset.remove_columns([name for name in dataset.column_names if name not in taken])


class Reader:
    """Keeps the encoder output of a model's last forward pass and pools it on request.

    Args:
        model: any transformers model; read at ``model.base_model``.
        pooling: ``"cls"`` or ``"mean"``.
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
    logits: Float[Tensor, "batch classes"]


@torch.no_grad()
def encode(
    model: PreTrainedModel,
    reader: Reader,
    dataset: datasets.Dataset,
    *,
    collator: Callable[[list[dict[str, Any]]], Any],
    batch_size: int,
    accelerator: Accelerator,
    description: str,
    progress: bool,
) -> Iterator[Encoded]:
    """Runs ``model`` over ``dataset`` in eval mode and yields unit representations (float32) and logits.

    Batches are sorted by length, so there is hardly any padding; the ids (column ``idx``) say which row is which.
    Under data parallelism every process gets every row. The model's mode and the random state are left as found.
    """
    was_training = model.training
    model.eval()
    by_length = dataset.select(sorted(range(len(dataset)), key=dataset["length"].__getitem__, reverse=True))
    loader = DataLoader(
        by_length.remove_columns("length"),
        batch_size=batch_size,
        collate_fn=collator,
        generator=torch.Generator(),  # the loader draws a seed, not from the global stream
    )
    loader = accelerator.prepare(loader)
    for batch in tqdm(loader, desc=description, disable=not progress, leave=False):
        ids = batch.pop("idx")
        batch.pop("labels", None)
        with accelerator.autocast():
            logits = model(**batch).logits
        representations = F.normalize(reader.take(batch["attention_mask"]).float(), dim=-1)
        yield Encoded(*accelerator.gather_for_metrics((ids, representations, logits.float())))
    model.train(was_training)
