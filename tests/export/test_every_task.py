"""Every kind of task and other families than BERT as graphs: the outputs of PyTorch, and metrics of ``evaluate``."""

import functools
import inspect
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
)

import contraprune
from contraprune.cli import main
from contraprune.saving import save_model
from contraprune.shrinking import shrink
from contraprune.structure import find_layers
from tiny_models import FAMILIES

PLACES = ("Rome", "Paris", "New York", "Lima", "Oslo", "Bath", "Kiel", "Bonn")
PAIRS = [[f"where does Jan of {place} live?", f"Jan has a house in {place}, near the river."] for place in PLACES]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of task: its own head, a row of its file for each place, the metric that comes first."""

    auto_class: Any
    row: Callable[[int, str], dict[str, Any]]
    metric: str
    options: dict[str, Any] = field(default_factory=dict)
    evaluation_row: Callable[[int, str], dict[str, Any]] | None = None  # where it differs

    def write(self, folder: Path) -> None:
        for name, row in (("train", self.row), ("dev", self.evaluation_row or self.row)):
            lines = [json.dumps(row(number, place)) for number, place in enumerate(PLACES)]
            (folder / f"{name}.jsonl").write_text("\n".join(lines))


def _question(number: int, place: str) -> dict[str, Any]:
    question, context = PAIRS[number]
    answers = {"text": [place], "answer_start": [context.index(place)]}
    return {"question": question, "context": context, "answers": answers}


def _similar(number: int, place: str) -> dict[str, Any]:
    return {"sentence1": f"a house in {place}", "sentence2": "a river", "label": number / 4}


def _tagged(number: int, place: str) -> dict[str, Any]:
    words = place.split()
    return {"tokens": ["in", *words, "now"], "ner_tags": ["O", *["B-LOC", "I-LOC"][: len(words)], "O"]}


def _labelled(number: int, place: str) -> dict[str, Any]:
    return {"text": f"a house in {place}", "labels": ["old", "big"][: number % 3]}


KINDS = {
    "token_classification": Kind(
        auto_class=AutoModelForTokenClassification,
        row=_tagged,
        metric="f1",
        options={"id2label": {0: "O", 1: "B-LOC", 2: "I-LOC"}},
    ),
    "question_answering": Kind(
        auto_class=AutoModelForQuestionAnswering, row=_question, metric="f1", options={"num_labels": 2}
    ),
    "embedding": Kind(
        auto_class=AutoModel,
        row=lambda _, place: {"text": f"a house in {place}"},
        evaluation_row=_similar,
        metric="spearman",
    ),
    "regression": Kind(
        auto_class=AutoModelForSequenceClassification, row=_similar, metric="spearman", options={"num_labels": 1}
    ),
    "multi_label": Kind(
        auto_class=AutoModelForSequenceClassification,
        row=_labelled,
        metric="f1_micro",
        options={"num_labels": 2, "id2label": {0: "old", 1: "big"}, "problem_type": "multi_label_classification"},
    ),
}


def tensors(outputs: Any) -> dict[str, Tensor]:
    return {name: value for name, value in outputs.items() if isinstance(value, Tensor)}


@torch.no_grad()
def outputs(expected: PreTrainedModel, found: Any, tokenizer: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Both models' outputs at real tokens, for batches of pairs of texts of several sizes; their token types are both
    zeros and ones."""
    for size in (1, 2, 5):
        batch = tokenizer(*map(list, zip(*PAIRS[2 : 2 + size], strict=True)), padding=True, return_tensors="pt")
        if "token_type_ids" not in inspect.signature(expected.forward).parameters:
            batch.pop("token_type_ids", None)
        first, second = tensors(expected(**batch)), tensors(found(**batch))
        assert first.keys() == second.keys()
        for name, value in first.items():
            per_token = value.shape[:2] == batch["input_ids"].shape
            real = batch["attention_mask"].bool() if per_token else ...
            yield value[real], second[name][real]


@pytest.fixture(scope="module")
def build(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """A function from a kind and a family to a run directory with a shrunk model, and data files.

    A layer without neurons (or with one, where its family needs that) and with three of four heads; of ModernBERT
    another before it, without heads, since its first one attends otherwise than the next.
    """

    @functools.cache
    def make(name: str, family: str) -> Path:
        kind, known = KINDS[name], FAMILIES[family]
        tokenizer = AutoTokenizer.from_pretrained(tiny / "teacher")
        layers = "n_layers" if "n_layers" in known.sizes else "num_hidden_layers"
        options = {"vocab_size": len(tokenizer), layers: 2 if family == "modernbert" else 1} | kind.options
        model: Any = replace(known, auto_class=kind.auto_class, config=known.config | options).build()
        *others, last = found = find_layers(model)
        heads = [*(int(not layer.heads.may_be_empty) for layer in others), 3]
        neurons = [*(7 for _ in others), int(not last.neurons.may_be_empty)]
        keep_heads = [torch.arange(4) < count for count in heads]
        shrink(model, found, keep_heads, [torch.arange(20) < count for count in neurons])
        folder = tmp_path_factory.mktemp(name)
        save_model(model, tokenizer, folder / "model")
        kind.write(folder)
        return folder

    return make


def export(folder: Path, name: str, format: str, values: str) -> tuple[Path, dict[str, Any]]:
    """Exports and measures; the directory and its record, whose metrics are finite and of the kind."""
    directory = folder / f"{format}-{values}"
    data = ["--task_type", name, "--max_length", "40"]
    data += ["--train_file", str(folder / "train.jsonl"), "--validation_file", str(folder / "dev.jsonl")]
    flags = ["--format", format, "--values", values, "--output_dir", str(directory), *data]
    assert main(["export", str(folder), *flags]) == 0
    record = json.loads((directory / "export.json").read_text())
    assert next(iter(record["metrics"])) == KINDS[name].metric
    assert all(math.isfinite(value) for both in record["metrics"].values() for value in both.values())
    return directory, record


# Every kind in both formats, once of them in float32, and every family. What is special about these: no token types,
# or none that the model looks at; layers without any heads or neurons; an attention of its own.
@pytest.mark.parametrize(
    ("name", "family", "format"),
    [
        ("token_classification", "modernbert", "openvino"),
        ("question_answering", "deberta-v2", "onnx"),
        ("embedding", "mpnet", "onnx"),
        ("regression", "roberta", "openvino"),
        ("multi_label", "distilbert", "onnx"),
    ],
)
def test_outputs_and_metrics_are_those_of_torch(
    name: str, family: str, format: str, build: Callable[[str, str], Path]
) -> None:
    folder = build(name, family)
    directory, record = export(folder, name, format, "float32")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    for expected, found in outputs(contraprune.load(folder), contraprune.load(directory), tokenizer):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    for metric, both in record["metrics"].items():
        assert both["after"] == pytest.approx(both["before"], abs=1e-3), metric


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("token_classification", "onnx"),
        ("question_answering", "openvino"),
        ("embedding", "openvino"),
        ("regression", "onnx"),
        ("multi_label", "onnx"),
    ],
)
def test_int8_of_every_kind_runs_and_is_measured(name: str, format: str, build: Callable[[str, str], Path]) -> None:
    folder = build(name, "bert")
    directory, record = export(folder, name, format, "int8")
    assert "largest_difference" not in record
    tokenizer = AutoTokenizer.from_pretrained(directory)
    pairs = list(outputs(contraprune.load(folder), contraprune.load(directory), tokenizer))
    assert all(found.isfinite().all() for _, found in pairs)
    assert any((found - expected).abs().max() > 1e-4 for expected, found in pairs), "it was not quantized"
