"""Structured pruning in stages: rate the units, remove the least important for good, train what is left."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from contraprune.callbacks import NoLastCheckpoint
from contraprune.config import ContrastConfig, PruneRunConfig, StructuredConfig
from contraprune.criteria.taylor import UnitImportance, keep_after_removal, taylor_importance
from contraprune.encoding import Reader, features_of, longest_first
from contraprune.errors import UserError
from contraprune.files import write_json
from contraprune.jobs import Job
from contraprune.preparation import Prepared, make_student, prepare
from contraprune.processes import Batches, cut, part_of
from contraprune.products import fast_products
from contraprune.progress import progress
from contraprune.pruning_config import PruningConfig
from contraprune.runs import Stopwatch
from contraprune.saving import load_pretrained, parameter_counts, save_model
from contraprune.schedules import units_per_stage
from contraprune.shrinking import shrink
from contraprune.structure import Layer, find_layers
from contraprune.trainer import ContrastTrainer

KINDS = ("heads", "neurons")
_KEPT = "kept.json"  # in the folder of a stage: which units it leaves


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage removes from the whole model."""

    number: int  # from 1
    percent: float  # of heads and neurons that are gone after it, from the density asked for
    heads: int
    neurons: int


def plan_stages(layers: Sequence[Layer], pruning: PruningConfig, structured: StructuredConfig) -> list[Stage]:
    """How many heads and neurons each stage removes, so that the last one ends at the densities asked for.

    Raises:
        UserError: a density would leave a layer without a head (or without a neuron where the model needs one), or
            ``--stages`` ends elsewhere than ``--density``.
    """
    assert pruning.density is not None
    final = 100 * (1 - pruning.density)
    widths = [layer.neurons.num_units for layer in layers]
    may_go = all(layer.neurons.may_be_empty for layer in layers)
    layer, width = ("widest", max(widths)) if may_go else ("narrowest", min(widths))
    if structured.neuron_divisor > max(1, width):
        raise UserError(
            f"--neuron_divisor: expected at most {width}, the neurons of the {layer} layer, "
            f"found {structured.neuron_divisor}"
        )
    if structured.stages is not None and abs(structured.percents()[-1] - final) > 1e-6:
        raise UserError(
            f"--stages {structured.stages}: ends at {structured.percents()[-1]:g} % removed, but --density "
            f"{pruning.density:g} removes {final:g} %"
        )
    fractions = structured.fractions()
    removals = {
        kind: _removals(
            [getattr(layer, kind) for layer in layers],
            fractions,
            own or pruning.density,
            kind,
            structured.divisor(kind),
        )
        for kind, own in (("heads", structured.head_density), ("neurons", structured.neuron_density))
    }
    return [
        Stage(number=number, percent=round(final * fraction, 2), heads=heads, neurons=neurons)
        for number, (fraction, heads, neurons) in enumerate(
            zip(fractions, removals["heads"], removals["neurons"], strict=True), 1
        )
    ]


def _removals(groups: Sequence[Any], fractions: Sequence[float], density: float, kind: str, divisor: int) -> list[int]:
    total = sum(group.num_units for group in groups)
    percents = [round(100 * (1 - density) * fraction, 9) for fraction in fractions]
    try:
        return units_per_stage(total, percents, keep_at_least=len(groups) * fewest_units(groups, kind, divisor))
    except ValueError as error:
        flag, least = f"{kind.removesuffix('s')}_density", "one" if divisor == 1 else divisor
        raise UserError(
            f"--density {density:g}: every one of the {len(groups)} layers keeps at least {least} of its {kind}, but "
            f"{error}; raise --density or --{flag}"
        ) from error


def fewest_units(groups: Sequence[Any], kind: str, divisor: int = 1) -> int:
    """Every layer keeps a head; an FFN may go as a whole where the model runs without."""
    return 0 if kind == "neurons" and all(group.may_be_empty for group in groups) else divisor


def prune_units(
    job: Job, run: PruneRunConfig, pruning: PruningConfig, structured: StructuredConfig, contrast: ContrastConfig
) -> dict[str, Any]:
    """Runs one structured pruning job to its end; the content of ``results.json``."""

    def planned(model: PreTrainedModel) -> list[Stage]:
        return plan_stages(find_layers(model), pruning, structured)

    prepared = prepare(
        job, run, pruning, contrast, snapshots=lambda examples: len(structured.fractions()) - 1, check=planned
    )
    model = prepared.model
    before = parameter_counts(model)["all"]
    stages = StageRunner(prepared, structured)
    for stage in planned(model):
        stages.run(stage)
    model = prepared.model
    prepared.map_representations(ContrastTrainer(**prepared.trainer_options("map")))
    prepared.reader.remove()
    evaluation = job.save(model, prepared.tokenizer)
    return prepared.finish(
        pruning.method,
        evaluation,
        density={"target": pruning.density, "encoder": _encoder_weights(model) / stages.weights_before},
        parameters={"before": before, "after": parameter_counts(model)["all"]},
        stages=stages.records,
    )


class StageRunner:
    """Runs stages one after the other; each is finished once, also when the run is interrupted between them."""

    def __init__(self, prepared: Prepared, structured: StructuredConfig) -> None:
        self.prepared = prepared
        self.job = prepared.job
        self.structured = structured
        self.weights_before = _encoder_weights(prepared.model)
        self.units_before = self.units()
        self.units_planned = dict.fromkeys(KINDS, 0)  # to be removed by the stages up to now
        self.records: list[dict[str, Any]] = []
        self.job.directory.stages.mkdir(parents=True, exist_ok=True)

    def run(self, stage: Stage) -> None:
        """Snapshot, importance, removal, retraining, evaluation; then the model as it is goes to disk."""
        folder = self.job.directory.stages / f"{stage.number:02d}"
        record = folder / "stage.json"
        self.job.agree([(folder / name).is_file() for name in (record.name, _KEPT)], f"record of stage {stage.number}")
        for kind in KINDS:
            self.units_planned[kind] += getattr(stage, kind)
        if stage.number > 1:
            self._snapshot(stage, now=not record.is_file())
        if record.is_file():
            self.records.append(json.loads(record.read_text(encoding="utf-8")))
            self._replace_model(folder / "model")
            return
        stopwatch = Stopwatch(folder / "seconds.json", write=self.job.main)
        name = f"stage-{stage.number:02d}"
        trainer = ContrastTrainer(**self.prepared.trainer_options(name))
        self.remove_units(stage, trainer, folder)
        stopwatch.lap("importance_and_removal")
        trainer.density = _encoder_weights(self.prepared.model) / self.weights_before
        trainer.add_callback(NoLastCheckpoint())
        self.job.train(trainer, stage=name, stopwatches=(stopwatch,))
        metrics = trainer.final_metrics or self.job.evaluate(self.prepared.model).metrics
        stopwatch.lap("evaluate")
        self.records.append(self._describe(stage, metrics, stopwatch.seconds))
        if self.job.main:
            save_model(self.prepared.model, None, folder / "model")
            write_json(record, self.records[-1])
            self._drop_earlier(stage)

    def _snapshot(self, stage: Stage, *, now: bool) -> None:
        if "snapshots" in self.prepared.contrast.sources:
            prepared = self.prepared
            prepared.sources.snapshot(stage.number - 1, prepared.model, prepared.reader, now=now)

    def remove_units(self, stage: Stage, trainer: ContrastTrainer, folder: Path) -> None:
        """Removes the least important units; which ones is written down, so that a resumed stage agrees."""
        model = self.prepared.model
        layers = find_layers(model)
        choice = folder / _KEPT
        if choice.is_file():
            kept = json.loads(choice.read_text(encoding="utf-8"))
            keep = [[torch.tensor(units, dtype=torch.bool) for units in kept[kind]] for kind in KINDS]
        else:
            importance = self.rate_units(stage, trainer, layers)
            keep = [
                keep_after_removal(getattr(importance, kind), self.surplus(kind), **self.limits(kind, layers))
                for kind in KINDS
            ]
            lists = [[mask.int().tolist() for mask in group] for group in keep]
            if self.job.main:
                write_json(choice, dict(zip(KINDS, lists, strict=True)))
        shrink(model, layers, *[[mask.to(model.device) for mask in group] for group in keep])

    def units(self) -> dict[str, int]:
        """How many heads and neurons are left."""
        layers = find_layers(self.prepared.model)
        return {kind: sum(getattr(layer, kind).num_units for layer in layers) for kind in KINDS}

    def surplus(self, kind: str) -> int:
        """How many are to go now: what the plan says, and what earlier stages left or took in excess of it."""
        return max(0, self.units()[kind] - (self.units_before[kind] - self.units_planned[kind]))

    def limits(self, kind: str, layers: list[Layer]) -> dict[str, int]:
        """What every layer keeps, as :func:`contraprune.selection.remove_lowest` takes it."""
        divisor = self.structured.divisor(kind)
        least = fewest_units([getattr(layer, kind) for layer in layers], kind, divisor)
        return {"keep_at_least": least, "divisor": divisor}

    def rate_units(self, stage: Stage, trainer: ContrastTrainer, layers: list[Layer]) -> UnitImportance:
        model, accelerator = self.prepared.model, trainer.accelerator
        dataset = trainer.train_dataset
        order = np.random.default_rng([self.job.arguments.seed, stage.number]).permutation(len(dataset))
        subset = dataset.select(order[: self.structured.importance_examples])
        batches = cut(len(subset), self.job.arguments.per_device_train_batch_size * accelerator.num_processes)
        parts = [part_of(batch, accelerator) for batch in batches]
        loader = Batches(
            subset.select(longest_first(subset["length"])).remove_columns(["length"]),
            [batch[part.first :][: part.size] for batch, part in zip(batches, parts, strict=True)],
            collator=trainer.data_collator,
            accelerator=accelerator,
        )
        description = f"stage {stage.number}: rating heads and neurons"

        def loss_of(number_and_batch: tuple[int, dict[str, Tensor] | None]) -> Tensor | None:
            number, batch = number_and_batch
            if batch is None:
                trainer.take_no_part_in_importance()
                return None
            features = features_of(batch, trainer.task.objective)
            with accelerator.autocast():
                outputs = trainer.task.outputs(model(**features), features)
            return trainer.loss_for_importance(outputs, batch, parts[number], (stage.number, number, 1))

        with fast_products(model):
            importance = taylor_importance(
                model,
                layers,
                enumerate(progress(loader, description, show=self.job.progress)),
                loss_of,
                reduce=lambda scores: accelerator.reduce(scores, reduction="sum"),
                normalise=self.structured.normalize_importance,
            )
        if any(scores.isnan().any() for scores in (*importance.heads, *importance.neurons)):
            raise UserError(
                f"stage {stage.number}: the importance of heads and neurons is not a number: the loss or its gradient "
                "overflowed; use --bf16 instead of --fp16, or lower the weights of the losses"
            )
        return importance

    def _describe(self, stage: Stage, metrics: dict[str, float], seconds: dict[str, float]) -> dict[str, Any]:
        layers = find_layers(self.prepared.model)
        return {
            "stage": stage.number,
            "removed_percent": stage.percent,
            "heads": [layer.heads.num_units for layer in layers],
            "neurons": [layer.neurons.num_units for layer in layers],
            "parameters": parameter_counts(self.prepared.model)["all"],
            "metrics": metrics,
            "seconds": {name: round(value, 2) for name, value in seconds.items()},
        }

    def _replace_model(self, path: Path) -> None:
        """Goes on with a finished stage's model, read from disk."""
        if not path.is_dir():  # a later stage is finished too, and has the model
            return
        old = self.prepared.reader
        old.remove()
        model = load_pretrained(self.job.task.auto_class, str(path)).to(self.job.arguments.device)
        make_student(model, self.prepared.pruning)
        self.prepared.model = model
        self.prepared.reader = Reader(model, pooling=old.pooling, use_pooler=old.use_pooler)

    def _drop_earlier(self, stage: Stage) -> None:
        shutil.rmtree(self.job.directory.stages / f"{stage.number - 1:02d}" / "model", ignore_errors=True)
        shutil.rmtree(self.job.directory.checkpoints / f"stage-{stage.number:02d}", ignore_errors=True)


def _encoder_weights(model: PreTrainedModel) -> int:
    """Number of weights in the matrices of all layers."""
    matrices = [module.weight for layer in find_layers(model) for module in layer.linears.values()]
    return sum(weight.numel() for weight in matrices if isinstance(weight, Tensor))
