"""The engine against torch: every family, head, instruction set, number of threads, and kind of matrix."""

import multiprocessing
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    pipeline,
)
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

import contraprune
from contraprune.engine import accelerate, native
from contraprune.engine import model as engine_model
from contraprune.engine.compile import NoCompilerError, find_compiler
from contraprune.engine.families import FAMILIES
from contraprune.errors import UserError
from contraprune.shrinking import shrink
from contraprune.structure import find_layers
from tiny_models import FAMILIES as TINY

COMPILED = native.library()
ISAS = [name for number, name in enumerate(native.ISAS) if COMPILED is not None and COMPILED.cp_supports(number)]
EVERY_ISA = [*ISAS, "torch"]
LENGTHS = (70, 1, 23, 16, 64)


def test_the_compiled_engine_is_there() -> None:
    """Elsewhere the fallback would pass all tests; this says that it was not it that ran."""
    try:
        find_compiler()
    except NoCompilerError:
        pytest.skip("there is no compiler to build it with")
    assert ISAS[0] == "portable"


def bert(**options: Any) -> BertModel:
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 132}
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=61, initializer_range=0.15, **(sizes | options))).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape)
    return model


def batch(lengths: tuple[int, ...] = LENGTHS, *, left: bool = False, pad: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    width = max(lengths)
    columns = torch.arange(width).flip(0) if left else torch.arange(width)
    mask = (columns < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(3, 61, (len(lengths), width), generator=generator)
    return {"input_ids": torch.where(mask == 1, ids, pad), "attention_mask": mask}


@torch.no_grad()
def assert_same(model: Any, fast: Any, inputs: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    """Equal to ``tolerance`` of the largest output, at every token that is not padding."""
    expected, found = model.base_model(**inputs)[0], fast.base_model(**inputs)[0]
    assert found.shape == expected.shape
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))[..., None]
    error = ((found - expected) * mask).abs().max() / expected.abs().max()
    assert error < tolerance
    assert (found * (1 - mask)).eq(0).all(), "padding is zero"


def sparsify(model: nn.Module, density: float, *, block: int = 1) -> None:
    generator = torch.Generator().manual_seed(2)
    for layer in find_layers(model):
        for linear in layer.linears.values():
            rows, columns = linear.weight.shape
            kept = torch.rand(-(-rows // block), columns, generator=generator) < density
            linear.weight.data *= kept.repeat_interleave(block, 0)[:rows]


@pytest.mark.parametrize("isa", EVERY_ISA)
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family(name: str, isa: str) -> None:
    model = TINY[name].build()
    pad = model.config.pad_token_id
    inputs = batch((9, 7, 4, 1), pad=1 if name == "mpnet" else pad)
    assert_same(model, accelerate(model, isa=isa), inputs)


@pytest.mark.parametrize("isa", EVERY_ISA)
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_ragged_batches_on_any_number_of_threads(isa: str, threads: int) -> None:
    model = bert()
    fast = accelerate(model, isa=isa, threads=threads)
    for lengths in (LENGTHS, (1,), (5,), (16, 16), (128,), (3, 90, 2, 2, 2, 100, 7)):
        assert_same(model, fast, batch(lengths))


def test_left_padding_gaps_and_no_mask() -> None:
    model = bert()
    fast = accelerate(model)
    assert_same(model, fast, batch(left=True))
    inputs = batch()
    inputs["attention_mask"][0, 3:40:5] = 0
    assert_same(model, fast, inputs)
    assert_same(model, fast, {"input_ids": inputs["input_ids"]})


def test_a_text_without_any_token_is_all_zero() -> None:
    inputs = batch((4, 6))
    inputs["attention_mask"][0] = 0
    fast = accelerate(bert())
    assert fast(**inputs).last_hidden_state[0].eq(0).all()
    inputs["attention_mask"][:] = 0
    assert fast(**inputs).last_hidden_state.eq(0).all()


@pytest.mark.parametrize("isa", EVERY_ISA)
@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("density", [1, 0.5, 0.3, 0.1, 0.03, 0])
def test_every_kind_of_matrix(isa: str, block: int, density: float) -> None:
    """132 neurons are no multiple of a chunk of rows, and 390 columns several panels of them."""
    model = bert(hidden_size=390, num_attention_heads=5, intermediate_size=131)
    sparsify(model, density, block=block)
    assert_same(model, accelerate(model, isa=isa, threads=2), batch())


@pytest.mark.parametrize("isa", EVERY_ISA)
def test_rows_of_very_different_density(isa: str) -> None:
    model = bert()
    weight = model.encoder.layer[0].intermediate.dense.weight.data
    weight[::2] = 0
    weight[1::4] *= torch.rand_like(weight[1::4]) < 0.05
    weight[:, 5] = 1
    weight[7] = 0
    assert_same(model, accelerate(model, isa=isa), batch())


@pytest.mark.parametrize("isa", EVERY_ISA)
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "tanh", "gelu_pytorch_tanh"])
def test_every_activation_also_far_from_zero(isa: str, activation: str) -> None:
    model = bert(hidden_act=activation)
    for layer in model.encoder.layer:
        layer.intermediate.dense.weight.data *= 10
    assert_same(model, accelerate(model, isa=isa), batch())


@pytest.mark.parametrize("isa", EVERY_ISA)
def test_attention_with_large_scores(isa: str) -> None:
    model = bert()
    for layer in model.encoder.layer:
        layer.attention.self.query.weight.data *= 20
    assert_same(model.double(), accelerate(bert_as(model), isa=isa), batch())


def bert_as(model: BertModel) -> BertModel:
    copied = bert()
    copied.load_state_dict(model.state_dict())
    return copied


@pytest.mark.parametrize("isa", EVERY_ISA)
def test_different_sizes_in_each_layer_and_empty_ones(isa: str) -> None:
    for name in ("bert", "mpnet", "distilbert"):
        model = TINY[name].build()
        layers = find_layers(model)
        heads = [torch.tensor(kept, dtype=torch.bool) for kept in ([1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0])]
        neurons = [torch.arange(20) < count for count in (0, 7, 20)]
        shrink(model, layers, heads, neurons)
        pad = 1 if name == "mpnet" else 0
        assert_same(model, accelerate(model, isa=isa, threads=2), batch((9, 7, 4), pad=pad))


HEADS: list[tuple[Any, Any]] = [
    (AutoModelForSequenceClassification, SequenceClassifierOutput),
    (AutoModelForTokenClassification, TokenClassifierOutput),
    (AutoModelForQuestionAnswering, QuestionAnsweringModelOutput),
    (AutoModel, BaseModelOutputWithPooling),
]


@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize(("auto_class", "output"), HEADS)
def test_heads_from_a_saved_model(tmp_path: Path, name: str, auto_class: Any, output: Any) -> None:
    config = TINY[name].build().config
    config.num_labels = 2 if output is QuestionAnsweringModelOutput else 3
    model = auto_class.from_config(config).eval()
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path)
    contraprune.engine.write_sparse(model, tmp_path)
    fast = contraprune.load(tmp_path)
    assert type(fast).__name__ == type(model).__name__
    assert isinstance(fast, type(model))
    inputs = batch((9, 7, 4), pad=1 if name == "mpnet" else 0)
    with torch.no_grad():
        expected, found = model(**inputs), fast(**inputs)
    assert type(found) is output
    for key in set(expected) - {"last_hidden_state"}:
        keep = inputs["attention_mask"] if expected[key].shape[:2] == (3, 9) else torch.ones(3, 1)
        keep = keep.view(*keep.shape, *[1] * (expected[key].dim() - 2))
        torch.testing.assert_close(found[key] * keep, expected[key] * keep, atol=1e-5, rtol=1e-4)
    loss = fast(**inputs, labels=torch.tensor([0, 2, 1])) if output is SequenceClassifierOutput else None
    assert loss is None or loss.loss.isfinite()


def test_shrunk_models_from_a_saved_one(tmp_path: Path) -> None:
    model = TINY["bert"].build()
    heads = [torch.arange(4) < count for count in (1, 4, 2)]
    shrink(model, find_layers(model), heads, [torch.arange(20) < count for count in (3, 0, 20)])
    contraprune.remote_code.declare_shapes(model)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path)
    contraprune.engine.write_sparse(model, tmp_path)
    assert_same(model, contraprune.load(tmp_path), batch((9, 7, 4)))
    dense = contraprune.load(tmp_path, engine="torch")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(dense.get_parameter(name), parameter, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["albert", "deberta-v2", "modernbert", "gpt2", "t5"])
def test_other_families_load_dense_from_the_sparse_format(tmp_path: Path, name: str) -> None:
    model = TINY[name].build()
    sparsify_any(model)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path)
    contraprune.engine.write_sparse(model, tmp_path)
    loaded = contraprune.load(tmp_path)
    inputs = batch((9, 7, 4))
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs)[0], model(**inputs)[0], atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="the sparse engine runs bert"):
        contraprune.load(tmp_path, engine="sparse")


def sparsify_any(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data *= torch.rand_like(parameter) < 0.3


def test_pipelines(tiny: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny / "teacher")
    texts = ["a lovely film", "no", "what a waste of time that was, and of money, and of good actors"]
    dense = BertForSequenceClassification.from_pretrained(tiny / "teacher")
    fast = contraprune.load(tiny / "teacher", engine="sparse")
    for size in (1, 3):
        expected = pipeline("text-classification", model=dense, tokenizer=tokenizer)(texts, batch_size=size)
        found = pipeline("text-classification", model=fast, tokenizer=tokenizer)(texts, batch_size=size)
        assert [row["label"] for row in found] == [row["label"] for row in expected]
        assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=1e-5)
    features = pipeline("feature-extraction", model=accelerate(BertModel.from_pretrained(tiny / "pretrained")),
                        tokenizer=tokenizer)("a film")  # fmt: skip
    assert len(features[0][0]) == 32


def test_the_real_model_pruned_by_magnitude(minilm: str) -> None:
    model = AutoModel.from_pretrained(minilm).eval()
    for layer in find_layers(model):
        for linear in layer.linears.values():
            threshold = linear.weight.abs().flatten().kthvalue(int(0.9 * linear.weight.numel())).values
            linear.weight.data *= linear.weight.abs() > threshold
    encoded = AutoTokenizer.from_pretrained(minilm)(
        ["A sentence.", "Another, somewhat longer sentence about nothing in particular.", "word " * 300],
        padding=True,
        truncation=True,
        return_tensors="pt",
    )
    for isa in EVERY_ISA:
        assert_same(model, accelerate(model, isa=isa), dict(encoded))


REFUSED: list[tuple[str, Callable[[dict[str, Any]], dict[str, Any]], str]] = [
    ("an id", lambda i: i | {"input_ids": i["input_ids"] + 60}, "expected ids below 61"),
    ("a negative id", lambda i: i | {"input_ids": i["input_ids"] - 60}, "expected ids below 61"),
    ("a huge id", lambda i: i | {"input_ids": i["input_ids"] + 2**32}, "expected ids below 61"),
    ("a type", lambda i: i | {"token_type_ids": i["input_ids"]}, "token types below 2"),
    ("a long text", lambda i: {"input_ids": torch.ones(1, 40, dtype=torch.long)}, "at most 32 tokens"),
    ("the mask's shape", lambda i: i | {"attention_mask": torch.ones(2, 3)}, r"attention_mask: expected the shape"),
    ("a square mask", lambda i: i | {"attention_mask": torch.ones(2, 1, 6, 6)}, "attention_mask: expected the shape"),
    ("no ids", lambda i: {"attention_mask": i["attention_mask"]}, "input_ids: expected"),
    ("embeddings", lambda i: i | {"inputs_embeds": torch.ones(2, 6, 48)}, "inputs_embeds: not available"),
    ("attentions", lambda i: i | {"output_attentions": True}, "output_attentions: not available"),
]


@pytest.mark.parametrize("isa", EVERY_ISA)
@pytest.mark.parametrize(("case", "change", "message"), REFUSED, ids=[name for name, _, _ in REFUSED])
def test_bad_input_is_refused(isa: str, case: str, change: Any, message: str) -> None:
    fast = accelerate(bert(max_position_embeddings=32), isa=isa)
    inputs = batch((6, 4))
    fast(**inputs)
    with pytest.raises(UserError, match=message):
        fast(**change(inputs))
    fast(**inputs)


def test_relative_positions_refuse_gaps() -> None:
    inputs = batch((9, 7), pad=1)
    inputs["attention_mask"][0, 4] = 0
    with pytest.raises(UserError, match="no gaps"):
        accelerate(TINY["mpnet"].build())(**inputs)


def test_saving_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="use contraprune export"):
        accelerate(TINY["bert"].build()).save_pretrained(tmp_path)


def test_without_the_compiled_engine_torch_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_model, "library", lambda: None)
    model = bert()
    with pytest.warns(RuntimeWarning, match="the sparse engine runs in torch, several times slower"):
        fast = accelerate(model)
    assert fast.encoder_in_engine.isa == "torch"
    assert_same(model, fast, batch())


def test_the_instruction_set_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    if COMPILED is None:
        pytest.skip("needs the compiled engine")
    monkeypatch.setenv("CONTRAPRUNE_ISA", "portable")
    assert accelerate(bert()).encoder_in_engine.isa == "portable"
    monkeypatch.setenv("CONTRAPRUNE_ISA", "sse9")
    with pytest.raises(UserError, match="CONTRAPRUNE_ISA: expected one of portable"):
        accelerate(bert())
    monkeypatch.delenv("CONTRAPRUNE_ISA")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert accelerate(bert()).encoder_in_engine.isa == ISAS[-1]


def test_calls_from_several_threads_take_turns() -> None:
    model = bert()
    fast = accelerate(model, threads=2)
    inputs = [batch((length, 3)) for length in (5, 33, 64, 90)]
    with torch.no_grad():
        expected = [fast(**one).last_hidden_state for one in inputs]
    wrong: list[int] = []

    def run(number: int) -> None:
        for _ in range(20):
            if not torch.equal(fast(**inputs[number]).last_hidden_state, expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_it_goes_on_after_a_fork() -> None:
    fast = accelerate(bert(), threads=2)
    inputs = batch()
    expected = fast(**inputs).last_hidden_state
    context = multiprocessing.get_context("fork")
    result = context.Value("i", 0)

    def child() -> None:
        result.value = int(torch.equal(fast(**inputs).last_hidden_state, expected))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process = context.Process(target=child)
        process.start()
    process.join(60)
    assert result.value == 1
    assert torch.equal(fast(**inputs).last_hidden_state, expected)


@pytest.mark.parametrize("threads", [0, -1])
def test_a_number_of_threads_below_one_is_refused(threads: int) -> None:
    with pytest.raises(UserError, match="threads: expected at least 1"):
        accelerate(bert(), threads=threads)
