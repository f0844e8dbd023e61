"""What the engine has to know of a model: its sizes, and which of its tensors is what.

Sizes, matrices and positions come from ``contraprune.structure``; what differs between families beyond that is one
entry of ``FAMILIES``.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from contraprune.errors import UserError
from contraprune.structure import Layer, find_layers, skipped_token


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where an encoder of BERT's kind keeps its parts. Paths start at the base model or, as noted, at a layer."""

    type_embeddings: bool = True
    attention_norm: str = "attention.output.LayerNorm"  # from the layer
    ffn_norm: str = "output.LayerNorm"  # from the layer
    activation: str = "hidden_act"  # field of the configuration
    relative_bias: str | None = None  # embedding of relative distances: one bias per head, for all layers


FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("bert", "electra", "roberta", "xlm-roberta", "camembert"), Family()),
    "distilbert": Family(
        type_embeddings=False,
        attention_norm="sa_layer_norm",
        ffn_norm="output_layer_norm",
        activation="activation",
    ),
    "mpnet": Family(
        type_embeddings=False,
        attention_norm="attention.LayerNorm",
        relative_bias="encoder.relative_attention_bias",
    ),
}
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "tanh": "tanh",
}


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One encoder layer: sizes, and the names of its linear and norm modules within the model."""

    heads: int
    neurons: int
    queries: str
    keys: str
    values: str
    attention_output: str
    attention_norm: str
    ffn_input: str
    ffn_output: str
    ffn_norm: str
    kept_heads: tuple[int, ...] | None = None  # columns of the relative bias, where heads were removed


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """An encoder: embeddings, norm, optional projection, then layers that normalise after each residual sum."""

    hidden: int
    embedding: int  # width of the embeddings; differs from ``hidden`` where there is a projection
    head_size: int
    vocabulary: int
    positions: int
    types: int  # 0: none
    norm_eps: float
    activation: str
    first_position: int  # of a text
    padding_idx: int | None  # token that positions leave out; None: positions are column numbers
    word_embeddings: str
    position_embeddings: str
    type_embeddings: str | None
    embedding_norm: str
    projection: str | None
    relative_bias: str | None
    layers: tuple[LayerSpec, ...]

    def facts(self) -> dict[str, Any]:
        """What a file of the weights has to agree on with the configuration beside it, as JSON."""
        facts = asdict(self) | {"layers": [asdict(layer) for layer in self.layers]}
        for layer in facts["layers"]:
            layer["kept_heads"] = None if layer["kept_heads"] is None else list(layer["kept_heads"])
        return facts


def why_not(model: PreTrainedModel) -> str | None:
    """Why the engine does not run a model; None where it does."""
    config: Any = model.config
    family = FAMILIES.get(config.model_type)
    if family is None:
        return f"model_type {config.model_type!r}: the sparse engine runs {', '.join(sorted(FAMILIES))}"
    if getattr(config, "is_decoder", False):
        return "config.json: is_decoder: the sparse engine runs encoders only"
    for asked in ("output_hidden_states", "output_attentions"):
        if getattr(config, asked, False):
            return f"config.json: {asked}: the sparse engine gives last hidden states only"
    activation = getattr(config, family.activation)
    if activation not in ACTIVATIONS:
        return (
            f"config.json: {family.activation}: the sparse engine runs {', '.join(ACTIVATIONS)}, "
            f"found {activation!r:.40}"
        )
    return None


def describe(model: PreTrainedModel) -> EncoderSpec:
    """The encoder of a model, which may be on the meta device.

    Raises:
        UserError: the engine does not run it.
    """
    reason = why_not(model)
    if reason is not None:
        raise UserError(reason)
    config: Any = model.config
    family = FAMILIES[config.model_type]
    activation = getattr(config, family.activation)
    base = model.base_model
    prefix = next(f"{name}." if name else "" for name, module in model.named_modules() if module is base)
    word: Any = base.get_submodule("embeddings.word_embeddings")
    position: Any = base.get_submodule("embeddings.position_embeddings")
    kinds: Any = base.get_submodule("embeddings.token_type_embeddings") if family.type_embeddings else None
    norm: Any = base.get_submodule("embeddings.LayerNorm")
    padding_idx = skipped_token(config)
    layers = find_layers(model)
    return EncoderSpec(
        hidden=int(config.hidden_size),
        embedding=word.embedding_dim,
        head_size=layers[0].heads.head_size,
        vocabulary=word.num_embeddings,
        positions=position.num_embeddings,
        types=kinds.num_embeddings if kinds is not None else 0,
        norm_eps=float(norm.eps),
        activation=ACTIVATIONS[activation],
        first_position=0 if padding_idx is None else padding_idx + 1,
        padding_idx=padding_idx,
        word_embeddings=f"{prefix}embeddings.word_embeddings",
        position_embeddings=f"{prefix}embeddings.position_embeddings",
        type_embeddings=f"{prefix}embeddings.token_type_embeddings" if family.type_embeddings else None,
        embedding_norm=f"{prefix}embeddings.LayerNorm",
        projection=f"{prefix}embeddings_project" if hasattr(base, "embeddings_project") else None,
        relative_bias=f"{prefix}{family.relative_bias}" if family.relative_bias else None,
        layers=tuple(_layer(layer, family) for layer in layers),
    )


def _layer(layer: Layer, family: Family) -> LayerSpec:
    queries, keys, values = (projection.name for projection in layer.heads.producers)
    (ffn_input,) = (projection.name for projection in layer.neurons.producers)
    kept_heads = getattr(layer.heads.module, "kept_heads", None)
    return LayerSpec(
        heads=layer.heads.num_heads,
        neurons=layer.neurons.num_neurons,
        queries=queries,
        keys=keys,
        values=values,
        attention_output=layer.heads.consumer.name,
        attention_norm=f"{layer.name}.{family.attention_norm}",
        ffn_input=ffn_input,
        ffn_output=layer.neurons.consumer.name,
        ffn_norm=f"{layer.name}.{family.ffn_norm}",
        kept_heads=None if kept_heads is None else tuple(kept_heads),
    )


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Everything of a model that has to be stored, each shared tensor once, under its first name."""
    persistent = {
        f"{path}.{name}".removeprefix("."): buffer
        for path, module in model.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }
    return dict(model.named_parameters()) | persistent


def embedding_names(model: nn.Module) -> frozenset[str]:
    """Names of the weights of embeddings."""
    return frozenset(f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding))
