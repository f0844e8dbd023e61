"""The two jobs: fine-tune a teacher, and prune it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel, set_seed

from contraprune.config import (
    ContrastConfig,
    DataConfig,
    FinetuneArguments,
    PruneArguments,
    PruneRunConfig,
    RunConfig,
    StructuredConfig,
    build,
    suggestion,
)
from contraprune.criteria import CRITERIA
from contraprune.disk import checkpoint_bytes
from contraprune.errors import UserError
from contraprune.failures import READING, explained
from contraprune.jobs import Job, check_smoothing
from contraprune.padding import require_padding
from contraprune.pruning_config import PruningConfig
from contraprune.publishing import prepare_repository, publish
from contraprune.report import write_card, write_report
from contraprune.saving import load_config, load_for_finetuning, load_tokenizer, parameter_counts
from contraprune.settings import refuse_unless_default
from contraprune.structure import find_layers
from contraprune.structured import plan_stages, prune_units
from contraprune.tasks import Task, load_task
from contraprune.trainer import TaskTrainer
from contraprune.unstructured import check_weights, prune_weights

FINETUNE_SETTINGS = (RunConfig, DataConfig, FinetuneArguments)
PRUNE_SETTINGS = (PruneRunConfig, DataConfig, PruningConfig, StructuredConfig, ContrastConfig, PruneArguments)
_GRADUAL = ("prune_warmup", "prune_cooldown", "freeze_masks")


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
    with explained(str(arguments.output_dir), READING):
        task = load_task(**data.source(), seed=arguments.seed)
        data = data.for_task(task, {run.model: load_config(run.model)})
        with Job.start("finetune", task, run, (data,), arguments) as job:
            if job.finished:
                return _again(job)
            if job.main:
                prepare_repository(arguments)
            return _present(job, _finetune(job, run, arguments))


def _finetune(job: Job, run: RunConfig, arguments: FinetuneArguments) -> dict[str, Any]:
    tokenizer = load_tokenizer(run.model)
    set_seed(arguments.seed)
    model, _ = load_for_finetuning(job.task.auto_class, run.model, **job.task.model_options())
    require_padding(tokenizer, model.config, name=run.model)
    job.encode_for(model, tokenizer, run.model)
    job.announce_disk(model, checkpoint=checkpoint_bytes(model))
    trainer = TaskTrainer(**job.trainer_options(model, tokenizer))
    job.lap("load")
    job.train(trainer)
    evaluation = job.save(model, tokenizer)
    results = {"method": "finetune", "metrics": evaluation.metrics, "parameters": parameter_counts(model)}
    return job.finish(results)


def run_prune(
    run: PruneRunConfig,
    data: DataConfig,
    pruning: PruningConfig,
    structured: StructuredConfig,
    contrast: ContrastConfig,
    arguments: PruneArguments,
) -> dict[str, Any]:
    """:func:`prune` with settings that were checked."""
    pruning = _resolved(pruning, structured, arguments)
    with explained(str(arguments.output_dir), READING):
        task = load_task(**data.source(), seed=arguments.seed)
        contrast = contrast.for_task(task)
        data = data.for_task(task, {name: load_config(name) for name in (run.teacher, run.model)})
        with Job.start("prune", task, run, (data, pruning, structured, contrast), arguments) as job:
            if job.finished:
                return _again(job)
            if job.main:
                prepare_repository(arguments)
            if pruning.method == "taylor":
                return _present(job, prune_units(job, run, pruning, structured, contrast))
            return _present(job, prune_weights(job, run, pruning, contrast))


def check_prune(options: Mapping[str, Any], task: Task, model: PreTrainedModel) -> None:
    """Refuses options that :func:`prune` would refuse for this task and this model, before anything is run.

    Raises:
        UserError: settings contradict each other or have no effect, or the model cannot be pruned as they say.
    """
    _, _, pruning, structured, contrast, arguments = build(PRUNE_SETTINGS, options)
    assert isinstance(pruning, PruningConfig)
    assert isinstance(structured, StructuredConfig)
    assert isinstance(contrast, ContrastConfig)
    assert isinstance(arguments, PruneArguments)
    pruning = _resolved(pruning, structured, arguments)
    contrast.for_task(task)
    check_smoothing(task, arguments)
    if pruning.method == "taylor":
        plan_stages(find_layers(model), pruning, structured)
    else:
        check_weights(model, pruning)


def _again(job: Job) -> dict[str, Any]:
    """The results of a run that was finished before; what it did not present or publish then is done now."""
    results = job.directory.read_results()
    if not job.directory.report.is_file():  # the last thing written
        return _present(job, results)
    if job.main:
        publish(job.directory, job.arguments)
    return results


def _present(job: Job, results: dict[str, Any]) -> dict[str, Any]:
    """Writes the card and the report of a run that is finished, and publishes the model if that was asked for."""
    if job.main:
        write_card(job.directory.path, repository=job.arguments.hub_model_id)
        write_report(job.directory.path)
        publish(job.directory, job.arguments)
    return results


def _resolved(pruning: PruningConfig, structured: StructuredConfig, arguments: PruneArguments) -> PruningConfig:
    """The settings with what the method makes of those that were left open; ``arguments`` are changed in place.

    Raises:
        UserError: the method is unknown, or a setting has no effect with it.
    """
    whole_units = pruning.method == "taylor"
    _check_method(pruning)
    if not whole_units:
        names = [f.name for f in dataclasses.fields(structured)]
        refuse_unless_default(structured, names, f"only with --method taylor, not with {pruning.method}")
    if arguments.num_train_epochs is None:
        arguments.num_train_epochs = 1.0 if whole_units else 8.0
    if arguments.learning_rate is None:  # a stage removes little, and its training has to lose little
        arguments.learning_rate = 5e-5 if whole_units else 2e-4
    pruning = structured.complete(pruning)
    if pruning.dropout is None and whole_units:  # representations are compared with those in banks, made without
        pruning = dataclasses.replace(pruning, dropout=0.0)
    if whole_units and arguments.resume_from_checkpoint is not None:
        found = f"--resume_from_checkpoint {arguments.resume_from_checkpoint}"
        raise UserError(f"{found}: not with --method taylor, whose stages have checkpoints of their own; leave it off")
    return pruning


def _check_method(pruning: PruningConfig) -> None:
    """Refuses an unknown method, and settings that have no effect with the one chosen.

    Raises:
        UserError: one of these.
    """
    method = pruning.method
    if method == "taylor":
        everything = sorted({*_GRADUAL, *set().union(*(criterion.settings for criterion in CRITERIA.values()))})
        refuse_unless_default(pruning, everything, "only for pruning single weights, not with --method taylor")
        return
    if method not in CRITERIA:
        known = (*CRITERIA, "taylor")
        raise UserError(f"--method: expected one of {', '.join(known)}, found {method}{suggestion(method, set(known))}")
    chosen = CRITERIA[method]
    for name in sorted(set().union(*(criterion.settings for criterion in CRITERIA.values())) - chosen.settings):
        others = [other for other, criterion in CRITERIA.items() if name in criterion.settings]
        refuse_unless_default(pruning, (name,), f"only with --method {', '.join(others)}, not with {method}")
    if not chosen.trains_weights:
        refuse_unless_default(pruning, ("freeze_embeddings",), f"--method {method} trains no embeddings anyway")
