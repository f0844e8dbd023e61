"""Unstructured pruning: masks that follow a density schedule while the model trains."""

import math
from typing import Any

import torch

from contraprune.callbacks import GradualPruning, Snapshots
from contraprune.config import ContrastConfig, PruneRunConfig, PruningConfig
from contraprune.criteria import CRITERIA, Criterion, Movement
from contraprune.jobs import Job
from contraprune.masking import MaskedLinear, mask_linears
from contraprune.preparation import Prepared, prepare
from contraprune.saliency import fisher_saliency
from contraprune.saving import parameter_counts
from contraprune.structure import find_layers
from contraprune.trainer import MaskedTrainer

SALIENCY_EXAMPLES = 2048
SALIENCY_BATCH = 8


def prune_weights(job: Job, run: PruneRunConfig, pruning: PruningConfig, contrast: ContrastConfig) -> dict[str, Any]:
    """Runs one unstructured pruning job to its end; the content of ``results.json``."""
    snapshots = math.ceil(job.arguments.num_train_epochs) - 1
    prepared = prepare(job, run, pruning, contrast, snapshots=snapshots)
    model = prepared.model
    before = parameter_counts(model)["all"]
    criterion_class = CRITERIA[pruning.method]
    linears = mask_linears(
        {name: module for layer in find_layers(model) for name, module in layer.linears.items()},
        learn_scores=criterion_class.learns_scores,
    )
    criterion = criterion_class(linears, scope=pruning.scope)
    trainer = MaskedTrainer(
        **prepared.trainer_options(), criterion=criterion, score_learning_rate=pruning.score_learning_rate
    )
    _initialise_scores(criterion, prepared, trainer, pruning)
    schedule = GradualPruning(
        trainer,
        density=pruning.density,
        warmup=pruning.prune_warmup,
        cooldown=pruning.prune_cooldown,
        frozen=pruning.freeze_masks,
    )
    trainer.add_callback(schedule)
    if "snapshots" in contrast.sources:
        trainer.add_callback(Snapshots(lambda epoch: prepared.sources.snapshot(epoch, model, prepared.reader)))
    job.train(trainer, density_at=schedule.density_at)
    prepared.reader.remove()
    density = encoder_density(linears)
    evaluation = job.save(model, prepared.tokenizer)
    return prepared.finish(
        pruning.method,
        evaluation,
        density={"target": pruning.density, "encoder": density},
        parameters={"before": before, "after": parameter_counts(model)["nonzero"]},
    )


def encoder_density(linears: dict[str, MaskedLinear]) -> float:
    """The kept fraction of all weights in masked layers."""
    kept = sum(int(torch.count_nonzero(linear.mask)) for linear in linears.values())
    return kept / sum(linear.mask.numel() for linear in linears.values())


def _initialise_scores(
    criterion: Criterion, prepared: Prepared, trainer: MaskedTrainer, pruning: PruningConfig
) -> None:
    job = prepared.job
    if not isinstance(criterion, Movement) or pruning.score_init == "zero":
        return
    if job.directory.last_checkpoint() is not None:  # which holds the scores
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
