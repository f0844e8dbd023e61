"""Masked linear layers against the released code's values and against the folded stock layer."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from contraprune.errors import UserError
from contraprune.masking import MaskedLinear, fold, mask_linears, masked_linears


def two_layers(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def masked(model, *, learn_scores, density=0.5):
    layers = mask_linears({"0": model[0], "2": model[2]}, learn_scores=learn_scores)
    generator = torch.Generator().manual_seed(1)
    for layer in layers.values():
        layer.set_mask(torch.rand(layer.weight.shape, generator=generator) < density)
    return layers


@pytest.mark.parametrize("case", ["linear_topK@0.3", "linear_magnitude@0.3"])
def test_forward_and_gradients_are_those_of_the_released_layer(golden, case):
    values = np.load(golden / "binarizers.npz")
    weight, bias = (torch.tensor(values[f"{case}/{name}"]) for name in ("weight", "bias"))
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.load_state_dict({"weight": weight, "bias": bias})
    learned = f"{case}/mask_scores" in values.files
    layer = mask_linears({"layer": linear}, learn_scores=learned)["layer"]
    ranked = torch.tensor(values[f"{case}/mask_scores"]) if learned else weight.abs()
    kept = ranked.flatten().topk(int(0.3 * ranked.numel())).indices
    layer.set_mask(torch.zeros(ranked.numel(), dtype=torch.bool).index_fill(0, kept, True).view_as(ranked))
    x = torch.tensor(values[f"{case}/x"], requires_grad=True)
    out = layer(x)
    out.backward(torch.tensor(values[f"{case}/upstream"]))
    expected = {name: torch.tensor(values[f"{case}/{name}"]) for name in ("out", "grad_x", "grad_weight", "grad_bias")}
    torch.testing.assert_close(out, expected["out"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(x.grad, expected["grad_x"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.weight.grad, expected["grad_weight"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.bias.grad, expected["grad_bias"], rtol=1e-5, atol=1e-6)
    if learned:
        gradient = torch.tensor(values[f"{case}/grad_mask_scores"])
        torch.testing.assert_close(layer.mask_scores.grad, gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("learn_scores", [True, False])
def test_straight_through_gradient_of_a_loop(learn_scores):
    model = two_layers(torch.float64)
    layers = masked(model, learn_scores=learn_scores)
    x = torch.randn(4, 6, dtype=torch.float64)
    layer = layers["0"]
    upstream = torch.randn(4, 5, dtype=torch.float64)
    layer(x).backward(upstream)
    for out in range(5):
        for column in range(6):
            dense = sum(upstream[row, out] * x[row, column] for row in range(4))
            expected = dense if layer.mask[out, column] else torch.tensor(0.0, dtype=torch.float64)
            torch.testing.assert_close(layer.weight.grad[out, column], expected)
            if learn_scores:
                torch.testing.assert_close(layer.mask_scores.grad[out, column], dense * layer.weight[out, column])


@pytest.mark.parametrize("learn_scores", [True, False])
def test_folding_changes_no_bit_and_leaves_stock_layers(learn_scores):
    model = two_layers()
    stock_keys = list(model.state_dict())
    layers = masked(model, learn_scores=learn_scores)
    x = torch.randn(7, 6)
    before = model(x)
    masks = {name: layer.mask.clone() for name, layer in layers.items()}
    fold(model)
    assert torch.equal(model(x), before)
    assert [type(module) for module in model] == [nn.Linear, nn.Tanh, nn.Linear]
    assert list(model.state_dict()) == stock_keys
    assert not masked_linears(model)
    for name, mask in masks.items():
        assert torch.equal(model[int(name)].weight != 0, mask.bool())


def test_what_was_removed_is_zero_even_where_it_was_not_finite():
    model = two_layers()
    layers = masked(model, learn_scores=False)
    gone = layers["0"].mask == 0
    with torch.no_grad():
        layers["0"].weight[gone] = float("nan")
    fold(model)
    assert (model[0].weight[gone] == 0).all()


def test_masking_keeps_names_references_and_hooks():
    model = two_layers()
    first, calls = model[0], []
    first.register_forward_hook(lambda *_: calls.append(1))
    layers = masked(model, learn_scores=True)
    assert layers["0"] is first
    assert isinstance(first, MaskedLinear)
    assert set(model.state_dict()) == {f"{n}.{k}" for n in "02" for k in ("weight", "bias", "mask_scores")}
    model(torch.randn(1, 6))
    assert calls == [1]


def test_a_masked_model_can_be_copied_and_pickled_independently():
    model = two_layers()
    masked(model, learn_scores=True)
    other = copy.deepcopy(model)
    fold(other)
    assert masked_linears(model)
    assert not masked_linears(other)


def test_other_layers_are_refused_and_nothing_is_changed():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": Conv1D(2, 2)})
    with pytest.raises(UserError, match=r"b: only torch\.nn\.Linear can be masked, found Conv1D"):
        mask_linears(dict(model.items()), learn_scores=False)
    assert type(model["a"]) is nn.Linear
