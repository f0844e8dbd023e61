"""The example service, with a model in each format, against the model in PyTorch."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)

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


@pytest.fixture
def client(serve: Any, tiny: Path, tmp_path: Path) -> Any:
    """A function from a model class and options of its configuration to a random model, its tokenizer, and a client of
    the service for it."""

    def start(model_class: Any, **options: Any) -> tuple[Any, Any, TestClient]:
        config = BertConfig.from_pretrained(tiny / "pretrained", **options)
        torch.manual_seed(0)
        model, tokenizer = model_class(config).eval(), AutoTokenizer.from_pretrained(tiny / "pretrained")
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return model, tokenizer, TestClient(serve.build(str(tmp_path / "model"), threads=1))

    return start


@torch.no_grad()
def test_independent_labels_have_probabilities_of_their_own(client: Any) -> None:
    names = {0: "joy", 1: "fear", 2: "awe"}
    options = {"id2label": names, "problem_type": "multi_label_classification"}
    model, tokenizer, service = client(BertForSequenceClassification, **options)
    scores = service.post("/classify", json={"texts": TEXTS[:2]}).json()["scores"]
    for text, found in zip(TEXTS, scores, strict=False):
        expected = model(**tokenizer(text, return_tensors="pt")).logits[0].sigmoid().tolist()
        assert found == pytest.approx(dict(zip(names.values(), expected, strict=True)), abs=1e-5)


@torch.no_grad()
def test_pairs_of_texts_get_a_number(client: Any) -> None:
    model, tokenizer, service = client(BertForSequenceClassification, num_labels=1)
    pairs = [["a man rides", "someone is riding"], ["a man rides", "a plate of soup"]]
    scores = service.post("/score", json={"texts": pairs}).json()["scores"]
    expected = [model(**tokenizer(*pair, return_tensors="pt")).logits.item() for pair in pairs]
    assert scores == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_words_are_tagged(client: Any) -> None:
    model, tokenizer, service = client(BertForTokenClassification, id2label={0: "ODD", 1: "EVEN"})
    text = "unbelievably Anna Karenina lives"
    encoding = tokenizer(text, return_tensors="pt")
    shares = model(**encoding).logits[0].softmax(-1)
    words = encoding.word_ids()
    expected: list[dict[str, Any]] = []  # words with the label of their first piece, equal neighbours together
    for word in range(4):
        first = words.index(word)
        start, end = encoding.word_to_chars(word)
        label = model.config.id2label[int(shares[first].argmax())]
        if expected and expected[-1]["label"] == label:
            expected[-1]["end"] = end
        else:
            expected.append({"label": label, "start": start, "end": end})
    answer = service.post("/tag", json={"texts": [text, " "]}).json()["entities"]
    assert [{name: entity[name] for name in ("label", "start", "end")} for entity in answer[0]] == expected
    assert answer[1] == []
    assert service.post("/tag", json={"texts": [["a", "b"]]}).status_code == 422


@torch.no_grad()
def test_a_question_gets_the_best_span_of_its_context(client: Any) -> None:
    model, tokenizer, service = client(BertForQuestionAnswering)
    question, context = "who wrote it", "The novel was written by Leo Tolstoy in 1877."
    encoding = tokenizer(question, context, return_tensors="pt")
    outputs = model(**encoding)
    places = [i for i, sequence in enumerate(encoding.sequence_ids()) if sequence == 1]
    scored = [
        (float(outputs.start_logits[0, i] + outputs.end_logits[0, j]), i, j) for i in places for j in places if i <= j
    ]
    score, first, last = max(scored)
    start, end = encoding.token_to_chars(first).start, encoding.token_to_chars(last).end
    found = service.post("/answer", json={"question": question, "context": context}).json()
    assert (found["answer"], found["start"], found["end"]) == (context[start:end], start, end)
    nothing = float(outputs.start_logits[0, 0] + outputs.end_logits[0, 0])
    assert (found["score"], found["score_of_no_answer"]) == pytest.approx((score, nothing), abs=1e-5)
    assert service.post("/answer", json={"question": question, "context": context * 60}).status_code == 200
    assert service.post("/answer", json={"question": question, "context": " "}).status_code == 422


@torch.no_grad()
def test_texts_get_vectors_of_unit_length(client: Any) -> None:
    model, tokenizer, service = client(AutoModel.from_config)
    vectors = torch.tensor(service.post("/embed", json={"texts": TEXTS[:2]}).json()["vectors"])
    for text, vector in zip(TEXTS, vectors, strict=False):
        mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        torch.testing.assert_close(vector, mean / mean.norm(), atol=1e-5, rtol=0)
    assert service.post("/embed", json={"texts": [["a", "b"]]}).status_code == 422


def test_other_models_are_refused(client: Any) -> None:
    with pytest.raises(contraprune.UserError, match=r"expected a model of one of the tasks .*, found BertForMaskedLM"):
        client(BertForMaskedLM)
