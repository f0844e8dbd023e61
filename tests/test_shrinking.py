import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModel,
    BertForSequenceClassification,
    MPNetForSequenceClassification,
    T5ForTokenClassification,
)

from contraprune.errors import UserError
from contraprune.gates import attach_gates
from contraprune.modeling_contraprune import resize
from contraprune.shrinking import fill_empty, shapes, shrink, take
from contraprune.structure import Layer, find_layers
from tiny_models import FAMILIES, Family, batch

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
Masks = tuple[list[Tensor], list[Tensor]]


def random_masks(layers: list[Layer], seed: int = 3) -> Masks:
    """Between a quarter and all but one of the units of each layer, different ones and different numbers.

    With one or two neurons an FFN may put out little but rounding error, which Gemma2 then normalises.
    """
    generator = torch.Generator().manual_seed(seed)

    def mask(units: int) -> Tensor:
        kept = int(torch.randint(max(1, units // 4), max(2, units), (), generator=generator))
        return torch.zeros(units, dtype=torch.bool).index_fill(
            0, torch.randperm(units, generator=generator)[:kept], True
        )

    return (
        [mask(layer.heads.num_heads) for layer in layers],
        [mask(layer.neurons.num_neurons) for layer in layers],
    )


def gated_logits(model: nn.Module, layers: list[Layer], masks: Masks) -> Tensor:
    with torch.no_grad(), attach_gates(model, layers) as gates:
        for gate, mask in zip(gates.heads + gates.neurons, masks[0] + masks[1], strict=True):
            gate.copy_(mask)
        return model(**batch()).logits


def sizes(layers: list[Layer]) -> list[tuple[int, int]]:
    return [(layer.heads.num_heads, layer.neurons.num_neurons) for layer in layers]


def counts(masks: Masks) -> list[tuple[int, int]]:
    return [(int(heads.sum()), int(neurons.sum())) for heads, neurons in zip(*masks, strict=True)]


def shrunk(family: Family, attention: str = "eager", seed: int = 3) -> nn.Module:
    model = family.build(attention)
    layers = find_layers(model)
    shrink(model, layers, *random_masks(layers, seed))
    return model


@every_family
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_equals_the_gated_model_twice_in_a_row(family: Family, attention: str, dtype: torch.dtype) -> None:
    if attention == "sdpa" and not family.has_sdpa:
        pytest.skip("transformers has no sdpa for it")
    if attention == "eager" and dtype == torch.float64 and not family.runs_in_float64:
        pytest.skip("transformers' own code gives NaN")
    model = family.build(attention).to(dtype)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    before = model(**batch()).logits
    for seed in (3, 4):
        layers = find_layers(model)
        masks = random_masks(layers, seed)
        expected = gated_logits(model, layers, masks)
        shrink(model, layers, *masks)
        found = model(**batch()).logits
        assert sizes(find_layers(model)) == counts(masks)
        assert (found - expected).abs().max() <= tolerance * max(1, expected.abs().max())
        assert (found - before).abs().max() > 1e-2
        before = found


@every_family
def test_strict_reload_into_a_stock_model_of_those_shapes(family: Family) -> None:
    model = shrunk(family)
    layers = find_layers(model)
    shrink(model, layers, *random_masks(layers, 5))
    record = json.loads(json.dumps(shapes(model)))
    rebuilt = family.build(seed=99)
    resize(rebuilt, record)
    rebuilt.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(rebuilt(**batch()).logits, model(**batch()).logits)
    assert shapes(rebuilt) == record
    assert str(rebuilt) == str(model)
    for (name, module), copied in zip(model.named_modules(), rebuilt.modules(), strict=True):
        ours, theirs = ({k: v for k, v in vars(m).items() if isinstance(v, int)} for m in (module, copied))
        assert ours == theirs, name


@every_family
def test_returns_what_was_kept_of_every_parameter_that_changed(family: Family) -> None:
    model = family.build()
    original = {name: parameter.clone() for name, parameter in model.named_parameters()}
    layers = find_layers(model)
    kept = shrink(model, layers, *random_masks(layers))
    for name, parameter in model.named_parameters():
        assert torch.equal(take(original[name], kept.get(name, {})), parameter)
        assert (name in kept) == (original[name].shape != parameter.shape)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape, name


@every_family
def test_every_parameter_that_is_left_still_learns(family: Family) -> None:
    model = family.build("sdpa" if family.has_sdpa else "eager").train()
    layers = find_layers(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    alive = model(**batch()).logits.square().mean()  # a graph of the old shapes that nobody let go of
    alive.backward(retain_graph=True)
    shrink(model, layers, *random_masks(layers))
    loss = model(**batch()).logits.square().mean()
    loss.backward()
    for layer in find_layers(model):
        for name, linear in layer.linears.items():
            assert linear.weight.grad.shape == linear.weight.shape, name
            assert linear.weight.grad.abs().sum() > 0, name
    optimizer.step()
    assert model(**batch()).logits.square().mean() < loss


def empty_one(layers: list[Layer], heads: bool) -> Masks:
    masks = random_masks(layers)
    masks[0 if heads else 1][-1][:] = False
    return masks


@every_family
@pytest.mark.parametrize("heads", [True, False], ids=["no heads", "no neurons"])
def test_a_layer_may_lose_everything_where_transformers_allows(family: Family, heads: bool) -> None:
    model = family.build("sdpa" if family.has_sdpa else "eager")
    layers = find_layers(model)
    masks = empty_one(layers, heads)
    expected = gated_logits(model, layers, masks)
    if family.model_type == "gpt2" or (family.model_type == "deberta-v2" and heads):
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(UserError, match=r"expected at least one (head|neuron) to be kept, found none"):
            shrink(model, layers, *masks)
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
        return
    shrink(model, layers, *masks)
    found = model(**batch()).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert sizes(find_layers(model)) == counts(masks)
    rebuilt = family.build(seed=99)
    resize(rebuilt, shapes(model))
    rebuilt.load_state_dict(model.state_dict(), strict=True)
    rebuilt(**batch()).logits.sum().backward()
    fill_empty(model)
    torch.testing.assert_close(model(**batch()).logits, found, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
    assert all(parameter.numel() for parameter in model.parameters())
    assert sizes(find_layers(model)) == [(max(1, heads), max(1, neurons)) for heads, neurons in counts(masks)]


@pytest.mark.parametrize("name", ["bert", "deberta-v2", "modernbert", "mpnet", "t5", "gpt2", "llama"])
def test_copies_pickles_attentions_and_checkpointing(name: str) -> None:
    model = shrunk(FAMILIES[name])
    logits = model(**batch()).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(**batch()).logits, logits)
        layers = find_layers(other)
        shrink(other, layers, *random_masks(layers, 6))
        assert sizes(find_layers(other)) != sizes(find_layers(model))
    assert torch.equal(model(**batch()).logits, logits)
    heads = [layer.heads.num_heads * layer.heads.queries_per_head for layer in find_layers(model)]
    attentions = model(**batch(), output_attentions=True).attentions
    assert [attention.shape[1] for attention in attentions] == heads
    if model.supports_gradient_checkpointing:
        model.activation_checkpointing_enable()
        model.train()(**batch()).logits.sum().backward()


def train(optimizer_of: Callable[[nn.Module], torch.optim.Optimizer], physically: bool) -> list[float]:
    """Losses of 20 steps, with heads and neurons removed, or gated to zero, after the sixth."""
    model = FAMILIES["bert"].build().train()
    labels = torch.tensor([0, 1, 2, 1])
    optimizer = optimizer_of(model)
    layers = find_layers(model)
    masks = random_masks(layers)
    losses = []
    for step in range(20):
        if step == 6 and physically:
            kept = shrink(model, layers, *masks)
            slice_optimizer(optimizer, model, kept)
        elif step == 6:
            gates = attach_gates(model, layers)
            for gate, mask in zip(gates.heads + gates.neurons, masks[0] + masks[1], strict=True):
                gate.copy_(mask)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(**batch(seed=step)).logits, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def slice_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, kept: dict[str, dict[int, Tensor]]) -> None:
    for name, indices in kept.items():
        state = optimizer.state[model.get_parameter(name)]
        for key, value in state.items():
            if value is not None and value.dim() > 0:
                state[key] = take(value, indices)


@pytest.mark.parametrize(
    "optimizer_of",
    [
        lambda model: torch.optim.SGD(model.parameters(), lr=2e-3, momentum=0.9),
        lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3),
    ],
    ids=["sgd", "adamw"],
)
def test_training_through_a_shrink_equals_training_with_gates(
    optimizer_of: Callable[[nn.Module], torch.optim.Optimizer],
) -> None:
    physically, gated = train(optimizer_of, True), train(optimizer_of, False)
    assert physically == pytest.approx(gated, abs=1e-4)
    assert max(gated) - min(gated) > 0.1


@pytest.mark.parametrize(
    ("name", "stock"),
    [
        ("bert", BertForSequenceClassification),
        ("mpnet", MPNetForSequenceClassification),
        ("t5", T5ForTokenClassification),
    ],
)
def test_from_pretrained_of_a_class_that_applies_the_shapes(name: str, stock: type, tmp_path: Path) -> None:
    model = shrunk(FAMILIES[name])
    model.config.pruned_shapes = shapes(model)
    model.save_pretrained(tmp_path)

    class Pruned(stock):  # type: ignore[misc]
        def __init__(self, config: object) -> None:
            super().__init__(config)
            resize(self, config.pruned_shapes)  # type: ignore[attr-defined]

    loaded, report = Pruned.from_pretrained(tmp_path, attn_implementation="eager", output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(loaded(**batch()).logits, model(**batch()).logits)


def test_shapes_of_a_task_model_fit_the_bare_encoder() -> None:
    model = shrunk(FAMILIES["bert"])
    bare = AutoModel.from_config(model.config, attn_implementation="eager").eval()
    resize(bare, shapes(model))
    bare.load_state_dict(model.bert.state_dict(), strict=False)
    assert torch.equal(bare(**batch())[0], model.bert(**batch())[0])


def test_the_record_of_bert() -> None:
    model = FAMILIES["bert"].build()
    layers = find_layers(model)
    heads = [torch.tensor([1, 0, 1, 1]), torch.tensor([0, 0, 0, 1]), torch.ones(4)]
    neurons = [torch.arange(20) < n for n in (20, 7, 3)]
    shrink(model, layers, [mask.bool() for mask in heads], neurons)
    assert shapes(model) == {
        "layers": {
            "encoder.layer.0": {"heads": 3, "neurons": 20},
            "encoder.layer.1": {"heads": 1, "neurons": 7},
            "encoder.layer.2": {"heads": 4, "neurons": 3},
        },
        "heads": {
            "module": "attention.self",
            "produced_by": {f"attention.self.{name}": 6 for name in ("query", "key", "value")},
            "consumed_by": {"attention.output.dense": 6},
            "attributes": {"attention.self.num_attention_heads": 1, "attention.self.all_head_size": 6},
        },
        "neurons": {
            "module": "",
            "produced_by": {"intermediate.dense": 1},
            "consumed_by": {"output.dense": 1},
            "attributes": {},
        },
    }
    attention = model.bert.encoder.layer[1].attention.self
    assert (attention.num_attention_heads, attention.all_head_size) == (1, 6)


def test_kept_heads_count_from_the_unpruned_model() -> None:
    model = FAMILIES["mpnet"].build()
    everything = [torch.ones(20, dtype=torch.bool)] * 3
    for masks in ([[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 1]], [[1, 0, 1], [1, 1, 1, 1], [0, 1, 1]]):
        shrink(model, find_layers(model), [torch.tensor(mask).bool() for mask in masks], everything)
    entries = shapes(model)["layers"].values()
    assert [entry.get("kept_heads") for entry in entries] == [[1, 3], None, [1, 3]]


def test_layers_of_before_a_shrink_are_refused() -> None:
    model = FAMILIES["bert"].build()
    layers = find_layers(model)
    masks = random_masks(layers)
    shrink(model, layers, *masks)
    with pytest.raises(AssertionError):
        shrink(model, find_layers(model), *masks)
    with pytest.raises(AssertionError, match="another model"):
        shrink(copy.deepcopy(model), find_layers(model), *masks)


def test_minilm_in_float64(minilm: str) -> None:
    model = AutoModel.from_pretrained(minilm).double().eval()
    layers = find_layers(model)
    masks = random_masks(layers)
    with torch.no_grad():
        with attach_gates(model, layers) as gates:
            for gate, mask in zip(gates.heads + gates.neurons, masks[0] + masks[1], strict=True):
                gate.copy_(mask)
            expected = model(**batch())[0]
        shrink(model, layers, *masks)
        assert (model(**batch())[0] - expected).abs().max() < 1e-9
