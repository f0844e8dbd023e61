"""A transformers model whose layers differ in their numbers of attention heads and FFN neurons.

contraprune writes this file beside a model that it pruned, which then needs torch and transformers only:

    AutoModelForSequenceClassification.from_pretrained(PATH, trust_remote_code=True)
    pipeline("text-classification", model=PATH, trust_remote_code=True)

config.json describes the model of before pruning, and under the key "contraprune" what is left of each layer.
Every model class of transformers is to be had from this module under its own name: the stock class, made smaller
as soon as it is built. So this one file serves all architectures and tasks, and saving the model again copies it.
"""

from collections.abc import Mapping
from typing import Any

import transformers
from torch import Tensor, nn
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.pytorch_utils import Conv1D


def __getattr__(name: str) -> Any:
    stock: Any = None if name.startswith("_") else getattr(transformers, name, None)
    if not (isinstance(stock, type) and issubclass(stock, transformers.PreTrainedModel)):
        raise AttributeError(f"transformers has no model class {name!r}")

    class Pruned(stock):
        def __init__(self, config: Any, *inputs: Any, **options: Any) -> None:
            super().__init__(config, *inputs, **options)
            resize(self, config.contraprune)

    Pruned.__name__ = Pruned.__qualname__ = name  # pipelines and pickle look it up by name
    globals()[name] = Pruned
    return Pruned


def resize(model: Any, record: Mapping[str, Any]) -> None:
    """Gives a freshly built model the sizes in ``record``; its values are to be loaded afterwards."""
    for name, sizes in record["layers"].items():
        layer = model.base_model.get_submodule(name)
        for unit in ("heads", "neurons"):
            for side, role in enumerate(("produced_by", "consumed_by")):
                for path, share in record[unit][role].items():
                    _shorten(layer.get_submodule(path), side, sizes[unit] * share)
            for path, share in record[unit]["attributes"].items():
                module, _, attribute = path.rpartition(".")
                setattr(layer.get_submodule(module), attribute, sizes[unit] * share)
        if "kept_heads" in sizes:
            attention = layer.get_submodule(record["heads"]["module"])
            attention.__class__ = WITH_KEPT_HEADS[type(attention)]
            attention.kept_heads = sizes["kept_heads"]


def _shorten(linear: Any, side: int, count: int) -> None:
    """Leaves ``count`` output features (side 0) or input features (side 1) of a linear layer."""
    transposed = isinstance(linear, Conv1D)
    dim = 1 - side if transposed else side
    linear.weight = nn.Parameter(linear.weight.detach().narrow(dim, 0, count).clone())
    if side == 0 and linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[:count].clone())
    setattr(linear, ("nf", "nx")[side] if transposed else ("out_features", "in_features")[side], count)


class MPNetAttentionWithKeptHeads(MPNetSelfAttention):
    """Picks its heads out of the position bias that all layers share, which has those of before pruning."""

    kept_heads: list[int]

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor, position_bias: Tensor, **options: Any
    ) -> tuple[Tensor, ...]:
        own_bias = position_bias[:, self.kept_heads]
        return super().forward(hidden_states, attention_mask, own_bias, **options)


class T5AttentionWithKeptHeads(T5Attention):
    """As in MPNet; but here the first layer makes the bias and each hands it on, whole."""

    kept_heads: list[int]

    def forward(
        self, hidden_states: Tensor, mask: Tensor, position_bias: Tensor | None, **options: Any
    ) -> tuple[Tensor, ...]:
        if position_bias is None:
            length = hidden_states.shape[1]
            position_bias = self.compute_bias(length, length, device=hidden_states.device)
        own_bias = position_bias[:, self.kept_heads]
        output, _, weights = super().forward(hidden_states, mask, position_bias=own_bias, **options)
        return output, position_bias, weights


WITH_KEPT_HEADS: dict[Any, Any] = {
    MPNetSelfAttention: MPNetAttentionWithKeptHeads,
    T5Attention: T5AttentionWithKeptHeads,
}
