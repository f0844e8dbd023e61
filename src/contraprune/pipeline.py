"""The two jobs: fine-tune a teacher, and prune it."""

import copy
from typing import Any

import numpy as np
import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from contraprune.bank import Bank
from contraprune.callbacks import GradualPruning, Snapshots
from contraprune.config import (
    ContrastConfig,
    DataConfig,
    FinetuneArguments,
    PruneArguments,
    PruneRunConfig,
    PruningConfig,
    RunConfig,
    build,
)
from contraprune.criteria import CRITERIA, Criterion, Movement
from contraprune.encoding import Reader
from contraprune.errors import UserError
from contraprune.evaluation import label_order
from contraprune.jobs import Job
from contraprune.masking import MaskedLinear, mask_linears
from contraprune.saliency import fisher_saliency
from contraprune.saving import (
    load_for_finetuning,
    load_pretrained,
    load_tokenizer,
    parameter_counts,
)
from contraprune.sources import SourceBuilder, cache_directory
from contraprune.structure import find_layers
from contraprune.trainer import Knowledge, PruningTrainer, TaskTrainer

FINETUNE_SETTINGS = (RunConfig, DataConfig, FinetuneArguments)
PRUNE_SETTINGS = (PruneRunConfig, DataConfig, PruningConfig, ContrastConfig, PruneArguments)
SALIENCY_EXAMPLES = 2048
SALIENCY_BATCH = 8


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
    names = dict(enumerate(job.task.label_names))
    model, _ = load_for_finetuning(
        job.task.auto_class,
        run.model,
        id2label=names,
        label2id={label: index for index, label in names.items()},
    )
    trainer = TaskTrainer(**job.trainer_options(model, tokenizer))
    job.lap("load")
    job.train(trainer)
    evaluation = job.save(model, tokenizer)
    return job.finish({"method": "finetune", "metrics": evaluation.metrics, "parameters": parameter_counts(model)})


def run_prune(
    run: PruneRunConfig,
    data: DataConfig,
    pruning: PruningConfig,
    contrast: ContrastConfig,
    arguments: PruneArguments,
) -> dict[str, Any]:
    """:func:`prune` with settings that were checked."""
    job = Job.start("prune", run, (data, pruning, contrast), arguments)
    if job.finished:
        return job.directory.read_results()
    tokenizer = load_tokenizer(run.teacher)
    _check_tokenizers(tokenizer, load_tokenizer(run.model), run)
    set_seed(arguments.seed)
    teacher = load_pretrained(job.task.auto_class, run.teacher).to(arguments.device)
    label_order(job.task, teacher, run.teacher)
    pretrained, new_weights = load_for_finetuning(
        job.task.auto_class, run.model, id2label=teacher.config.id2label, label2id=teacher.config.label2id
    )
    _check_sizes(teacher, pretrained, run)
    model = copy.deepcopy(teacher if pruning.start_from == "teacher" else pretrained).to(arguments.device)
    linears = mask_linears(
        {name: module for layer in find_layers(model) for name, module in layer.linears.items()},
        learn_scores=CRITERIA[pruning.method].learns_scores,
    )
    parameters = parameter_counts(model)["all"] - sum(
        linear.mask_scores.numel() for linear in linears.values() if linear.mask_scores is not None
    )
    reader = Reader(model, pooling=contrast.pooling, use_pooler=_has_trained_pooler(new_weights))
    criterion = CRITERIA[pruning.method](linears, scope=pruning.scope)
    knowledge = Knowledge(banks={}, teacher_logits=None)
    trainer = PruningTrainer(
        contrast=contrast,
        knowledge=knowledge,
        reader=reader,
        criterion=criterion,
        score_learning_rate=pruning.score_learning_rate,
        **job.trainer_options(model, tokenizer),
    )
    job.lap("load")
    teacher_metrics = job.evaluate(teacher, tokenizer, run.teacher).metrics
    job.lap("teacher")
    sources = _Sources(job, trainer, contrast, run, reader.use_pooler)
    sources.fill(knowledge, teacher, pretrained)
    del teacher, pretrained
    job.lap("encode")
    _initialise_scores(criterion, model, job, trainer, pruning, contrast)
    job.lap("saliency")
    schedule = GradualPruning(
        trainer,
        density=pruning.density,
        warmup=pruning.prune_warmup,
        cooldown=pruning.prune_cooldown,
        frozen=pruning.freeze_masks,
    )
    trainer.add_callback(schedule)
    if "snapshots" in knowledge.banks:
        trainer.add_callback(Snapshots(lambda epoch: sources.snapshot(epoch, model, reader)))
    job.train(trainer, density_at=schedule.density_at)
    reader.remove()
    density = encoder_density(linears)
    evaluation = job.save(model, tokenizer)
    after = parameter_counts(model)
    main = next(iter(evaluation.metrics))
    return job.finish(
        {
            "method": pruning.method,
            "contrast": list(contrast.sources),
            "metrics": evaluation.metrics,
            "teacher_metrics": teacher_metrics,
            "retained": evaluation.metrics[main] / teacher_metrics[main] if teacher_metrics[main] else None,
            "density": {
                "target": pruning.density,
                "encoder": density,
                "total": after["nonzero"] / parameters,
            },
            "parameters": {"before": parameters, "after": after["nonzero"]},
        }
    )


def encoder_density(linears: dict[str, MaskedLinear]) -> float:
    """The kept fraction of all weights in masked layers."""
    kept = sum(int(torch.count_nonzero(linear.mask)) for linear in linears.values())
    return kept / sum(linear.mask.numel() for linear in linears.values())


class _Sources:
    """Where the banks of a run come from: the cache for fixed models, the run directory for snapshots."""

    def __init__(
        self,
        job: Job,
        trainer: PruningTrainer,
        contrast: ContrastConfig,
        run: PruneRunConfig,
        use_pooler: bool,
    ) -> None:
        dataset = trainer.train_dataset
        self.directory = job.directory
        self.contrast = contrast
        self.cache = cache_directory(run.cache_dir)
        self.labels = torch.tensor(dataset["labels"])
        snapshots = int(np.ceil(job.arguments.num_train_epochs)) - 1 if "snapshots" in contrast.sources else 0
        representations = snapshots + len(set(contrast.sources) - {"snapshots"})
        width = trainer.model.config.hidden_size * np.dtype(contrast.bank_dtype).itemsize
        self.builder = SourceBuilder(
            dataset=dataset,
            config=contrast,
            use_pooler=use_pooler,
            in_memory=len(dataset) * width * representations <= contrast.bank_memory_gb * 1e9,
            collator=trainer.data_collator,
            batch_size=job.arguments.per_device_eval_batch_size,
            accelerator=trainer.accelerator,
            progress=job.progress,
        )
        self.snapshots = Bank(self.labels)

    def fill(self, knowledge: Knowledge, teacher: PreTrainedModel, pretrained: PreTrainedModel) -> None:
        """Encodes the training set with the fixed models that the losses need; snapshots come while training."""
        sources = self.contrast.sources
        if "pretrained" in sources:
            rows, _ = self.builder.cached(pretrained, self.cache, "encoding with the pre-trained model")
            knowledge.banks["pretrained"] = Bank(self.labels, [rows])
        if "snapshots" in sources:
            knowledge.banks["snapshots"] = self.snapshots
        if "finetuned" in sources or self.contrast.kd_weight > 0:
            rows, logits = self.builder.cached(teacher, self.cache, "encoding with the teacher")
            if "finetuned" in sources:
                knowledge.banks["finetuned"] = Bank(self.labels, [rows])
            if self.contrast.kd_weight > 0:
                knowledge.teacher_logits = logits

    def snapshot(self, epoch: int, model: PreTrainedModel, reader: Reader) -> None:
        """Adds the model as it is now to the snapshots; after a resume, reads back what was encoded then."""
        path = self.directory.banks / f"snapshot-{epoch:03d}"
        rows, _ = self.builder.encode(model, reader, path, {"epoch": epoch}, f"snapshot {epoch}")
        self.snapshots.files.append(rows)


def _initialise_scores(
    criterion: Criterion,
    model: PreTrainedModel,
    job: Job,
    trainer: PruningTrainer,
    pruning: PruningConfig,
    contrast: ContrastConfig,
) -> None:
    if not isinstance(criterion, Movement) or pruning.score_init == "zero":
        return
    if job.directory.last_checkpoint() is not None:  # which holds the scores
        return
    if pruning.score_init == "magnitude":
        criterion.start_from({name: linear.weight.detach().abs() for name, linear in criterion.linears.items()})
        return
    saliency = fisher_saliency(
        model,
        criterion.linears,
        trainer.train_dataset,
        collator=trainer.data_collator,
        examples=SALIENCY_EXAMPLES,
        batch_size=SALIENCY_BATCH,
        temperature=contrast.kd_temperature,
        seed=job.arguments.seed,
        accelerator=trainer.accelerator,
        progress=job.progress,
    )
    criterion.start_from(saliency)


def _has_trained_pooler(new_weights: list[str]) -> bool:
    """Whether the pooler, if there is one, came with the pre-trained model: random weights represent nothing."""
    return not any(".pooler." in name for name in new_weights)


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
