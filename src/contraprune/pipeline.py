"""The two jobs: fine-tune a teacher, and prune it."""

import dataclasses
from typing import Any

from transformers import set_seed

from contraprune.config import (
    ContrastConfig,
    DataConfig,
    FinetuneArguments,
    PruneArguments,
    PruneRunConfig,
    PruningConfig,
    RunConfig,
    StructuredConfig,
    build,
    refuse_unless_default,
)
from contraprune.jobs import Job
from contraprune.saving import load_for_finetuning, load_tokenizer, parameter_counts
from contraprune.structured import prune_units
from contraprune.trainer import TaskTrainer
from contraprune.unstructured import prune_weights

FINETUNE_SETTINGS = (RunConfig, DataConfig, FinetuneArguments)
PRUNE_SETTINGS = (PruneRunConfig, DataConfig, PruningConfig, StructuredConfig, ContrastConfig, PruneArguments)
_OF_SCORES = ("score_init", "score_learning_rate")
_OF_WEIGHTS = ("scope", *_OF_SCORES, "prune_warmup", "prune_cooldown", "freeze_masks")


def finetune(**options: Any) -> dict[str, Any]:
    """Fine-tunes a pre-trained model into a teacher; ``options`` are the flags of ``contraprune finetune``.

    Returns:
        The content of ``results.json``; the model is in ``OUTPUT_DIR/model``.

    Raises:
        UserError: a setting, a file or a model cannot be used.
    """
    return run_finetune(*build(FINETUNE_SETTINGS, options))  # type: ignore[arg-type]


def prune(**options: Any) -> dict[str, Any]:
    """Prunes a fine-tuned model; ``options`` are the flags of ``contraprune prune``.

    Returns:
        The content of ``results.json``; the model is in ``OUTPUT_DIR/model``.

    Raises:
        UserError: a setting, a file or a model cannot be used.
    """
    return run_prune(*build(PRUNE_SETTINGS, options))  # type: ignore[arg-type]


def run_finetune(run: RunConfig, data: DataConfig, arguments: FinetuneArguments) -> dict[str, Any]:
    """:func:`finetune` with settings that were checked."""
    job = Job.start("finetune", run, (data,), arguments)
    if job.finished:
        return job.directory.read_results()
    tokenizer = load_tokenizer(run.model)
    set_seed(arguments.seed)
    model, _ = load_for_finetuning(job.task.auto_class, run.model, **job.task.model_options())
    job.encode_for(model, tokenizer, run.model)
    trainer = TaskTrainer(**job.trainer_options(model, tokenizer))
    job.lap("load")
    job.train(trainer)
    evaluation = job.save(model, tokenizer)
    return job.finish({"method": "finetune", "metrics": evaluation.metrics, "parameters": parameter_counts(model)})


def run_prune(
    run: PruneRunConfig,
    data: DataConfig,
    pruning: PruningConfig,
    structured: StructuredConfig,
    contrast: ContrastConfig,
    arguments: PruneArguments,
) -> dict[str, Any]:
    """:func:`prune` with settings that were checked."""
    whole_units = pruning.method == "taylor"
    if whole_units:
        refuse_unless_default(pruning, _OF_WEIGHTS, "only for pruning single weights, not with --method taylor")
    else:
        names = [f.name for f in dataclasses.fields(structured)]
        if pruning.method != "movement":
            refuse_unless_default(pruning, _OF_SCORES, f"only with learned scores, not with --method {pruning.method}")
        refuse_unless_default(structured, names, f"only with --method taylor, not with {pruning.method}")
    if arguments.num_train_epochs is None:
        arguments.num_train_epochs = 1.0 if whole_units else 8.0
    job = Job.start("prune", run, (data, pruning, structured, contrast), arguments)
    if job.finished:
        return job.directory.read_results()
    if whole_units:
        return prune_units(job, run, pruning, structured, contrast)
    return prune_weights(job, run, pruning, contrast)
