"""The example service, with a model in each format, against the model in PyTorch."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from transformers import AutoModel, AutoTokenizer

import contraprune
from contraprune.cli import main

TEXTS = ["a film of great and lasting beauty", "dull", "the story of a man and a very long road " * 90]


@pytest.fixture(scope="module")
def serve() -> Any:
    path = Path(__file__).parents[2] / "examples" / "serve.py"
    spec = importlib.util.spec_from_file_location("serve", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def as_sparse(shrunk: Path) -> Path:
    directory = shrunk.parent / "sparse"
    assert main(["export", str(shrunk), "--format", "sparse", "--output_dir", str(directory)]) == 0
    return directory


@pytest.mark.parametrize("format", ["shrunk", "as_sparse", "as_onnx", "as_openvino"])
def test_every_format_gives_the_scores_of_torch(
    format: str, serve: Any, shrunk: Path, request: pytest.FixtureRequest
) -> None:
    client = TestClient(serve.build(str(request.getfixturevalue(format)), threads=1))
    assert client.get("/health").json() == {
        "model": "BertForSequenceClassification",
        "labels": ["negative", "positive"],
    }
    answer = client.post("/classify", json={"texts": TEXTS})
    assert answer.status_code == 200
    model, tokenizer = contraprune.load(shrunk), AutoTokenizer.from_pretrained(shrunk)
    for text, scores in zip(TEXTS, answer.json()["scores"], strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(text, truncation=True, max_length=512, return_tensors="pt")).logits[0]
        negative, positive = logits.softmax(-1).tolist()
        assert scores == pytest.approx({"negative": negative, "positive": positive}, abs=1e-4)


@pytest.mark.parametrize("texts", [[], ["a"] * 65, ["a" * 20_001], "a", [1]])
def test_bad_requests_are_refused(texts: Any, serve: Any, shrunk: Path) -> None:
    client = TestClient(serve.build(str(shrunk), threads=1))
    assert client.post("/classify", json={"texts": texts}).status_code == 422


def test_other_models_are_refused(serve: Any, tiny: Path, tmp_path: Path) -> None:
    AutoModel.from_pretrained(tiny / "pretrained").save_pretrained(tmp_path)
    with pytest.raises(contraprune.UserError, match="expected a text classifier, found BertModel"):
        serve.build(str(tmp_path), threads=1)
