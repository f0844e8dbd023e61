"""ONNX and OpenVINO, run by these alone and by way of ``contraprune.load``, against PyTorch."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    BertConfig,
    PreTrainedModel,
    T5Config,
    pipeline,
)

import contraprune
from contraprune import exported
from contraprune.cli import main
from contraprune.export.graphs import largest_difference, sample_batch
from contraprune.saving import save_model

SHAPES = ((2, 9), (1, 1), (5, 3), (1, 30))


@pytest.fixture(scope="module")
def in_torch(shrunk: Path) -> PreTrainedModel:
    return contraprune.load(shrunk)


def export(source: Path, format: str, values: str, *more: str) -> Path:
    directory = source.parent / f"{format}-{values}"
    flags = ["--format", format, "--values", values, "--output_dir", str(directory), *more]
    assert main(["export", str(source), *flags]) == 0
    return directory


def inputs_of(batch: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch)
    mask = (np.arange(length) < rng.integers(1, length + 1, (batch, 1))).astype(np.int64)
    types = np.arange(length) * 2 // length * mask
    return {"input_ids": rng.integers(0, 30000, (batch, length)), "attention_mask": mask, "token_type_ids": types}


@torch.no_grad()
def logits(model: Any, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    result: np.ndarray = model(**tensors).logits.numpy()
    return result


@pytest.mark.parametrize("shape", SHAPES)
def test_onnx_runtime_alone(as_onnx: Path, in_torch: PreTrainedModel, shape: tuple[int, int]) -> None:
    session = onnxruntime.InferenceSession(as_onnx / "model.onnx")
    inputs = inputs_of(*shape)
    (found,) = session.run(["logits"], inputs)
    np.testing.assert_allclose(found, logits(in_torch, inputs), atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_openvino_alone(as_openvino: Path, in_torch: PreTrainedModel, shape: tuple[int, int]) -> None:
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(as_openvino / "openvino_model.xml", "CPU", options)
    inputs = inputs_of(*shape)
    np.testing.assert_allclose(compiled(inputs)["logits"], logits(in_torch, inputs), atol=1e-4)


@pytest.mark.parametrize(
    ("page", "format", "package"),
    [
        ("README.md", "onnx", "onnxruntime"),
        ("docs/deployment.md", "onnx", "onnxruntime"),
        ("docs/deployment.md", "openvino", "openvino"),
    ],
)
def test_the_code_of_the_documentation(
    page: str, format: str, package: str, in_torch: PreTrainedModel, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    (tmp_path / "exported").symlink_to(request.getfixturevalue(f"as_{format}"))
    document = (Path(__file__).parents[2] / page).read_text()
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", document, re.DOTALL) if f"import {package}\n" in block
    ]
    absent = "assert not {'torch', 'transformers', 'contraprune'} & set(sys.modules)"
    script = f"{code}\nimport json, sys\n{absent}\nprint(json.dumps(logits.tolist()))"
    shown = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    tokens = AutoTokenizer.from_pretrained(tmp_path / "exported")("a lovely film", return_tensors="np")
    np.testing.assert_allclose(json.loads(shown), logits(in_torch, dict(tokens)), atol=1e-4)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_load_and_pipelines(format: str, in_torch: PreTrainedModel, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue(f"as_{format}")
    model = contraprune.load(directory, threads=1)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert type(model).__name__ == "BertForSequenceClassification"
    assert model.config.id2label == {0: "negative", 1: "positive"}
    text = "a film of great and lasting beauty"
    (expected,) = pipeline("text-classification", model=in_torch, tokenizer=tokenizer)(text)
    (found,) = pipeline("text-classification", model=model, tokenizer=tokenizer)(text)
    assert found["label"] == expected["label"]
    assert found["score"] == pytest.approx(expected["score"], abs=1e-5)
    bare = tokenizer(text, return_tensors="pt")["input_ids"]  # as for the stock class
    torch.testing.assert_close(model(bare).logits, model(**tokenizer(text, return_tensors="pt")).logits)


def test_the_record_tells_how_far_the_outputs_are(as_onnx: Path, in_torch: PreTrainedModel) -> None:
    record = json.loads((as_onnx / "export.json").read_text())
    assert 0 < record["largest_difference"] < 1e-4
    assert record["format"] == "onnx"
    sizes = [(as_onnx / name).stat().st_size for name in ("model.onnx", "model.onnx.data")]
    assert record["bytes"]["after"] == sum(sizes)
    config = json.loads((as_onnx / "config.json").read_text())
    assert "auto_map" not in config, "it names code that is not there"


def test_differences_are_found_at_real_tokens_only(in_torch: PreTrainedModel) -> None:
    class PerToken:
        config = in_torch.config

        def __init__(self, wrong: float, *, at_padding: bool) -> None:
            self.wrong, self.at_padding = wrong, at_padding

        def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
            where = attention_mask == (0 if self.at_padding else 1)
            return {"logits": torch.full((*input_ids.shape, 3), 10.0) + self.wrong * where[..., None]}

    right: Any = PerToken(0, at_padding=False)
    names = ("input_ids", "attention_mask")
    assert largest_difference(right, PerToken(2.0, at_padding=True), names) == 0
    assert largest_difference(right, PerToken(2.0, at_padding=False), names) == pytest.approx(0.2)


@pytest.mark.parametrize("types", [0, 1, 2])
def test_outputs_are_compared_with_the_second_half_of_each_text_of_the_other_type(types: int) -> None:
    """Where the model has two token types; the texts fit into the positions it has."""
    config = BertConfig(max_position_embeddings=14, type_vocab_size=types)
    batch = sample_batch(config, ("input_ids", "attention_mask", "token_type_ids"), 3, 17)
    assert batch["attention_mask"].tolist() == [[1] * 7, [1] * 4 + [0] * 3, [1] + [0] * 6]
    halves = [[0] * 4 + [1] * 3, [0] * 2 + [1] * 2 + [0] * 3, [0] * 7]
    assert batch["token_type_ids"].tolist() == (halves if types == 2 else [[0] * 7] * 3)


def test_a_graph_that_does_not_look_at_token_types_is_found(in_torch: PreTrainedModel) -> None:
    class OfOneType:
        def __call__(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Any:
            return in_torch(input_ids, attention_mask)

    names = ("input_ids", "attention_mask", "token_type_ids")
    assert largest_difference(in_torch, OfOneType(), names) > 1e-2


def test_a_model_without_a_limit_of_positions_gets_texts_of_full_length() -> None:
    assert sample_batch(T5Config(vocab_size=61), ("input_ids",), 2, 1)["input_ids"].shape == (2, 1)


def test_onnx_int8(shrunk: Path, in_torch: PreTrainedModel) -> None:
    directory = export(shrunk, "onnx", "int8")
    graph = onnx.load(directory / "model.onnx").graph
    assert sum(node.op_type == "MatMulInteger" for node in graph.node) == 12, "6 in each layer"
    session = onnxruntime.InferenceSession(directory / "model.onnx")
    inputs = inputs_of(4, 9)
    expected = logits(in_torch, inputs)
    assert 1e-5 < np.abs(session.run(["logits"], inputs)[0] - expected).max() < 0.1 * np.abs(expected).max()


def test_openvino_int8_is_calibrated_and_measured(shrunk: Path, as_openvino: Path, in_torch: PreTrainedModel) -> None:
    directory = export(
        shrunk, "openvino", "int8", "--task", "toy", "--max_train_samples", "32", "--max_eval_samples=40"
    )
    assert '"FakeQuantize"' in (directory / "openvino_model.xml").read_text()
    record = json.loads((directory / "export.json").read_text())
    weights = (directory / "openvino_model.bin").stat().st_size
    assert weights < 0.3 * (as_openvino / "openvino_model.bin").stat().st_size
    assert record["metrics"]["accuracy"]["before"] == pytest.approx(record["metrics"]["accuracy"]["after"], abs=0.1)
    texts = ["the film was good", "a dull and empty story"]
    batch = dict(AutoTokenizer.from_pretrained(directory)(texts, return_tensors="np", padding=True))
    found, expected = logits(contraprune.load(directory), batch), logits(in_torch, batch)
    np.testing.assert_allclose(found, expected, atol=0.3 * np.abs(expected).max())
    assert np.abs(found - expected).max() > 1e-4


def test_question_answering(minilm: str, tmp_path: Path) -> None:
    """Two outputs; no tokenizer, so no token types; a model that was shrunk alike in all layers loads as stock."""
    config = BertConfig(vocab_size=61, hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=20)
    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_config(config).eval()
    save_model(model, None, tmp_path / "model")
    loaded = contraprune.load(export(tmp_path / "model", "onnx", "float32"))
    ids = torch.randint(5, 61, (2, 7))
    with torch.no_grad():
        found, expected = loaded(ids), model(ids, attention_mask=torch.ones_like(ids))
    torch.testing.assert_close(found.start_logits, expected.start_logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.end_logits, expected.end_logits, atol=1e-5, rtol=0)


def refuse(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_is_refused(shrunk: Path, as_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", str(shrunk), "--output_dir", str(tmp_path / "out"), "--format"]
    refuse([*command, "onnx", "--values", "float16"], "--values float16: expected float32 or int8", capsys)
    refuse([*command, "sparse", "--values", "int8"], "--values int8: expected float32 or float16", capsys)
    refuse([*command, "onnx", "--embeddings", "int8"], "--embeddings int8: expected --values' float32", capsys)
    refuse([*command, "openvino", "--values", "int8"], "expected training texts to calibrate on, found neither", capsys)
    refuse(["export", str(as_onnx), "--output_dir", str(tmp_path / "out")], "an onnx graph; expected the model", capsys)
    refuse(["inspect", str(as_onnx)], "an onnx graph; expected the model", capsys)
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    shrunk: Path, as_openvino: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(exported.PACKAGES, "onnx", ("onnx", "no_such_package"))
    monkeypatch.setitem(exported.PACKAGES, "openvino", ("no_such_package",))
    command = ["export", str(shrunk), "--output_dir", str(tmp_path / "out"), "--format", "onnx"]
    refuse(command, "--format onnx: needs no_such_package; pip install 'contraprune[onnx]'", capsys)
    with pytest.raises(contraprune.UserError, match=r"needs no_such_package; pip install 'contraprune\[openvino\]'"):
        contraprune.load(as_openvino)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_damaged_file_is_one_line(format: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(f"as_{format}")
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    graph = tmp_path / ("model.onnx" if format == "onnx" else "openvino_model.xml")
    graph.write_bytes(graph.read_bytes()[: graph.stat().st_size // 2])
    with pytest.raises(contraprune.UserError, match=f"expected {format} as contraprune export writes it"):
        contraprune.load(tmp_path)


def test_the_metric_is_that_of_torch(shrunk: Path, as_onnx: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = []
    for directory in (shrunk, as_onnx):
        flags = ["--task", "toy", "--max_eval_samples", "24", "--json", "--quiet"]
        assert main(["evaluate", str(directory), *flags]) == 0
        scores.append(json.loads(capsys.readouterr().out)["metrics"])
    assert scores[0] == scores[1]
