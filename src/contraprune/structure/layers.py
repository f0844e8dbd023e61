"""Records of a model's attention heads and FFN neurons, read off the model itself."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from contraprune.errors import UserError
from contraprune.structure.architectures import ARCHITECTURES, Architecture


@dataclass(frozen=True, kw_only=True)
class Projection:
    """A weight matrix and the share of it that belongs to one unit (a head or a neuron).

    Unit ``u`` of ``n`` owns the features ``b·n·size + u·size + (0 … size-1)`` of every block ``b``: output
    features if the matrix produces the unit, input features if it consumes it.
    """

    name: str  # dotted path from the model, as in ``named_modules``
    module: nn.Module  # nn.Linear, or transformers' Conv1D, whose weight is transposed
    size: int  # features of one unit in one block
    blocks: int = 1  # 3 where query, key and value are fused, 2 where an FFN's gate and up are

    def features(self, units: Int[Tensor, " kept"], num_units: int) -> Int[Tensor, " features"]:
        """Indices of the features that belong to ``units``, out of ``num_units``, in ascending order."""
        block = torch.arange(self.blocks, device=units.device)[:, None, None] * num_units * self.size
        within = torch.arange(self.size, device=units.device)
        return (block + units.sort().values[:, None] * self.size + within).flatten()


@dataclass(frozen=True, kw_only=True)
class HeadGroup:
    """The attention of one layer.

    A head is what can be removed on its own: with grouped-query attention a key-value head together with
    the ``queries_per_head`` query heads that read it. Gates, masks and importance scores have ``num_heads``
    entries.
    """

    name: str  # dotted path of the module that splits features into heads
    module: nn.Module = field(repr=False)
    num_heads: int
    head_size: int  # features of one query, key or value head
    queries_per_head: int
    producers: tuple[Projection, ...]  # query, key, value (or one fused matrix), position projections
    consumer: Projection  # the output projection
    attributes: dict[str, int]  # attributes of ``module`` that grow with the heads -> value per head
    shared_position_bias: bool  # all layers read one bias with an entry per head of the unpruned model
    may_be_empty: bool  # whether the model runs with no head left

    @property
    def num_units(self) -> int:
        """The number of heads: what ``NeuronGroup.num_units`` is for neurons."""
        return self.num_heads


@dataclass(frozen=True, kw_only=True)
class NeuronGroup:
    """The FFN of one layer."""

    name: str  # dotted path of the module that holds ``attributes``
    module: nn.Module = field(repr=False)
    num_neurons: int
    producers: tuple[Projection, ...]  # one matrix, gate and up, or both fused in one
    consumer: Projection
    attributes: dict[str, int]  # attributes of ``module`` that grow with the neurons -> value per neuron
    may_be_empty: bool  # whether the model runs with no neuron left

    @property
    def num_units(self) -> int:
        """The number of neurons: what ``HeadGroup.num_units`` is for heads."""
        return self.num_neurons


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer: a distinct set of parameters, even where the forward pass runs it several times (ALBERT)."""

    index: int
    name: str  # dotted path from the model
    heads: HeadGroup
    neurons: NeuronGroup

    @property
    def linears(self) -> dict[str, nn.Module]:
        """Dotted name -> every weight matrix of attention and FFN: what unstructured pruning scores."""
        groups = (self.heads, self.neurons)
        return {p.name: p.module for group in groups for p in (*group.producers, group.consumer)}


def find_layers(model: PreTrainedModel) -> list[Layer]:
    """The layers of a bare encoder or of any task model built on it, in order, with their present sizes.

    The records describe the model as it is now: after heads or neurons were removed, ask again.

    Raises:
        UserError: the architecture has no entry in ``ARCHITECTURES``.
    """
    architecture = ARCHITECTURES.get(model.config.model_type)
    if architecture is None:
        raise UserError(_unknown_architecture(model))
    base = model.base_model
    prefix = next(name for name, module in model.named_modules() if module is base)
    pattern = re.escape(architecture.layer).replace(r"\*", r"\d+")
    found = [(name, module) for name, module in base.named_modules() if re.fullmatch(pattern, name)]
    return [
        _describe(index, f"{prefix}.{name}".removeprefix("."), module, architecture)
        for index, (name, module) in enumerate(found)
    ]


def assert_same_model(model: nn.Module, layers: Sequence[Layer]) -> None:
    """Fails on records of another model, such as the original of a copy, which would be changed instead."""
    for layer in layers:
        for name, module in layer.linears.items():
            assert model.get_submodule(name) is module, f"{name} of these layers belongs to another model"


def in_features(linear: nn.Module) -> int:
    """Input features of an ``nn.Linear`` or of transformers' ``Conv1D``."""
    return int(linear.weight.shape[feature_dims(linear)[1]])  # type: ignore[index]


def feature_dims(linear: nn.Module) -> tuple[int, int]:
    """Which dimension of ``linear.weight`` holds (output features, input features)."""
    return (1, 0) if isinstance(linear, Conv1D) else (0, 1)


def _describe(index: int, name: str, layer: nn.Module, arch: Architecture) -> Layer:
    return Layer(
        index=index,
        name=name,
        heads=_describe_heads(name, layer, arch),
        neurons=_describe_neurons(name, layer, arch),
    )


def _describe_heads(name: str, layer: nn.Module, arch: Architecture) -> HeadGroup:
    attention = layer.get_submodule(arch.attention)
    head_size = int(getattr(attention, arch.head_size))
    queries = int(getattr(attention, "num_key_value_groups", 1))
    consumer = layer.get_submodule(arch.attention_output)
    return HeadGroup(
        name=f"{name}.{arch.attention}",
        module=attention,
        num_heads=in_features(consumer) // (queries * head_size),
        head_size=head_size,
        queries_per_head=queries,
        producers=tuple(
            Projection(
                name=f"{name}.{arch.attention}.{path}",
                module=attention.get_submodule(path),
                size=head_size * (queries if position == 0 else 1),
                blocks=arch.attention_blocks,
            )
            for position, path in enumerate(arch.queries_keys_values)
            if hasattr(attention, path)
        ),
        consumer=Projection(name=f"{name}.{arch.attention_output}", module=consumer, size=queries * head_size),
        attributes=dict.fromkeys(arch.head_counts, 1) | dict.fromkeys(arch.head_widths, head_size),
        shared_position_bias=arch.shared_position_bias,
        may_be_empty=arch.heads_may_be_empty,
    )


def _describe_neurons(name: str, layer: nn.Module, arch: Architecture) -> NeuronGroup:
    consumer = layer.get_submodule(arch.ffn_output)
    present = dict(layer.named_modules())
    return NeuronGroup(
        name=f"{name}.{arch.ffn}".removesuffix("."),
        module=present[arch.ffn],
        num_neurons=in_features(consumer),
        producers=tuple(
            Projection(name=f"{name}.{path}", module=present[path], size=1, blocks=arch.ffn_blocks)
            for path in arch.ffn_input
            if path in present
        ),
        consumer=Projection(name=f"{name}.{arch.ffn_output}", module=consumer, size=1),
        attributes=dict.fromkeys(arch.neuron_counts, 1),
        may_be_empty=arch.neurons_may_be_empty,
    )


def _unknown_architecture(model: PreTrainedModel) -> str:
    model_type, known = model.config.model_type, ", ".join(sorted(ARCHITECTURES))
    lists = "; ".join(_module_lists(model)) or "no list of layers"
    return (
        f"model_type {model_type!r}: expected one of {known}; found {lists}; to add it, set "
        f"contraprune.structure.ARCHITECTURES[{model_type!r}] = Architecture(layer=..., attention=..., ...) "
        "with these names"
    )


def _module_lists(model: nn.Module) -> Iterator[str]:
    """One phrase for each outermost list of at least two modules of one class that hold linears."""
    seen: list[str] = []
    for name, module in model.named_modules():
        inside_another = any(name.startswith(f"{outer}.") for outer in seen)
        if inside_another or not isinstance(module, nn.ModuleList) or len({type(m) for m in module}) != 1:
            continue
        linears = [n for n, m in module[0].named_modules() if isinstance(m, nn.Linear | Conv1D)]
        if len(module) > 1 and linears:
            seen.append(name)
            yield f"{len(module)} x {type(module[0]).__name__} in {name} with linears {', '.join(linears)}"
