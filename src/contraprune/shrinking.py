"""Physical removal of attention heads and FFN neurons, and rebuilding a model that was shrunk.

Up to rounding, the shrunk model computes what the model with these heads and neurons gated to zero computes.
Its parameters stay the same ``nn.Parameter`` objects under the same names, only smaller.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from contraprune.errors import UserError
from contraprune.modeling_contraprune import WITH_KEPT_HEADS
from contraprune.structure import (
    HeadGroup,
    Layer,
    NeuronGroup,
    Projection,
    assert_same_model,
    feature_dims,
    find_layers,
)

#: Parameter name -> dimension -> indices that were kept along it, ascending.
Kept = dict[str, dict[int, Int[Tensor, " _features"]]]


@torch.no_grad()
def shrink(
    model: PreTrainedModel,
    layers: Sequence[Layer],
    keep_heads: Sequence[Bool[Tensor, " _heads"]],
    keep_neurons: Sequence[Bool[Tensor, " _neurons"]],
) -> Kept:
    """Removes the heads and neurons whose entry is False, in place; nothing is changed if it raises.

    Args:
        model: any model that ``find_layers`` knows, in any mode, on any device.
        layers: ``find_layers(model)``; describes the model of before the call, so ask again afterwards.
        keep_heads: per layer (num_heads,).
        keep_neurons: per layer (num_neurons,).

    Returns:
        What was kept of each parameter that changed. Their gradients are dropped, and an optimiser that goes
        on with them has to be rebuilt or its state sliced with ``take``.

    Raises:
        UserError: all heads or neurons of a layer would go, and the architecture does not run without.
    """
    assert_same_model(model, layers)
    groups: list[HeadGroup | NeuronGroup] = [layer.heads for layer in layers]
    groups += [layer.neurons for layer in layers]
    removals = list(zip(groups, [*keep_heads, *keep_neurons], strict=True))
    for group, keep in removals:
        assert keep.shape == (group.num_units,), f"{group.name}: {tuple(keep.shape)} for {group.num_units} units"
        _check_not_empty(group, int(keep.sum()))
    kept: Kept = {}
    for group, keep in removals:
        if not keep.all():
            _shrink_group(group, keep.nonzero().squeeze(1), kept)
    return kept


@torch.no_grad()
def fill_empty(model: PreTrainedModel) -> None:
    """Gives each layer without heads or neurons one whose weights are zero, in place: the outputs stay the same.

    For runtimes that cannot multiply by a matrix without rows.
    """
    for layer in find_layers(model):
        for group in (layer.heads, layer.neurons):
            if group.num_units == 0:
                _fill_group(group)


def take(tensor: Tensor, kept: Mapping[int, Int[Tensor, " _features"]]) -> Tensor:
    """The part of a tensor that is left, such as a moment in an optimiser: ``take(moment, kept[name])``."""
    for dim, features in kept.items():
        tensor = tensor.index_select(dim, features.to(tensor.device))
    return tensor


def shapes(model: PreTrainedModel) -> dict[str, Any]:
    """The sizes of a model's layers, as JSON that needs none of this package's tables to be applied.

    ``modeling_contraprune.resize`` applies it. ``layers`` maps the path of each layer, from the base model, to
    its ``heads`` and ``neurons``, and where layers share one position bias to ``kept_heads``, indices into the
    heads of the unpruned model. ``heads`` and ``neurons`` say what one of them owns in any layer: output
    features of the matrices in ``produced_by``, input features of those in ``consumed_by``, its share of numeric
    ``attributes``; ``module`` is where it lives.
    """
    layers = find_layers(model)
    prefix = _base_prefix(model)
    sizes: dict[str, dict[str, Any]] = {}
    for layer in layers:
        entry = sizes[layer.name.removeprefix(prefix)] = {
            "heads": layer.heads.num_heads,
            "neurons": layer.neurons.num_neurons,
        }
        kept_heads = getattr(layer.heads.module, "kept_heads", None)
        if kept_heads is not None:
            entry["kept_heads"] = list(kept_heads)
    first = layers[0]  # a head or a neuron owns the same in every layer
    return {
        "layers": sizes,
        "heads": _shares(first.name, first.heads),
        "neurons": _shares(first.name, first.neurons),
    }


def _check_not_empty(group: HeadGroup | NeuronGroup, left: int) -> None:
    if left == 0 and not group.may_be_empty:
        unit = "head" if isinstance(group, HeadGroup) else "neuron"
        raise UserError(
            f"{group.name}: expected at least one {unit} to be kept, found none; transformers' code for this "
            "architecture does not run without"
        )


def _shrink_group(group: HeadGroup | NeuronGroup, units: Int[Tensor, " kept"], kept: Kept) -> None:
    for producer in group.producers:
        features = producer.features(units, group.num_units)
        _select(producer, 0, features, kept)
    _select(group.consumer, 1, group.consumer.features(units, group.num_units), kept)
    for name, per_unit in group.attributes.items():
        setattr(group.module, name, len(units) * per_unit)
    if isinstance(group, HeadGroup) and group.shared_position_bias:
        before = getattr(group.module, "kept_heads", range(group.num_heads))
        _keep_position_bias(group.module, [before[unit] for unit in units.tolist()])


def _fill_group(group: HeadGroup | NeuronGroup) -> None:
    for producer in group.producers:
        _widen(producer, 0)
    _widen(group.consumer, 1)
    for name, per_unit in group.attributes.items():
        setattr(group.module, name, per_unit)
    if isinstance(group, HeadGroup) and group.shared_position_bias:
        _keep_position_bias(group.module, [0])


def _widen(projection: Projection, side: int) -> None:
    """Gives a linear layer without output (side 0) or input (side 1) features those of one unit, zero."""
    linear = projection.module
    size = projection.size * projection.blocks
    changes = {"weight": feature_dims(linear)[side]}
    if side == 0 and getattr(linear, "bias", None) is not None:
        changes["bias"] = 0
    for name, dim in changes.items():
        parameter = linear.get_parameter(name)
        shape = [size if axis == dim else length for axis, length in enumerate(parameter.shape)]
        _set_data(parameter, parameter.new_zeros(shape))
    _set_feature_count(linear, side, size)


def _select(projection: Projection, side: int, features: Int[Tensor, " features"], kept: Kept) -> None:
    """Keeps output (side 0) or input (side 1) features of a linear layer, and notes what it kept."""
    linear = projection.module
    changes = {"weight": feature_dims(linear)[side]}
    if side == 0 and getattr(linear, "bias", None) is not None:
        changes["bias"] = 0
    for name, dim in changes.items():
        parameter = linear.get_parameter(name)
        index = features.to(parameter.device)
        _set_data(parameter, parameter.index_select(dim, index))
        kept.setdefault(f"{projection.name}.{name}", {})[dim] = index
    _set_feature_count(linear, side, len(features))


def _set_data(parameter: nn.Parameter, data: Tensor) -> None:
    """Changes a parameter's size while it stays the same object, which optimisers and hooks refer to."""
    parameter.grad = None
    # While a graph of an earlier forward is alive, autograd keeps an accumulator that expects the old shape;
    # it lets go of it only where the dtype changes.
    detour = torch.float32 if data.dtype != torch.float32 else torch.float16
    parameter.data = torch.empty(0, dtype=detour, device=data.device)
    parameter.data = data


def _set_feature_count(linear: nn.Module, side: int, count: int) -> None:
    names = ("nf", "nx") if isinstance(linear, Conv1D) else ("out_features", "in_features")
    setattr(linear, names[side], count)


def _keep_position_bias(attention: nn.Module, kept_heads: list[int]) -> None:
    attention.__class__ = WITH_KEPT_HEADS.get(type(attention), type(attention))
    setattr(attention, "kept_heads", kept_heads)  # noqa: B010  # mypy takes a module's attributes for modules


def _base_prefix(model: PreTrainedModel) -> str:
    name = next(name for name, module in model.named_modules() if module is model.base_model)
    return f"{name}." if name else ""


def _shares(layer_name: str, group: HeadGroup | NeuronGroup) -> dict[str, Any]:
    def local(name: str) -> str:
        return name.removeprefix(layer_name).removeprefix(".")

    return {
        "module": local(group.name),
        "produced_by": {local(p.name): p.size * p.blocks for p in group.producers},
        "consumed_by": {local(group.consumer.name): group.consumer.size},
        "attributes": {local(f"{group.name}.{name}"): share for name, share in group.attributes.items()},
    }
