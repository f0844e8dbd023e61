"""Tasks without data, for what only asks a task how to read a model."""

from pathlib import Path

from contraprune.tasks.classification import TextClassification

TWO_CLASSES = TextClassification(
    name="tiny",
    train=None,
    evaluation={},
    label_names=("negative", "positive"),
    main_metric="accuracy",
    fingerprint="",
    text_columns=("text",),
)


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
