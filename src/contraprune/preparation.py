"""What every way of pruning starts from: the models, the banks they fill, and the checks that they fit."""

import copy
import dataclasses
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from contraprune.bank import Bank, RowSpec
from contraprune.config import ContrastConfig, PruneRunConfig
from contraprune.criteria import CRITERIA
from contraprune.disk import checkpoint_bytes
from contraprune.dropout import set_dropout
from contraprune.encoding import Reader
from contraprune.errors import UserError
from contraprune.jobs import Job
from contraprune.padding import require_padding
from contraprune.prediction import Evaluation
from contraprune.pruning_config import PruningConfig
from contraprune.representations import map_of_representations
from contraprune.saving import load_for_finetuning, load_pretrained, load_tokenizer, of_pooler, write_text
from contraprune.sources import OUTPUTS, SourceBuilder, cache_directory, model_fingerprint, output_width
from contraprune.structure import find_layers
from contraprune.tasks import Task
from contraprune.trainer import ContrastTrainer, Knowledge


@dataclass(kw_only=True)
class Prepared:
    """The student and everything that its losses need, before anything is pruned."""

    job: Job
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reader: Reader
    pruning: PruningConfig
    contrast: ContrastConfig
    knowledge: Knowledge
    sources: "Sources"
    teacher_metrics: dict[str, float]

    def trainer_options(self, stage: str = "") -> dict[str, Any]:
        """Keyword arguments of a ``ContrastTrainer`` of the model as it is now."""
        options = self.job.trainer_options(self.model, self.tokenizer, stage=stage)
        return options | {"contrast": self.contrast, "knowledge": self.knowledge, "reader": self.reader}

    def map_representations(self, trainer: ContrastTrainer) -> None:
        """Writes where examples lie for the models before pruning and for the trainer's model, which is pruned."""
        found = map_of_representations(
            trainer,
            self.reader,
            self.knowledge,
            batch_size=self.job.arguments.per_device_eval_batch_size,
            seed=self.job.arguments.seed,
        )
        if self.job.main:
            write_text(self.job.directory.representations, json.dumps(found, ensure_ascii=False))
        self.job.lap("map")

    def finish(
        self,
        method: str,
        evaluation: Evaluation,
        *,
        density: dict[str, float | None],
        parameters: dict[str, int],
        **more: Any,
    ) -> dict[str, Any]:
        """Writes ``results.json`` of a pruning run and returns its content."""
        metrics = evaluation.metrics
        main = next(iter(metrics))
        teacher = self.teacher_metrics[main]
        results = {
            "method": method,
            "contrast": list(self.contrast.sources),
            "metrics": metrics,
            "teacher_metrics": self.teacher_metrics,
            "retained": metrics[main] / teacher if teacher else None,
            "density": {**density, "total": parameters["after"] / parameters["before"]},
            "parameters": parameters,
        }
        return self.job.finish(results | more)


def prepare(
    job: Job,
    run: PruneRunConfig,
    pruning: PruningConfig,
    contrast: ContrastConfig,
    *,
    snapshots: Callable[[int], int],
    check: Callable[[PreTrainedModel], object],
) -> Prepared:
    """Loads teacher and pre-trained model, evaluates the teacher, and fills the banks of both.

    Args:
        snapshots: how many snapshots there will be at most with so many training examples, for planning memory.
        check: raises UserError for a model that cannot be pruned as asked; called before anything is encoded.

    Raises:
        UserError: a model cannot be used, or the two do not fit each other or the data.
    """
    tokenizer = load_tokenizer(run.teacher)
    _check_tokenizers(tokenizer, load_tokenizer(run.model), run)
    set_seed(job.arguments.seed)
    teacher = load_pretrained(job.task.auto_class, run.teacher).to(job.arguments.device)
    labels = {name: getattr(teacher.config, name) for name in ("id2label", "label2id", "problem_type")}
    pretrained, new_weights = load_for_finetuning(job.task.auto_class, run.model, **labels)
    pretrained.to(job.arguments.device)
    _check_sizes(teacher, pretrained, run)
    require_padding(tokenizer, teacher.config, pretrained.config, name=run.teacher)
    start = teacher if pruning.start_from == "teacher" else pretrained
    if start is pretrained and pruning.method == "taylor":  # which rates the units before anything has trained
        _take_over(new_weights, teacher, pretrained)
    check(start)
    job.encode_for(teacher, tokenizer, run.teacher)
    contrast = _without_repetition(contrast, teacher, pretrained)
    if contrast.idle:
        idle = ", ".join(f"--{name}" for name in contrast.idle)
        logging.getLogger(__name__).warning("without effect, as nothing is contrasted by it: %s", idle)
    model = copy.deepcopy(start)
    make_student(model, pruning)
    own = job.task.pooling
    pooling = own or contrast.pooling
    assert pooling != "auto", "for_task() comes first"
    reader = Reader(model, pooling=pooling, use_pooler=own is None and _has_trained_pooler(new_weights))
    knowledge = Knowledge(banks={}, teacher_outputs=None, classes=None)
    options = job.trainer_options(model, tokenizer)
    trainer = ContrastTrainer(**options, contrast=contrast, knowledge=knowledge, reader=reader)
    sources = Sources(trainer, job, contrast, run, teacher, snapshots=snapshots(len(trainer.train_dataset)))
    _announce_disk(job, pruning, model, sources)
    job.lap("load")
    found = job.evaluate(teacher)
    job.task.check_answers(found.outputs, name=run.teacher)
    job.lap("teacher")
    sources.fill(knowledge, teacher, pretrained)
    job.lap("encode")
    return Prepared(
        job=job,
        model=model,
        tokenizer=tokenizer,
        reader=reader,
        pruning=pruning,
        contrast=contrast,
        knowledge=knowledge,
        sources=sources,
        teacher_metrics=found.metrics,
    )


@torch.no_grad()
def _take_over(names: Iterable[str], teacher: PreTrainedModel, pretrained: PreTrainedModel) -> None:
    """Gives the pre-trained model the teacher's weights where its own, the task's head, are random."""
    found, mine = teacher.state_dict(), pretrained.state_dict()
    for name in names:
        mine[name].copy_(found[name])


def make_student(model: PreTrainedModel, pruning: PruningConfig) -> None:
    """Sets what of a model trains while it is pruned, and with which dropout."""
    if pruning.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    if pruning.dropout is not None:
        set_dropout(model, pruning.dropout)


class Sources:
    """Where the banks of a run come from: the cache for fixed models, the run directory for snapshots.

    Args:
        snapshots: how many there will be at most.
    """

    def __init__(
        self,
        trainer: ContrastTrainer,
        job: Job,
        contrast: ContrastConfig,
        run: PruneRunConfig,
        teacher: PreTrainedModel,
        *,
        snapshots: int,
    ) -> None:
        dataset = trainer.train_dataset
        self.directory = job.directory
        self.contrast = contrast
        self.cache = cache_directory(run.cache_dir)
        self.classes = _classes(trainer.task, dataset, contrast)
        width = trainer.model.config.hidden_size
        rows = RowSpec(rows=len(dataset), width=width, dtype=contrast.bank_dtype).nbytes
        self.encodes_teacher = "finetuned" in contrast.sources or contrast.kd_weight > 0
        self.fixed_bytes = rows * (self.encodes_teacher + ("pretrained" in contrast.sources))
        self.snapshot_bytes = rows * snapshots * ("snapshots" in contrast.sources)
        self.outputs_bytes = 0
        if self.encodes_teacher:
            width = output_width(teacher, trainer.task, dataset, trainer.data_collator)
            self.outputs_bytes = RowSpec(rows=len(dataset), width=width, dtype=OUTPUTS).nbytes
        self.builder = SourceBuilder(
            task=trainer.task,
            dataset=dataset,
            config=contrast,
            pooling=trainer.reader.pooling,
            use_pooler=trainer.reader.use_pooler,
            in_memory=self._in_memory(contrast.bank_memory_gb * 1e9),
            collator=trainer.data_collator,
            batch_size=job.arguments.per_device_eval_batch_size,
            accelerator=trainer.accelerator,
            writes=job.keeps_banks,
            on_each_node=job.arguments.save_on_each_node,
            progress=job.progress,
        )
        self.snapshots = Bank(self.classes)

    def _in_memory(self, limit: float) -> frozenset[str]:
        """What fits ``limit`` bytes: representations first, of which a step reads many times the rows."""
        chosen, left = set(), limit
        kinds = {"representations": self.fixed_bytes + self.snapshot_bytes, "outputs": self.outputs_bytes}
        for kind, needed in kinds.items():
            if needed <= left:
                chosen.add(kind)
                left -= needed
        return frozenset(chosen)

    @property
    def cache_bytes(self) -> int:
        """What :meth:`fill` leaves in the cache."""
        return self.fixed_bytes + self.outputs_bytes

    def fill(self, knowledge: Knowledge, teacher: PreTrainedModel, pretrained: PreTrainedModel) -> None:
        """Encodes the training set with the fixed models that the losses need; snapshots come while training."""
        sources = self.contrast.sources
        knowledge.classes = self.classes
        if "pretrained" in sources:
            description = "encoding with the pre-trained model"
            rows, _ = self.builder.cached(pretrained, self.cache, description, with_outputs=False)
            knowledge.banks["pretrained"] = Bank(self.classes, [rows])
        if "snapshots" in sources:
            knowledge.banks["snapshots"] = self.snapshots
        if self.encodes_teacher:
            rows, outputs = self.builder.cached(teacher, self.cache, "encoding with the teacher", with_outputs=True)
            if "finetuned" in sources:
                knowledge.banks["finetuned"] = Bank(self.classes, [rows])
            if self.contrast.kd_weight > 0:
                knowledge.teacher_outputs = outputs

    def snapshot(self, number: int, model: PreTrainedModel, reader: Reader, *, now: bool) -> None:
        """Adds the model as it is now to the snapshots; after a resume, reads back what was encoded then.

        Args:
            now: whether the model is what it was, or will have been, when the snapshot is taken.

        Raises:
            UserError: it is not, and what was encoded is lost.
        """
        path = self.directory.banks / f"snapshot-{number:03d}"
        rows, _ = self.builder.encode(model, reader, path, {"snapshot": number}, f"snapshot {number}", again=now)
        self.snapshots.files.append(rows)


def _announce_disk(job: Job, pruning: PruningConfig, model: PreTrainedModel, sources: Sources) -> None:
    criterion = CRITERIA.get(pruning.method)
    scored = 0
    if criterion is not None:
        linears = [linear for layer in find_layers(model) for linear in layer.linears.values()]
        scored = sum(matrix.numel() for linear in linears for matrix in linear.parameters() if matrix.dim() == 2)
    job.announce_disk(
        model,
        checkpoint=checkpoint_bytes(
            model, scored_weights=scored, learned_scores=criterion is not None and criterion.learns_scores
        ),
        copies=1 if criterion is not None else 3,  # the last stage's, this one's, and the result
        more={
            job.directory.path: {"snapshots": sources.snapshot_bytes},
            sources.cache: {"banks": sources.cache_bytes},
        },
    )


def _classes(task: Task, dataset: datasets.Dataset, contrast: ContrastConfig) -> torch.Tensor | None:
    """The class of every training example that the supervised losses contrast by; None for none."""
    classes = task.classes(dataset)
    if contrast.supervised_bins is not None:
        numbers = np.asarray(dataset["labels"])
        edges = np.quantile(numbers, np.linspace(0, 1, contrast.supervised_bins + 1)[1:-1])
        classes = np.digitize(numbers, edges)
    if classes is None and contrast.supervised_weight > 0 and contrast.sources and task.objective.targets:
        logging.getLogger(__name__).warning(
            "%s has no classes: supervised contrast is off, the unsupervised losses remain", task.name
        )
    return None if classes is None else torch.from_numpy(classes)


def _has_trained_pooler(new_weights: list[str]) -> bool:
    """Whether the pooler, if there is one, came with the pre-trained model: random weights represent nothing."""
    return not any(map(of_pooler, new_weights))


def _without_repetition(
    contrast: ContrastConfig, teacher: PreTrainedModel, pretrained: PreTrainedModel
) -> ContrastConfig:
    """The settings without the pre-trained source, if that is the fine-tuned one again (PrC would be FiC twice)."""
    both = {"pretrained", "finetuned"} <= set(contrast.sources)
    if not both or model_fingerprint(teacher) != model_fingerprint(pretrained):
        return contrast
    left = ",".join(source for source in contrast.sources if source != "pretrained")
    logging.getLogger(__name__).warning("--model and --teacher are the same model: contrasting with %s", left)
    return dataclasses.replace(contrast, contrast=left)


def _check_tokenizers(teacher: PreTrainedTokenizerBase, model: PreTrainedTokenizerBase, run: PruneRunConfig) -> None:
    if teacher.get_vocab() != model.get_vocab():
        raise UserError(
            f"--teacher {run.teacher}: its tokenizer differs from that of --model {run.model} "
            f"({len(teacher)} and {len(model)} tokens); the teacher must be fine-tuned from that model"
        )


def _check_sizes(teacher: PreTrainedModel, pretrained: PreTrainedModel, run: PruneRunConfig) -> None:
    sizes = [
        (config.model_type, config.hidden_size, config.num_hidden_layers)
        for config in (teacher.config, pretrained.config)
    ]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"--teacher {run.teacher}: expected a model fine-tuned from --model {run.model}, found (architecture, "
            f"hidden size, layers) {sizes[0]} and {sizes[1]}"
        )
