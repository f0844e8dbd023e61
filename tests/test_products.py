"""Which library multiplies, asked of every operation; and that its results are those of float32."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertForSequenceClassification

import contraprune
from contraprune import products, trainer
from contraprune.products import fast_products, linear, other_library_is_exact, stock_products

PRODUCTS = {"addmm", "mm"}

pytestmark = pytest.mark.skipif(
    getattr(torch.backends.mkldnn, "matmul", None) is None, reason="this torch cannot be told which library to take"
)


def setting():
    return torch.backends.mkldnn.matmul.fp32_precision


class Settings(TorchDispatchMode):
    """Notes the settings that each operation ran with, those of the backward pass included."""

    def __init__(self):
        super().__init__()
        self.of = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.of.setdefault(function.overloadpacket.__name__, set()).add(setting())
        return function(*args, **(kwargs or {}))


@pytest.fixture
def switchable(monkeypatch):
    """As on a machine where there is another library."""
    monkeypatch.setattr(products, "other_library_is_exact", lambda: True)


@pytest.fixture
def model(tiny):
    return BertForSequenceClassification.from_pretrained(tiny / "teacher").eval()


BATCH = {
    "input_ids": torch.arange(2, 14).view(2, 6),
    "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
    "labels": torch.tensor([0, 1]),
}


def test_linear_layers_have_the_other_library_in_both_directions_and_attention_has_not(model, switchable):
    stock = setting()
    with Settings() as seen, fast_products(model):
        model(**BATCH).loss.backward()
    assert seen.of.keys() >= PRODUCTS
    assert all(found == {"bf16"} for name, found in seen.of.items() if name in PRODUCTS)
    attention = {name for name in seen.of if "scaled_dot_product" in name or name == "bmm"}
    assert len(attention) >= 2  # forward and backward
    assert all(seen.of[name] == {stock} for name in attention)
    assert setting() == stock


def test_a_product_of_ones_own_too(switchable):
    stock = setting()
    anchors = torch.randn(3, 5, requires_grad=True)
    with Settings() as seen:
        linear(anchors, torch.randn(7, 5)).sum().backward()
    assert seen.of["mm"] == {"bf16"}
    assert setting() == stock


@pytest.mark.parametrize("shape", [(4, 6), (2, 4, 6), (2, 3, 4, 6)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trains", ["weight", "input", "both"])
def test_results_are_the_stock_ones_up_to_rounding(shape, bias, trains):
    torch.manual_seed(0)
    layer = nn.Linear(6, 5, bias=bias)
    layer.weight.requires_grad_(trains != "input")
    found = []
    for context in (stock_products, lambda: fast_products(layer)):
        torch.manual_seed(1)
        x = torch.randn(shape, requires_grad=trains != "weight")
        layer.zero_grad()
        with context():
            output = layer(x)
            output.square().sum().backward()
        found.append([output, x.grad, *(parameter.grad for parameter in layer.parameters())])
    for stock, fast in zip(*found, strict=True):
        assert (stock is None) == (fast is None)
        if stock is not None:
            torch.testing.assert_close(fast, stock, rtol=1e-5, atol=1e-5)


def test_nothing_stays_behind(model, switchable):
    stock = setting()
    layer = nn.Linear(6, 5)
    with fast_products(model):
        model(**BATCH)
    with pytest.raises(RuntimeError), fast_products(layer):
        layer(torch.ones(2, 7))
    for module in (*model.modules(), layer):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert setting() == stock
    with Settings() as seen:
        model(**BATCH)
    assert set.union(*seen.of.values()) == {stock}


def test_what_is_not_float32_on_a_cpu_here_or_not_wanted_stays_as_it_is(model, switchable):
    stock = setting()
    with Settings() as seen, stock_products(), fast_products(model):
        model(**BATCH)
    assert set.union(*seen.of.values()) == {stock}
    with fast_products(nn.Linear(6, 5, device="meta")) as nothing, fast_products(nn.ReLU()):
        assert nothing is None


class Rounded(TorchFunctionMode):
    """A processor that does round what it multiplies to bfloat16 where it may."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        is_product = function.__name__ in ("matmul", "__matmul__") and args[0].dtype == torch.float32
        if is_product and setting() == "bf16":
            args = tuple(value.bfloat16().float() for value in args)
        return function(*args, **(kwargs or {}))


def test_a_library_that_rounds_is_not_taken():
    with Rounded():
        assert not other_library_is_exact.__wrapped__()
    assert setting() == products._STOCK


@pytest.fixture
def tf32():
    before = setting()
    torch.backends.mkldnn.matmul.fp32_precision = "tf32"
    yield
    torch.backends.mkldnn.matmul.fp32_precision = before


def test_a_setting_of_the_users_own_stays(tf32):
    assert not other_library_is_exact.__wrapped__()
    assert setting() == "tf32"


def test_a_setting_that_the_user_makes_later_too(model, switchable, tf32):
    with Settings() as seen, fast_products(model):
        model(**BATCH).loss.backward()
    assert set.union(*seen.of.values()) == {"tf32"}


@pytest.mark.parametrize("compiled", [False, True])
def test_training_has_it_unless_it_is_compiled(tiny_options, monkeypatch, compiled):
    entered = []

    @contextmanager
    def noted(model):
        entered.append(model)
        with fast_products(model):
            yield

    monkeypatch.setattr(trainer, "fast_products", noted)
    options = {key: tiny_options[key] for key in ("model", "task", "max_length", "use_cpu", "output_dir")}
    if compiled:
        options |= {"torch_compile": True, "torch_compile_backend": "eager"}
    contraprune.finetune(**options, max_train_samples=8, max_steps=1, max_eval_samples=4, disable_tqdm=True)
    assert bool(entered) is not compiled
