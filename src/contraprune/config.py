"""Every setting of a run, once: its name (the flag), default, meaning and check.

Settings are frozen dataclasses; the flags of the command line, the keys of a YAML file and the keyword arguments
of :func:`contraprune.prune` are their field names. Whatever concerns the training loop itself is a field of
``transformers.TrainingArguments``, whose defaults :class:`FinetuneArguments` and :class:`PruneArguments` change
where a classifier or a sparse model needs it. The settings of pruning itself are in
:mod:`contraprune.pruning_config`.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
import yaml
from transformers import PretrainedConfig, TrainingArguments

from contraprune.errors import UserError
from contraprune.files import model_in
from contraprune.objectives import Value
from contraprune.pruning_config import DEFAULT_DENSITY, PruningConfig
from contraprune.settings import changed, refuse_unless_default, setting
from contraprune.settings import require as _require
from contraprune.structure import text_length
from contraprune.tasks import Task
from contraprune.tasks.question_answering import QuestionAnswering
from contraprune.tasks.spans import AnswerOptions

Source = Literal["pretrained", "snapshots", "finetuned"]
SOURCES: tuple[Source, ...] = ("pretrained", "snapshots", "finetuned")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data to train and evaluate on."""

    _argument_group_name: ClassVar[str] = "data"

    task: str | None = setting(
        None, "A GLUE task (sst2, mnli, qqp, ...), squad, squad_v2, or toy, a small set made by contraprune."
    )
    data_dir: str | None = setting(
        None,
        "Folder with train and validation files of --task (.jsonl, .csv, .tsv, .parquet). Default: the hub.",
    )
    task_type: str | None = setting(
        None,
        "What the data are for: classification, regression, multi_label, token_classification, question_answering or "
        "embedding. Default: what --task was made for, with your own files classification.",
    )
    train_file: str | None = setting(
        None, "Your own training file (.jsonl, .csv, .tsv, .parquet; of tokens also .conll, .txt), without --task."
    )
    validation_file: str | None = setting(None, "Your own validation file.")
    text_columns: list[str] | None = setting(
        None, "Column(s) of the text: one, or two for pairs (A B or A,B). Default: guessed."
    )
    label_column: str | None = setting(
        None,
        "Column of the label (label), of the list of labels (label, labels), of the tags (ner_tags, tags, labels) or "
        "of the answers (answers).",
    )
    labels: list[str] | None = setting(
        None, "Names of all labels, joined by commas, where the file numbers them (0, 1, ...) or lacks some."
    )
    label_columns: list[str] | None = setting(
        None, "multi_label: columns of zeros and ones, joined by commas, one for each label."
    )
    label_separator: str | None = setting(
        None, "multi_label: what stands between the labels in a column of text. Default: the one of , | ; that occurs."
    )
    max_train_samples: int | None = setting(None, "Use only the first N training rows.")
    max_eval_samples: int | None = setting(None, "Use only the first N validation rows.")
    max_length: int | None = setting(
        None,
        f"Texts are cut to this many tokens; long contexts of questions are read in parts. Default: "
        f"{Task.default_max_length}, for question answering {QuestionAnswering.default_max_length}, or as many as the "
        "model has positions for.",
    )
    doc_stride: int | None = setting(
        AnswerOptions.doc_stride,
        "Question answering: tokens that two neighbouring parts of a context share. Default: a third of --max_length.",
    )
    n_best: int = setting(
        AnswerOptions.n_best, "Question answering: starts and ends of each part that are candidates for the answer."
    )
    max_answer_length: int = setting(
        AnswerOptions.max_answer_length, "Question answering: answers have at most this many tokens."
    )
    null_threshold: float = setting(
        AnswerOptions.null_threshold,
        "Question answering: give no answer where that scores better than the best answer by more than this.",
    )

    def __post_init__(self) -> None:
        _require(self.max_length is None or self.max_length >= 4, "max_length", "at least 4", self.max_length)
        _require(self.doc_stride is None or self.doc_stride >= 0, "doc_stride", "zero or more", self.doc_stride)
        for flag in ("n_best", "max_answer_length"):
            _require(getattr(self, flag) >= 1, flag, "a positive number", getattr(self, flag))
        for flag in ("max_train_samples", "max_eval_samples"):
            value = getattr(self, flag)
            _require(value is None or value >= 1, flag, "a positive number", value)

    def source(self) -> dict[str, Any]:
        """The settings that say which rows to load: those of ``contraprune.tasks.load_task``."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "max_length"}
        answering = AnswerOptions(**{f.name: values.pop(f.name) for f in dataclasses.fields(AnswerOptions)})
        return values | {"answering": answering}

    def for_task(self, task: Task, models: Mapping[str, PretrainedConfig]) -> "DataConfig":
        """With a length of texts that all models can read: the task's own where none was asked for.

        Raises:
            UserError: a model, of which each is given by its name in messages, has too few positions for that.
        """
        length = text_length(self.max_length, default=task.default_max_length, models=models)
        return dataclasses.replace(self, max_length=length)


@dataclass(frozen=True, kw_only=True)
class StructuredConfig:
    """Stages of structured pruning: how many heads and neurons go when."""

    _argument_group_name: ClassVar[str] = "heads and neurons (--method taylor)"

    stages: str | None = setting(
        None, "Percent of heads and neurons removed after each stage, such as 10,20,30. Default: --num_stages of them."
    )
    num_stages: int = setting(9, "Number of equal stages down to --density.")
    head_density: float | None = setting(None, "Fraction of the heads to keep. Default: --density.")
    neuron_density: float | None = setting(None, "Fraction of the FFN neurons to keep. Default: --density.")
    neuron_divisor: int = setting(
        1,
        "Leave a multiple of so many neurons in every layer that loses some, as near to the density as that allows; "
        "matrix products are faster with multiples of 16.",
    )
    importance_examples: int = setting(2048, "Training examples from which each stage's importance scores come.")
    normalize_importance: bool = setting(True, "Divide each layer's importance scores by their L2 norm.")

    def __post_init__(self) -> None:
        _require(self.num_stages >= 1, "num_stages", "at least 1", self.num_stages)
        for flag in ("importance_examples", "neuron_divisor"):
            _require(getattr(self, flag) >= 1, flag, "at least 1", getattr(self, flag))
        for flag in ("head_density", "neuron_density"):
            value = getattr(self, flag)
            _require(value is None or 0 < value <= 1, flag, "a fraction in (0, 1]", value)
        if self.stages is not None:
            refuse_unless_default(self, ("num_stages",), "only without --stages, which says how many there are")
        self.fractions()

    def fractions(self) -> list[float]:
        """How much of all that will be removed is gone after each stage; the last is 1.

        Raises:
            UserError: ``--stages`` is not a rising list of percentages.
        """
        if self.stages is None:
            return [stage / self.num_stages for stage in range(1, self.num_stages + 1)]
        percents = self.percents()
        return [percent / percents[-1] for percent in percents]

    def divisor(self, kind: str) -> int:
        """What the number of units of a kind in a layer is a multiple of: of ``heads`` or ``neurons``."""
        return self.neuron_divisor if kind == "neurons" else 1

    def complete(self, pruning: PruningConfig) -> PruningConfig:
        """With the density that ``--stages`` says, or the default, where a method of stages was given none."""
        if pruning.method != "taylor" or pruning.density is not None:
            return pruning
        density = DEFAULT_DENSITY if self.stages is None else round(1 - self.percents()[-1] / 100, 12)
        return dataclasses.replace(pruning, density=density)

    def percents(self) -> list[float]:
        """The percentages of ``--stages``, checked."""
        try:
            percents = [float(part) for part in (self.stages or "").split(",")]
        except ValueError:
            percents = []
        rising = all(low < high for low, high in pairwise([0.0, *percents]))
        ok = bool(percents) and rising and percents[-1] < 100
        _require(ok, "stages", "rising percentages such as 10,20,30", self.stages)
        return percents


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """The contrastive losses: which sources, how strong, against how many candidates."""

    _argument_group_name: ClassVar[str] = "contrastive losses and distillation"

    contrast: str = setting(
        "pretrained,snapshots,finetuned",
        "Sources to contrast with, joined by commas (PrC, SnC, FiC), or none.",
    )
    unsupervised_weight: float = setting(0.1, "Weight of each source's unsupervised term (same example).")
    supervised_weight: float = setting(0.005, "Weight of each source's supervised term (same label).")
    supervised_bins: int | None = setting(
        None, "Regression has no labels to contrast by: sort its numbers into N bins of equal size and take these."
    )
    temperature: float = setting(0.1, "Temperature of the contrastive losses.")
    normalization: Literal["supcon", "released"] = setting(
        "supcon",
        "Mean over anchors and positives (supcon), or what the paper's released code computes (released).",
    )
    extra_examples: int = setting(4096, "Bank rows of other examples that each batch is contrasted with, per source.")
    pooling: Literal["auto", "cls", "mean"] = setting(
        "auto",
        "Sentence representation: the mean over tokens, the pooler output or first token (cls), or by the task "
        "(auto): cls for question answering, else mean.",
    )
    bank_dtype: Literal["float16", "float32"] = setting("float16", "Number format of the representation banks.")
    bank_memory_gb: float = setting(
        4.0,
        "Memory for banks and the teacher's outputs, in gigabytes in each process. What does not fit as a whole (the "
        "representations of all sources, the outputs) stays on disk, memory-mapped.",
    )
    ce_weight: float = setting(0.1, "Weight of the cross-entropy with the labels.")
    kd_weight: float = setting(0.9, "Weight of the distillation of the teacher's logits.")
    kd_temperature: float = setting(2.0, "Temperature of the distillation.")

    def __post_init__(self) -> None:
        unknown = sorted(set(self.sources) - set(SOURCES))
        _require(not unknown, "contrast", f"none or some of {','.join(SOURCES)}", self.contrast)
        for flag in ("unsupervised_weight", "supervised_weight", "ce_weight", "kd_weight", "bank_memory_gb"):
            _require(getattr(self, flag) >= 0, flag, "zero or more", getattr(self, flag))
        _require(
            self.supervised_bins is None or self.supervised_bins >= 2,
            "supervised_bins",
            "at least 2",
            self.supervised_bins,
        )
        for flag in ("temperature", "kd_temperature"):
            _require(getattr(self, flag) > 0, flag, "a positive number", getattr(self, flag))
        _require(self.extra_examples >= 0, "extra_examples", "zero or more", self.extra_examples)

    def for_task(self, task: Task) -> "ContrastConfig":
        """With the task's own sentence representation where none was asked for.

        Raises:
            UserError: a setting that means nothing for the task was changed from its default.
        """
        if not task.objective.targets:
            reason = f"without effect on {task.name}, which has no labels and learns from a teacher's vectors alone"
            refuse_unless_default(self, ("ce_weight", "supervised_weight", "supervised_bins"), reason)
        if not task.objective.softens:
            reason = f"without effect on {task.name}, whose outputs are no probabilities to soften"
            refuse_unless_default(self, ("kd_temperature",), reason)
        if not isinstance(task.objective, Value):
            refuse_unless_default(self, ("supervised_bins",), f"only for regression, not for {task.name}")
        if task.pooling is not None:
            refuse_unless_default(self, ("pooling",), "without effect on embeddings: the model says how it pools")
        if self.pooling != "auto" or task.default_pooling is None:
            return self
        return dataclasses.replace(self, pooling=task.default_pooling)

    @property
    def idle(self) -> list[str]:
        """Settings changed from their defaults that have no effect, as nothing is contrasted by them."""
        if self.sources:
            return changed(self, ("supervised_bins",)) if self.supervised_weight == 0 else []
        weights = ("unsupervised_weight", "supervised_weight", "supervised_bins")
        return changed(self, (*weights, "temperature", "normalization", "extra_examples"))

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources asked for, in the paper's order."""
        asked = [name.strip() for name in self.contrast.split(",") if name.strip()]
        if asked == ["none"]:
            return ()
        return tuple(sorted(set(asked), key=lambda name: SOURCES.index(name) if name in SOURCES else len(SOURCES)))


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Models and where things go."""

    _argument_group_name: ClassVar[str] = "models and output"

    model: str = field(metadata={"help": "The pre-trained model: a directory or a hub name."})
    overwrite: bool = setting(False, "Delete what an earlier run left in --output_dir.")

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", model_in(self.model))


@dataclass(frozen=True, kw_only=True)
class PruneRunConfig(RunConfig):
    """Models and where things go, when pruning."""

    teacher: str = field(metadata={"help": "The fine-tuned model to compress: its directory or hub name."})
    cache_dir: str | None = setting(
        None,
        "Where the representations and logits of teacher and pre-trained model are kept for later runs. "
        "Default: $XDG_CACHE_HOME/contraprune.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "teacher", model_in(self.teacher))


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How to evaluate a finished model."""

    _argument_group_name: ClassVar[str] = "evaluation"

    batch_size: int = setting(64, "Examples per forward pass.")
    json: bool = setting(False, "Print the metrics as one line of JSON.")
    quiet: bool = setting(False, "No progress bar.")

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, "batch_size", "a positive number", self.batch_size)


@dataclass(frozen=True, kw_only=True)
class InspectionConfig:
    """What to show of a model."""

    _argument_group_name: ClassVar[str] = "pictures"

    picture: str | None = setting(
        None, "Also draw a heat map of all heads and neurons to this file (.png or .svg; needs matplotlib)."
    )


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Where a report goes."""

    _argument_group_name: ClassVar[str] = "report"

    output: str | None = setting(
        None,
        "The page to write. Default: report.html in the directory of the run or study; of several, comparison.html in "
        "the current one.",
    )

    def __post_init__(self) -> None:
        ends_right = self.output is None or self.output.lower().endswith((".html", ".htm"))
        _require(ends_right, "output", "a name that ends in .html", self.output)


@dataclass
class FinetuneArguments(TrainingArguments):
    """``transformers.TrainingArguments`` with defaults for fine-tuning a classifier of BERT's kind."""

    _argument_group_name: ClassVar[str] = "training (these and every other field of transformers.TrainingArguments)"

    output_dir: str | None = field(default=None, metadata={"help": "The directory of the run: everything goes there."})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "A checkpoint to start from. Default: the last one in --output_dir, if any."}
    )
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Batch size per device for training."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Batch size per device for evaluation."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of the weights."})
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Steps of linear warm-up; below 1: the fraction of all steps."}
    )
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={"help": "random, sequential, group_by_length or batch_rebalance."},
    )
    logging_steps: float = field(
        default=25, metadata={"help": "Log every N steps; below 1: the fraction of all steps."}
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Leave NaN losses out of the logged mean."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to write a checkpoint: no, steps or epoch."})
    save_total_limit: int | None = field(default=1, metadata={"help": "How many checkpoints to keep."})
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin the batches in memory, for a GPU."}
    )
    push_to_hub: bool = field(
        default=False, metadata={"help": "Push the finished model, with its card, to --hub_model_id on the hub."}
    )
    hub_model_id: str | None = field(
        default=None, metadata={"help": "Where --push_to_hub pushes to: NAME, or OWNER/NAME."}
    )
    report_to: None | str | list[str] = field(  # noqa: RUF036 - the order HfArgumentParser understands
        default="none", metadata={"help": "Loggers: none, all, tensorboard, wandb, ..."}
    )

    def __post_init__(self) -> None:
        _check_training(self)
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu = True  # which transformers would ask the user to say
        try:
            super().__post_init__()
        except Exception as error:  # of all classes: it opens files, parses JSON and looks for packages
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"training settings: {reason}") from error

    @property
    def n_gpu(self) -> int:
        """At most one GPU for a process: the threads that stock training gives further ones share no hooks, and
        masks no gradients. ``torchrun`` starts a process for each."""
        return min(super().n_gpu, 1)


@dataclass
class PruneArguments(FinetuneArguments):
    """:class:`FinetuneArguments` with defaults for pruning."""

    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Peak learning rate of the weights. Default: 2e-4, with --method taylor 5e-5."}
    )
    num_train_epochs: float | None = field(
        default=None, metadata={"help": "Training epochs; with --method taylor, of each stage. Default: 8, or 1."}
    )


# Fields of TrainingArguments that cannot mean here what they say, and why.
_REFUSED: dict[str, str] = {
    "load_best_model_at_end": "the best checkpoint of a pruning run is a denser one; leave it off",
    "save_only_model": "a run that is interrupted continues from its checkpoints; leave it off",
    "hub_always_push": "checkpoints are not pushed; --push_to_hub pushes the finished model",
    "deepspeed": "sharded weights cannot be ranked; use plain data parallelism",
    "fsdp": "sharded weights cannot be ranked; use plain data parallelism",
    "use_liger_kernel": "its fused layers bypass the masked ones; leave it off",
}
_WITHOUT_EFFECT = {
    "bf16_full_eval": "models are evaluated as they are saved",
    "fp16_full_eval": "models are evaluated as they are saved",
    "eval_accumulation_steps": "outputs leave the device batch by batch",
    "length_column_name": "lengths are counted in tokens, by us",
}
SHOWN_TRAINING_FIELDS = (
    "output_dir", "num_train_epochs", "max_steps", "learning_rate", "warmup_steps", "per_device_train_batch_size",
    "per_device_eval_batch_size", "gradient_accumulation_steps", "weight_decay", "seed", "bf16", "eval_strategy",
    "save_strategy", "logging_steps", "report_to", "disable_tqdm", "resume_from_checkpoint", "push_to_hub",
    "hub_model_id",
)  # fmt: skip


def _check_training(arguments: TrainingArguments) -> None:
    if arguments.output_dir is None:
        raise UserError("--output_dir: expected a directory for the results, found none")
    for name, reason in _REFUSED.items():
        value = getattr(arguments, name)
        if value and value != "false":
            raise UserError(f"--{name} {value}: not supported: {reason}")
    for option in dataclasses.fields(arguments):
        if option.name in _WITHOUT_EFFECT and (value := getattr(arguments, option.name)) != option.default:
            raise UserError(f"--{option.name} {value}: not supported: {_WITHOUT_EFFECT[option.name]}")
    _check_hub(arguments)
    for name in (
        "learning_rate", "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size",
        "gradient_accumulation_steps",
    ):  # fmt: skip
        value = getattr(arguments, name)
        _require(value is None or 0 < value < math.inf, name, "a positive number", value)
    workers = arguments.dataloader_num_workers
    _require(workers >= 0, "dataloader_num_workers", "a number from 0", workers)
    for name in ("seed", "data_seed"):
        value = getattr(arguments, name)
        _require(value is None or 0 <= value < 2**32, name, "a number from 0 to 4294967295", value)


def _check_hub(arguments: TrainingArguments) -> None:
    strategy = getattr(arguments.hub_strategy, "value", arguments.hub_strategy)
    if strategy not in ("every_save", "end"):  # the default, and what is done
        raise UserError(f"--hub_strategy {strategy}: not supported: only the finished model is pushed")
    if arguments.push_to_hub:
        _require(bool(arguments.hub_model_id), "hub_model_id", "the model's name with --push_to_hub", "none")
        return
    for name in ("hub_model_id", "hub_private_repo", "hub_revision"):
        if (value := getattr(arguments, name)) is not None:
            raise UserError(f"--{name} {value}: only with --push_to_hub")


def build(classes: Sequence[type[T]], options: Mapping[str, Any]) -> tuple[T, ...]:
    """Splits keyword options over settings classes.

    Raises:
        UserError: an option belongs to none of them, a required one is missing, or a value is refused.
    """
    names = {cls: {f.name for f in dataclasses.fields(cls) if f.init} for cls in classes}  # type: ignore[arg-type]
    unknown = sorted(set(options) - set().union(*names.values()))
    if unknown:
        raise UserError(f"{unknown[0]}: no such option{suggestion(unknown[0], set().union(*names.values()))}")
    built = []
    for cls in classes:
        chosen = {key: value for key, value in options.items() if key in names[cls]}
        try:
            built.append(cls(**chosen))
        except TypeError as error:
            raise UserError(f"a required option is missing ({error})") from error
    return tuple(built)


def suggestion(name: str, known: set[str]) -> str:
    """`` (did you mean X?)`` where a known name is close, else nothing."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def read_yaml(path: str) -> dict[str, Any]:
    """The mapping in a YAML file of settings.

    Raises:
        UserError: no such file, not YAML, or not a flat mapping of option names to values.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: cannot be read ({error})") from error
    except Exception as error:  # of all classes: what PyYAML makes of broken dates, numbers and nesting
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"--config {path}: not YAML ({reason:.300})") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"--config {path}: expected lines of 'option: value', found {type(content).__name__}")
    return content
