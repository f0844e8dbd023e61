"""Metrics of a finished model on a task's evaluation splits."""

from typing import Any

import torch

from contraprune.config import DataConfig, EvaluationConfig
from contraprune.exported import exported_format, load_exported
from contraprune.files import model_in
from contraprune.padding import require_padding
from contraprune.prediction import Evaluation, evaluate
from contraprune.saving import load_config, load_pretrained, load_tokenizer
from contraprune.tasks import load_task


def evaluate_path(path: str, data: DataConfig, config: EvaluationConfig) -> Evaluation:
    """Evaluates a model directory, run directory or hub name, on a GPU where there is one; graphs in their runtimes.

    Raises:
        UserError: the model or the data cannot be used, or their labels differ.
    """
    path = model_in(path)
    model_config = load_config(path)
    names = [label for _, label in sorted(model_config.id2label.items())]
    task = load_task(**data.source(), seed=0, need_train=False, known_labels=names).for_model(model_config, path)
    max_length = data.for_task(task, {path: model_config}).max_length
    assert max_length is not None
    model: Any
    if exported_format(path) is not None:
        model = load_exported(path)
    else:
        model = load_pretrained(task.auto_class, path).to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(path)
    require_padding(tokenizer, model.config, name=path)
    encoded = {split: task.encode(rows, tokenizer, max_length=max_length) for split, rows in task.evaluation.items()}
    return evaluate(
        model, task, encoded, task.collator(tokenizer), batch_size=config.batch_size, progress=not config.quiet
    )
