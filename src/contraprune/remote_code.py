"""How a saved model tells its layers' sizes: a plain config where it can, else a record and a modelling file.

The modelling file is ``modeling_contraprune.py`` of this package. transformers copies it beside the weights of a
model whose class comes from it, whether ``save_pretrained``, ``push_to_hub`` or a ``Trainer`` saves. What is loaded
here uses the package's own copy: code in a model directory is never run.
"""

import copy
import json
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from contraprune import modeling_contraprune
from contraprune.errors import UserError
from contraprune.modeling_contraprune import resize
from contraprune.shrinking import shapes
from contraprune.structure import HeadGroup, Layer, NeuronGroup, find_layers

KEY = "contraprune"  # of config.json; the modelling file reads it too
FORMAT = 1
CONFIG_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    StrictDataclassError,
)
_CODE = modeling_contraprune.__name__.rpartition(".")[2]
# What configurations call the number of neurons; heads have one name, at least by way of ``attribute_map``.
_NEURON_FIELDS = ("intermediate_size", "hidden_dim", "n_inner", "d_ff")


def declare_shapes(model: PreTrainedModel) -> None:
    """Makes every way of saving a model write what is needed to load it, after ``shrink`` or where nothing shrank.

    Call it after each ``shrink`` of a model that something else than ``save_model`` saves, such as a ``Trainer``.
    In place: if the stock configuration can say the sizes, it does. Otherwise the configuration keeps the sizes of
    before pruning, next to the record of ``shapes``, and the model's class becomes the one of the same name in
    ``modeling_contraprune``.

    Raises:
        UserError: the model differs from its configuration in more than heads and neurons of a known architecture.
    """
    stock = getattr(transformers, type(model).__name__, None)
    if stock is None or not isinstance(model, stock):
        return  # a class of somebody else's, which knows how it is saved
    if not _resized(model, _unpruned(stock, model.config)):
        _declare_plain(model, stock)
        return
    plain = _plain_config(model, stock)
    if plain is not None:
        for name, value in plain.items():
            setattr(model.config, name, value)
        _declare_plain(model, stock)
        return
    record = shapes(model)
    rebuilt = _unpruned(stock, model.config)
    resize(rebuilt, record)
    for name, (found, expected) in _resized(model, rebuilt).items():
        raise UserError(f"{name}: expected the shape {expected} of config and pruned heads and neurons, found {found}")
    declare_record(model, stock, {"format": FORMAT, **record})


def unpruned_layers(model: PreTrainedModel) -> list[Layer]:
    """The layers as they were before heads and neurons were removed, as far as the configuration tells; no weights."""
    if not hasattr(model.config, KEY):
        return find_layers(model)
    return find_layers(_unpruned(getattr(transformers, type(model).__name__), model.config))


def declare_record(model: PreTrainedModel, stock: Any, record: dict[str, Any]) -> None:
    """Sets class, record and ``auto_map`` of a pruned model; ``stock`` is the class of transformers."""
    model.__class__ = getattr(modeling_contraprune, stock.__name__)
    auto_map = {auto: f"{_CODE}.{name}" for auto, name in _auto_classes(model.config)}
    own = [auto for auto, path in auto_map.items() if path == f"{_CODE}.{stock.__name__}"]
    type(model).register_for_auto_class(own[0] if own else "AutoModel")
    setattr(model.config, KEY, record)
    model.config.auto_map = auto_map


def pruned_class(model_class: Any, config: Any, path: str) -> tuple[Any, Any, dict[str, Any]]:
    """The classes to load a pruned model with, once its record has been checked.

    Args:
        model_class: a model or Auto class of transformers.
        config: what was read from ``path``, with a record under ``KEY``.

    Returns:
        The class of ``modeling_contraprune``, the stock class of the same name, and the record.

    Raises:
        UserError: the record is not one that ``declare_shapes`` made for such a model.
    """
    stock = _concrete(model_class, config, path)
    record = getattr(config, KEY)
    try:
        unpruned = _unpruned(stock, config)
        known = shapes(unpruned)
    except CONFIG_ERRORS as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: config.json does not describe a {stock.__name__} ({reason:.200})") from error
    for key, expected, found in _differences(unpruned, known, record):
        raise UserError(f"{path}: config.json: {KEY}: {key}: expected {expected}, found {f'{found!r:.80}'}")
    return getattr(modeling_contraprune, stock.__name__), stock, record


def empty_model(model_class: Any, config: Any, path: str, *, device: str = "meta") -> PreTrainedModel:
    """The model that a configuration describes, shrunk if it has a record, with weights that are yet to be loaded.

    Args:
        model_class: a model or Auto class of transformers.
        config: what was read from ``path``.
        device: ``meta`` takes no memory for the weights.

    Raises:
        UserError: the configuration describes no such model.
    """
    stock, record = _concrete(model_class, config, path), getattr(config, KEY, None)
    shrunk = stock if record is None else pruned_class(model_class, config, path)[0]
    try:
        model = _unpruned(shrunk, config, device=device)
    except CONFIG_ERRORS as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: config.json does not describe a {stock.__name__} ({reason:.200})") from error
    if record is not None:
        declare_record(model, stock, record)
    return model


def _concrete(model_class: Any, config: Any, path: str) -> Any:
    mapping = getattr(model_class, "_model_mapping", None)
    if mapping is None:
        return model_class
    if type(config) not in mapping:
        raise UserError(f"{path}: {model_class.__name__} has no model of type {config.model_type!r}")
    found = mapping[type(config)]
    return found[0] if isinstance(found, tuple) else found


def _unpruned(stock: Any, config: Any, *, device: str = "meta") -> PreTrainedModel:
    """The model that a configuration describes to transformers, by default without memory for its weights."""
    config = copy.deepcopy(config)
    if device == "meta":
        config._attn_implementation = "eager"  # which every class has; the weights are the same
    with torch.device(device):
        model: PreTrainedModel = stock(config)
    return model


def _resized(model: nn.Module, other: nn.Module) -> dict[str, tuple[list[int], list[int]]]:
    """Parameters of both models whose shapes differ; what only one has, such as a new head, is not looked at."""
    shapes_of_other = {name: [*parameter.shape] for name, parameter in other.named_parameters()}
    both = [
        (name, [*p.shape], shapes_of_other[name]) for name, p in model.named_parameters() if name in shapes_of_other
    ]
    return {name: (own, others) for name, own, others in both if own != others}


def _declare_plain(model: PreTrainedModel, stock: Any) -> None:
    if hasattr(model.config, KEY):
        model.__class__ = stock
        for name in (KEY, "auto_map"):
            vars(model.config).pop(name, None)


def _plain_config(model: PreTrainedModel, stock: Any) -> dict[str, int] | None:
    """Changes to a model's configuration after which stock code builds exactly this model, if there are any."""
    config = copy.deepcopy(model.config)
    first = find_layers(model)[0]  # if any sizes will do, then those of the first layer
    changes = {name: first.neurons.num_neurons for name in _NEURON_FIELDS if hasattr(config, name)}
    query_heads = first.heads.num_heads * first.heads.queries_per_head
    if query_heads != config.num_attention_heads:
        changes |= {"num_attention_heads": query_heads, "head_dim": first.heads.head_size}
        if hasattr(config, "num_key_value_heads"):
            changes["num_key_value_heads"] = first.heads.num_heads
    for name, value in changes.items():
        setattr(config, name, value)
    try:  # by way of what will be read from config.json
        rebuilt = _unpruned(stock, type(config).from_dict(config.to_dict()))
    except CONFIG_ERRORS:
        return None  # such as heads that do not divide the hidden size
    return None if _resized(model, rebuilt) else changes


def _auto_classes(config: Any) -> Iterator[tuple[str, str]]:
    """Names of the Auto classes that a configuration works with, and of the model classes they stand for."""
    for name, auto in sorted(vars(modeling_auto).items()):
        mapping = getattr(auto, "_model_mapping", None) if name.startswith("AutoModel") else None
        if mapping is not None and type(config) in mapping:
            found = mapping[type(config)]
            yield name, (found[0] if isinstance(found, tuple) else found).__name__


def _differences(unpruned: PreTrainedModel, known: dict[str, Any], record: Any) -> Iterator[tuple[str, Any, Any]]:
    """(key, expected, found) of what is wrong in a record that may hold anything; ``known`` is that of ``unpruned``."""
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else record
        yield "format", f"{FORMAT}, which this version of contraprune reads", found
        return
    for unit in ("heads", "neurons"):  # these name the modules that are changed, so nothing but the known will do
        if json.dumps(record.get(unit), sort_keys=True) != json.dumps(known[unit], sort_keys=True):
            yield unit, f"the matrices of {type(unpruned).__name__}", record.get(unit)
    layers, names = record.get("layers"), list(known["layers"])
    if not isinstance(layers, dict) or sorted(layers) != sorted(names):
        yield "layers", f"{names[0]} to {names[-1]}", list(layers) if isinstance(layers, dict) else layers
        return
    for name, layer in zip(names, find_layers(unpruned), strict=True):
        if not isinstance(layers[name], dict):
            yield name, "heads and neurons", layers[name]
            return
        yield from _wrong_count(f"{name}: heads", layer.heads, layers[name].get("heads"))
        yield from _wrong_count(f"{name}: neurons", layer.neurons, layers[name].get("neurons"))
        yield from _wrong_kept_heads(f"{name}: kept_heads", layer.heads, layers[name])


def _wrong_count(name: str, group: HeadGroup | NeuronGroup, found: Any) -> Iterator[tuple[str, Any, Any]]:
    fewest = 0 if group.may_be_empty else 1
    if type(found) is not int or not fewest <= found <= group.num_units:
        yield name, f"{fewest} to {group.num_units}", found


def _wrong_kept_heads(name: str, group: HeadGroup, sizes: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    found = sizes.get("kept_heads")
    if not group.shared_position_bias:
        if found is not None:
            yield name, "none in this architecture", found
    elif found is not None or sizes["heads"] < group.num_heads:
        kept = [head for head in found if type(head) is int] if isinstance(found, list) else []
        if kept != found or kept != sorted(set(kept) & set(range(group.num_heads))) or len(kept) != sizes["heads"]:
            yield name, f"{sizes['heads']} ascending numbers below {group.num_heads}", found
