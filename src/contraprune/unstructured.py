"""Unstructured pruning: masks that follow a density schedule while the model trains."""

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from contraprune.callbacks import GradualPruning, Snapshots
from contraprune.config import ContrastConfig, PruneRunConfig
from contraprune.criteria import CRITERIA, Criterion
from contraprune.disk import steps
from contraprune.jobs import Job
from contraprune.masking import MaskedLinear, check_maskable, mask_linears
from contraprune.preparation import Prepared, prepare
from contraprune.pruning_config import PruningConfig
from contraprune.saliency import fisher_saliency
from contraprune.saving import of_pooler, parameter_counts
from contraprune.structure import find_layers
from contraprune.trainer import MaskedTrainer

SALIENCY_EXAMPLES = 2048
SALIENCY_BATCH = 8


def prune_weights(job: Job, run: PruneRunConfig, pruning: PruningConfig, contrast: ContrastConfig) -> dict[str, Any]:
    """Runs one unstructured pruning job to its end; the content of ``results.json``."""
    criterion_class = CRITERIA[pruning.method]
    check = functools.partial(check_weights, pruning=pruning)

    def snapshots(examples: int) -> int:
        of_epoch, total = steps(job.arguments, examples)
        return math.ceil(total / of_epoch) - 1

    prepared = prepare(job, run, pruning, contrast, snapshots=snapshots, check=check)
    model = prepared.model
    before = parameter_counts(model)["all"]
    linears = mask_linears(
        _linears(model),
        learn_scores=criterion_class.learns_scores,
        dense_gradients=criterion_class.dense_gradients,
    )
    criterion = criterion_class(linears, pruning)
    trainer = MaskedTrainer(**prepared.trainer_options(), criterion=criterion)
    _start(criterion, prepared, trainer, pruning)
    if not criterion.trains_weights:
        _freeze_all_but_the_head(model, linears)
    trainer.add_callback(GradualPruning(trainer, pruning))
    if "snapshots" in contrast.sources:
        trainer.add_callback(
            Snapshots(lambda epoch, now: prepared.sources.snapshot(epoch, model, prepared.reader, now=now))
        )
    job.train(trainer, density=lambda: _density(linear.mask for linear in linears.values()))
    prepared.map_representations(trainer)
    prepared.reader.remove()
    evaluation = job.save(model, prepared.tokenizer)  # masks are folded in: what is counted is what was saved
    return prepared.finish(
        pruning.method,
        evaluation,
        density={"target": pruning.density, "encoder": _density(linear.weight for linear in linears.values())},
        parameters={"before": before, "after": parameter_counts(model)["nonzero"]},
    )


def check_weights(model: PreTrainedModel, pruning: PruningConfig) -> None:
    """Refuses a model whose single weights cannot be pruned as asked.

    Raises:
        UserError: a layer cannot be masked, or its matrix does not divide by the pattern.
    """
    linears = _linears(model)
    check_maskable(linears)
    CRITERIA[pruning.method].check({name: linear.weight.shape for name, linear in linears.items()}, pruning)


def _linears(model: PreTrainedModel) -> dict[str, Any]:
    """The modules whose weights are pruned, by full name."""
    return {name: module for layer in find_layers(model) for name, module in layer.linears.items()}


def _density(matrices: Iterable[Tensor]) -> float:
    """The fraction of all entries that is not zero."""
    kept, total = 0, 0
    for matrix in matrices:
        kept, total = kept + int(torch.count_nonzero(matrix)), total + matrix.numel()
    return kept / total


def _freeze_all_but_the_head(model: PreTrainedModel, linears: Mapping[str, MaskedLinear]) -> None:
    """Leaves only the scores, the pooler and the task's head to train; a sentence encoder has no head."""
    bare = model.base_model is model
    for name, parameter in model.named_parameters():
        in_body = (bare or name.startswith(model.base_model_prefix + ".")) and not of_pooler(name)
        parameter.requires_grad_(not in_body)
    for linear in linears.values():
        if linear.mask_scores is not None:
            linear.mask_scores.requires_grad_(True)


def _start(criterion: Criterion, prepared: Prepared, trainer: MaskedTrainer, pruning: PruningConfig) -> None:
    job = prepared.job
    if not criterion.started or pruning.score_init == "zero":
        return
    if job.directory.last_checkpoint() is not None:  # which holds what came of it
        return
    if pruning.score_init == "magnitude":
        criterion.start_from({name: linear.weight.detach().abs() for name, linear in criterion.linears.items()})
        return
    saliency = fisher_saliency(
        prepared.model,
        criterion.linears,
        trainer.task,
        trainer.train_dataset,
        collator=trainer.data_collator,
        examples=SALIENCY_EXAMPLES,
        batch_size=SALIENCY_BATCH,
        temperature=prepared.contrast.kd_temperature,
        seed=job.arguments.seed,
        accelerator=trainer.accelerator,
        progress=job.progress,
    )
    criterion.start_from(saliency)
    job.lap("saliency")
