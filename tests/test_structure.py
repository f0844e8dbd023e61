import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BartConfig,
)
from transformers.pytorch_utils import Conv1D

from contraprune.errors import UserError
from contraprune.structure import Layer, Projection, find_layers
from tiny_models import FAMILIES, Family, batch

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def probe(model: nn.Module, layer: nn.Module) -> list[set[str]]:
    """Names of a layer's linears grouped by the tensor they are first fed, in the order they are first called."""
    first_input: dict[str, Tensor] = {}
    inside = {id(module) for module in layer.modules()}
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and id(m) in inside}

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (name,) = [name for name, linear in linears.items() if linear is module]
        first_input.setdefault(name, inputs[0])

    handles = [linear.register_forward_pre_hook(record) for linear in linears.values()]
    with torch.no_grad():
        model(**batch())
    for handle in handles:
        handle.remove()
    groups: dict[int, set[str]] = {}
    for name, tensor in first_input.items():
        groups.setdefault(id(tensor), set()).add(name)
    return list(groups.values())


def names(projections: tuple[Projection, ...]) -> set[str]:
    return {projection.name for projection in projections}


@every_family
def test_agrees_with_a_probe_that_knows_no_architecture(family: Family) -> None:
    model = family.build()
    layers = find_layers(model)
    assert [layer.index for layer in layers] == list(range(family.layers))
    for layer in layers:
        module = model.get_submodule(layer.name)
        *heads_in, heads_out, neurons_in, neurons_out = probe(model, module)
        # DeBERTa's own projections of positions read something else than its query, key and value.
        assert len(heads_in) == (2 if any("pos_key_proj" in group for group in heads_in[-1]) else 1)
        assert names(layer.heads.producers) == set().union(*heads_in)
        assert {layer.heads.consumer.name} == heads_out
        assert names(layer.neurons.producers) == neurons_in
        assert {layer.neurons.consumer.name} == neurons_out


@every_family
def test_sizes_are_those_of_the_config(family: Family) -> None:
    model = family.build()
    config = model.config
    for layer in find_layers(model):
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        assert (layer.heads.num_heads, layer.heads.head_size) == (heads, 6)
        assert layer.heads.queries_per_head == config.num_attention_heads // heads
        assert layer.neurons.num_neurons == 20
        for group in (layer.heads, layer.neurons):
            for producer in group.producers:
                rows = producer.features(torch.arange(group.num_units), group.num_units)
                bias = getattr(producer.module, "bias", None)
                assert len(rows) in producer.module.weight.shape
                assert bias is None or len(rows) == len(bias)


@every_family
def test_linears_are_all_those_inside_the_layers_and_no_other(family: Family) -> None:
    model = family.build()
    layers = find_layers(model)
    listed = [module for layer in layers for module in layer.linears.values()]
    inside = [m for layer in layers for m in model.get_submodule(layer.name).modules()]
    assert {id(m) for m in listed} == {id(m) for m in inside if isinstance(m, nn.Linear | Conv1D)}
    for layer in layers:
        for name, module in layer.linears.items():
            assert model.get_submodule(name) is module


@pytest.mark.parametrize(
    ("auto_class", "prefix"),
    [
        (AutoModel, ""),
        (AutoModelForSequenceClassification, "bert."),
        (AutoModelForTokenClassification, "bert."),
        (AutoModelForQuestionAnswering, "bert."),
    ],
)
def test_names_in_bare_and_task_models(auto_class: type, prefix: str) -> None:
    config = FAMILIES["bert"].build().config
    layer = find_layers(auto_class.from_config(config))[1]
    assert layer.name == f"{prefix}encoder.layer.1"
    assert list(layer.linears) == [
        f"{prefix}encoder.layer.1.{path}"
        for path in (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        )
    ]


def test_minilm(minilm: str) -> None:
    layers: list[Layer] = find_layers(AutoModel.from_pretrained(minilm))
    assert [layer.name for layer in layers] == [f"encoder.layer.{i}" for i in range(6)]
    assert {(layer.heads.num_heads, layer.heads.head_size) for layer in layers} == {(12, 32)}
    assert {layer.neurons.num_neurons for layer in layers} == {1536}
    assert sum(m.weight.numel() for layer in layers for m in layer.linears.values()) == 10_616_832


def test_features_of_a_fused_matrix() -> None:
    fused = Projection(name="Wqkv", module=nn.Linear(4, 18), size=2, blocks=3)
    assert fused.features(torch.tensor([2, 0]), 3).tolist() == [0, 1, 4, 5, 6, 7, 10, 11, 12, 13, 16, 17]


def test_unknown_architecture_says_what_was_found_and_what_to_do() -> None:
    config = BartConfig(
        vocab_size=20,
        d_model=8,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
    )
    with pytest.raises(UserError) as caught:
        find_layers(AutoModel.from_config(config))
    message = str(caught.value)
    assert "\n" not in message
    for part in ("model_type 'bart'", "albert, bert", "2 x BartEncoderLayer in encoder.layers", "fc1", "ARCHITECTURES"):
        assert part in message
