"""A small service for a model of any kind of task, in any format that contraprune writes.

    pip install "contraprune[serve]"     # and contraprune[onnx] or contraprune[openvino] for these formats
    python examples/serve.py MODEL [--host 127.0.0.1] [--port 8000] [--threads 2]
    curl localhost:8000/classify -H "content-type: application/json" -d '{"texts": ["a lovely film"]}'

MODEL is a directory with a tokenizer: what ``contraprune prune`` made, or ``contraprune export`` of it. Its kind gives
the service its one address: ``/classify`` (labels that exclude each other or do not), ``/score`` (regression), ``/tag``
(token classification), ``/answer`` (question answering) or ``/embed``; ``/docs`` describes it, ``/health`` names it.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Annotated, Any

import torch
import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from transformers import PreTrainedTokenizerBase, pipeline

import contraprune
from contraprune.pooling import pool
from contraprune.saving import load_tokenizer, model_directory
from contraprune.tasks.sentences import read_sentence_model
from contraprune.tasks.spans import AnswerOptions, Windows, best_answers
from contraprune.tasks.windows import OF_METRICS, WindowMaker

MOST_TEXTS = 64
MOST_CHARACTERS = 20_000
QUESTION_LENGTH = 384  # tokens of a window of question and context
Text = Annotated[str, Field(max_length=MOST_CHARACTERS)]


class Texts(BaseModel):
    """Texts, or for a model of pairs [first, second]; each is cut to what the model reads."""

    texts: Annotated[list[Text] | list[tuple[Text, Text]], Field(min_length=1, max_length=MOST_TEXTS)]


class Labels(BaseModel):
    """For each text the score of each label: probabilities, which add up to one unless labels are independent."""

    scores: list[dict[str, float]]


class Scores(BaseModel):
    """A number for each text, or pair of texts."""

    scores: list[float]


class Entity(BaseModel):
    """Neighbouring words with one label: characters ``start`` to ``end`` of the text."""

    label: str
    score: float
    start: int
    end: int


class Tags(BaseModel):
    entities: list[list[Entity]]


class Question(BaseModel):
    question: Text
    context: Text


class Answer(BaseModel):
    """Characters ``start`` to ``end`` of the context; the scores are sums of two logits."""

    answer: str
    start: int
    end: int
    score: float
    score_of_no_answer: float


class Vectors(BaseModel):
    """A vector of unit length for each text."""

    vectors: list[list[float]]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model that computes one batch at a time, with all of its threads."""

    path: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    longest: int
    lock: Lock = field(default_factory=Lock)

    def run(self, batch: Any) -> Any:
        with self.lock, torch.inference_mode():
            return self.model(**batch)

    def read(self, texts: Sequence[Any]) -> tuple[Any, Any]:
        """The model's outputs for texts or pairs of them, and the batch that it was given."""
        columns = [list(texts)] if isinstance(texts[0], str) else [list(column) for column in zip(*texts, strict=True)]
        options = {"padding": True, "truncation": True, "max_length": self.longest, "return_tensors": "pt"}
        batch = self.tokenizer(*columns, **options)
        return self.run(batch), batch


def classifier(service: FastAPI, loaded: Loaded) -> None:
    config = loaded.model.config
    names = [label for _, label in sorted(config.id2label.items())]
    independent = config.problem_type == "multi_label_classification"

    def classify(request: Texts) -> Labels:
        logits = loaded.read(request.texts)[0].logits
        shares = logits.sigmoid() if independent else logits.softmax(-1)
        return Labels(scores=[dict(zip(names, row, strict=True)) for row in shares.tolist()])

    def score(request: Texts) -> Scores:
        return Scores(scores=loaded.read(request.texts)[0].logits[:, 0].tolist())

    if len(names) == 1:
        service.post("/score")(score)
    else:
        service.post("/classify")(classify)


def tagger(service: FastAPI, loaded: Loaded) -> None:
    loaded.tokenizer.model_max_length = loaded.longest
    # The model answers for the first piece of each word.
    options = {"model": loaded.model, "tokenizer": loaded.tokenizer, "aggregation_strategy": "first"}
    find = pipeline("token-classification", **options)

    @service.post("/tag")
    def tag(request: Texts) -> Tags:
        if not isinstance(request.texts[0], str):
            raise HTTPException(422, "expected texts, found pairs of texts")
        with loaded.lock, torch.inference_mode():
            found = [find(text) if text.strip() else [] for text in request.texts]
        return Tags(entities=[[Entity(label=entity.pop("entity_group"), **entity) for entity in row] for row in found])


def answerer(service: FastAPI, loaded: Loaded) -> None:
    options = AnswerOptions()
    length = min(loaded.longest, QUESTION_LENGTH)
    windows = WindowMaker(loaded.tokenizer, max_length=length, overlap=options.doc_stride, of_metrics=True)

    @service.post("/answer")
    def answer(request: Question) -> Answer:
        unknown = {"text": [], "answer_start": []}
        rows = {"question": [request.question], "context": [request.context], "answers": [unknown], "idx": [0]}
        columns = windows(rows)
        inputs = {name: columns[name] for name in loaded.tokenizer.model_input_names}
        outputs = loaded.run(loaded.tokenizer.pad(inputs, padding_side="right", return_tensors="pt"))
        logits = [*torch.stack([outputs.start_logits, outputs.end_logits], dim=-1).numpy()]
        searched = Windows(*(columns[name] for name in OF_METRICS))
        [best] = best_answers(logits, searched, n_best=options.n_best, max_answer_length=options.max_answer_length)
        if not math.isfinite(best.score):
            raise HTTPException(422, "expected words in the context, found none")
        found = {"start": best.start, "end": best.end, "score": best.score, "score_of_no_answer": best.null_score}
        return Answer(answer=request.context[best.start : best.end], **found)


def embedder(service: FastAPI, loaded: Loaded) -> None:
    sentences = read_sentence_model(loaded.path, loaded.model.config.hidden_size)

    @service.post("/embed")
    def embed(request: Texts) -> Vectors:
        if not isinstance(request.texts[0], str):
            raise HTTPException(422, "expected texts, found pairs of texts")
        outputs, batch = loaded.read([sentences.prepare(str(text)) for text in request.texts])
        vectors = pool(outputs.last_hidden_state, batch["attention_mask"], pooling=sentences.pooling)
        return Vectors(vectors=torch.nn.functional.normalize(vectors, dim=-1).tolist())


KINDS: dict[str, Callable[[FastAPI, Loaded], None]] = {  # by the end of the model's class name
    "ForSequenceClassification": classifier,
    "ForTokenClassification": tagger,
    "ForQuestionAnswering": answerer,
    "Model": embedder,
}


def build(path: str, *, threads: int) -> FastAPI:
    """The service for one model.

    Raises:
        UserError: it cannot be loaded, or is of no kind that is served.
    """
    torch.set_num_threads(threads)
    model: Any = contraprune.load(path, threads=threads)
    name = type(model).__name__
    kind = next((kind for end, kind in KINDS.items() if name.endswith(end)), None)
    if kind is None:
        raise contraprune.UserError(f"{path}: expected a model of one of the tasks of contraprune, found {name}")
    directory = str(model_directory(path))
    tokenizer = load_tokenizer(directory)
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512))
    service = FastAPI(title="contraprune", version=contraprune.__version__)

    @service.get("/health")
    def health() -> dict[str, Any]:
        return {"model": name, "labels": [label for _, label in sorted(model.config.id2label.items())]}

    kind(service, Loaded(path=directory, model=model, tokenizer=tokenizer, longest=longest))
    return service


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    try:
        service = build(options.model, threads=options.threads)
    except contraprune.UserError as error:
        sys.exit(f"serve: {error}")
    uvicorn.run(service, host=options.host, port=options.port)


if __name__ == "__main__":
    main()
