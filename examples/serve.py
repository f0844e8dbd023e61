"""A small service that classifies texts with a model in any format that contraprune writes.

    pip install "contraprune[serve]"     # and contraprune[onnx] or contraprune[openvino] for these formats
    python examples/serve.py MODEL [--host 127.0.0.1] [--port 8000] [--threads 2]
    curl localhost:8000/classify -H "content-type: application/json" -d '{"texts": ["a lovely film"]}'

MODEL is a directory with a tokenizer: what ``contraprune prune`` made, or ``contraprune export`` of it.
"""

import argparse
import sys
from threading import Lock
from typing import Annotated, Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, Field
from transformers import pipeline

import contraprune
from contraprune.saving import load_tokenizer, model_directory

MOST_TEXTS = 64
MOST_CHARACTERS = 20_000
Text = Annotated[str, Field(max_length=MOST_CHARACTERS)]


class Request(BaseModel):
    """Texts to classify; each is cut to what the model reads."""

    texts: Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)]


class Answer(BaseModel):
    """For each text the score of each label: probabilities, which add up to one unless labels are independent."""

    scores: list[dict[str, float]]


def build(path: str, *, threads: int) -> FastAPI:
    """The service for one model.

    Raises:
        UserError: it cannot be loaded, or is no text classifier.
    """
    torch.set_num_threads(threads)
    model: Any = contraprune.load(path, threads=threads)
    name = type(model).__name__
    if not name.endswith("ForSequenceClassification"):
        raise contraprune.UserError(f"{path}: expected a text classifier, found {name}")
    tokenizer = load_tokenizer(str(model_directory(path)))
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512))
    lock = Lock()  # a model computes one batch at a time, with all of its threads
    service = FastAPI(title="contraprune", version=contraprune.__version__)

    @service.get("/health")
    def health() -> dict[str, Any]:
        return {"model": name, "labels": [label for _, label in sorted(model.config.id2label.items())]}

    @service.post("/classify")
    def classify_texts(request: Request) -> Answer:
        with lock, torch.inference_mode():
            found = classify(request.texts, batch_size=len(request.texts), truncation=True, max_length=longest)
        return Answer(scores=[{score["label"]: score["score"] for score in scores} for scores in found])

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
