"""What a study will run: its trials, each checked before the first is started, and the options that all share."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from contraprune.config import ContrastConfig, DataConfig, PruneArguments, PruneRunConfig, StructuredConfig
from contraprune.errors import UserError
from contraprune.jobs import resolved_options
from contraprune.pipeline import check_prune
from contraprune.pruning_config import PruningConfig
from contraprune.study.grid import StudyConfig, Trial, trials, varies_density
from contraprune.tasks import Task


def planned(
    kind: str,
    config: StudyConfig,
    run: PruneRunConfig,
    data: DataConfig,
    pruning: PruningConfig,
    structured: StructuredConfig,
    contrast: ContrastConfig,
    arguments: PruneArguments,
    *,
    task: Task,
    model: PreTrainedModel,
    has_classes: bool,
) -> tuple[list[Trial], dict[str, Any]]:
    """The trials of a study, in the order they are started, and the options of ``contraprune prune`` they share.

    Args:
        model: what is pruned.
        has_classes: whether the task's examples have classes.

    Raises:
        UserError: a flag has no effect in this study or cannot be handed on to another process, or a trial that was
            asked for is none that ``contraprune prune`` would run.
    """
    if varies_density(kind, config):
        pruning, structured = _for_any_density(pruning, structured)
    pruning = structured.complete(pruning)
    asked = trials(kind, config, pruning, contrast, seed=arguments.seed, has_classes=has_classes)
    shared = _shared_options((run, data, pruning, structured, contrast), arguments)
    refused = {}
    for trial in asked:
        try:
            check_prune({**shared, **trial.options}, task, model)
        except UserError as error:
            refused[trial.name] = str(error)
    return _without_refused(kind, config, asked, refused), shared


def _for_any_density(pruning: PruningConfig, structured: StructuredConfig) -> tuple[PruningConfig, StructuredConfig]:
    """The settings without those that decide a density of their own, where the study says the densities."""
    log = logging.getLogger(__name__)
    if structured.head_density is not None and structured.neuron_density is not None:
        raise UserError(
            f"--head_density {structured.head_density} and --neuron_density {structured.neuron_density}: leave nothing "
            "to the densities of this study; give one of them at most"
        )
    if pruning.final_penalty is not None:
        log.warning(
            "--final_penalty %g is left out: this study sets densities, and the penalty is steered to each of them",
            pruning.final_penalty,
        )
        pruning = dataclasses.replace(pruning, final_penalty=None)
    if structured.stages is not None:
        number = len(structured.percents())
        log.warning(
            "--stages %s is left out: this study sets densities, and takes %d equal stages to each of them",
            structured.stages,
            number,
        )
        structured = dataclasses.replace(structured, stages=None, num_stages=number)
    return pruning, structured


def _without_refused(kind: str, config: StudyConfig, asked: Sequence[Trial], refused: Mapping[str, str]) -> list[Trial]:
    """The trials that can be run. What is left out, said in a line each, are methods and densities that nobody named.

    Raises:
        UserError: a trial that was named is refused, or all are.
    """
    left = [trial for trial in asked if trial.name not in refused]
    usual_methods = kind == "criteria" and config.methods is None
    usual_densities = kind == "sparsity" and config.densities is None
    working = {trial.method for trial in left}
    left_out: dict[str, str] = {}
    for trial in asked:
        if (reason := refused.get(trial.name)) is None:
            continue
        works_elsewhere = trial.method in working  # at another density
        if not left or not (usual_methods or (usual_densities and works_elsewhere)):
            raise UserError(f"{reason} (run {trial.name} of this study)")
        left_out.setdefault(f"{trial.method} at {trial.density}" if works_elsewhere else trial.method, reason)
    for name, reason in left_out.items():
        logging.getLogger(__name__).warning("left out of this study: %s (%s)", name, reason)
    return left


def _shared_options(settings: tuple[Any, ...], arguments: PruneArguments) -> dict[str, Any]:
    """The options that every trial has in common.

    Raises:
        UserError: one cannot be handed on to another process.
    """
    options = resolved_options(settings, arguments)
    names = {field.name for field in dataclasses.fields(PruneArguments) if field.init}
    handed_on = PruneArguments(**{name: value for name, value in options.items() if name in names}).to_dict()
    for name, value in arguments.to_dict().items():
        if value != handed_on[name]:
            raise UserError(f"--{name} {value}: a study cannot hand it on to its runs")
    return options
