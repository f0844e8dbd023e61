"""Tasks without data, for what only asks a task how to read a model; models and options of runs that take a second."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from contraprune.tasks.classification import TextClassification
from tiny_models import FAMILIES

TWO_CLASSES = TextClassification(
    name="tiny",
    train=None,
    evaluation={},
    label_names=("negative", "positive"),
    main_metric="accuracy",
    fingerprint="",
    text_columns=("text",),
)

SENTIMENTS = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}


def small_run(tiny: Path, folder: Path, **more: object) -> dict[str, object]:
    """Options of a prune run that takes a second: 4 optimiser steps an epoch, over 64 toy sentences."""
    return {
        "model": str(tiny / "pretrained"),
        "teacher": str(tiny / "teacher"),
        "task": "toy",
        "max_train_samples": 64,
        "max_eval_samples": 48,
        "max_length": 24,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 16,
        "extra_examples": 32,
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "run"),
        **more,
    }


def family_models(folder: Path, tokenizer: PreTrainedTokenizerBase, family: str, **config: Any) -> dict[str, object]:
    """A random teacher of the family and its encoder, and options of a run that prunes it by half."""
    settings = FAMILIES[family]
    config = settings.sizes | settings.config | {"vocab_size": len(tokenizer), "pad_token_id": 0} | config
    torch.manual_seed(0)
    teacher = settings.auto_class.from_config(AutoConfig.for_model(settings.model_type, **config))
    teacher.save_pretrained(folder / "teacher")
    teacher.base_model.save_pretrained(folder / "pretrained")
    for name in ("teacher", "pretrained"):
        tokenizer.save_pretrained(folder / name)
    return {"teacher": str(folder / "teacher"), "model": str(folder / "pretrained"), "density": 0.5}
