"""Every setting of a run, once: its name (the flag), default, meaning and check.

Settings are frozen dataclasses; the flags of the command line, the keys of a YAML file and the keyword arguments
of :func:`contraprune.prune` are their field names. Whatever concerns the training loop itself is a field of
``transformers.TrainingArguments``, whose defaults :class:`FinetuneArguments` and :class:`PruneArguments` change
where a classifier or a sparse model needs it.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
import yaml
from transformers import TrainingArguments

from contraprune.errors import UserError

Source = Literal["pretrained", "snapshots", "finetuned"]
SOURCES: tuple[Source, ...] = ("pretrained", "snapshots", "finetuned")
T = TypeVar("T")


def setting(default: Any, help: str) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def _require(ok: bool, flag: str, expected: str, found: object) -> None:
    if not ok:
        raise UserError(f"--{flag}: expected {expected}, found {found}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data to train and evaluate on."""

    _argument_group_name: ClassVar[str] = "data"

    task: str | None = setting(None, "A GLUE task (sst2, mnli, qqp, ...) or toy, a small set made by contraprune.")
    data_dir: str | None = setting(
        None,
        "Folder with train and validation files of --task (.jsonl, .csv, .tsv, .parquet). Default: the hub.",
    )
    task_type: str | None = setting(
        None,
        "What your own files are for: classification, regression, multi_label or token_classification. "
        "Default: classification.",
    )
    train_file: str | None = setting(
        None, "Your own training file (.jsonl, .csv, .tsv, .parquet; of tokens also .conll, .txt), without --task."
    )
    validation_file: str | None = setting(None, "Your own validation file.")
    text_columns: list[str] | None = setting(None, "Column(s) of the text: one, or two for pairs. Default: guessed.")
    label_column: str | None = setting(
        None, "Column of the label (label), the list of labels (label, labels) or the tags (ner_tags, tags, labels)."
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
    max_length: int = setting(128, "Texts are cut to this many tokens.")

    def __post_init__(self) -> None:
        _require(self.max_length >= 4, "max_length", "at least 4", self.max_length)
        for flag in ("max_train_samples", "max_eval_samples"):
            value = getattr(self, flag)
            _require(value is None or value >= 1, flag, "a positive number", value)

    def source(self) -> dict[str, Any]:
        """The settings that say which rows to load: those of ``contraprune.tasks.load_task``."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "max_length"}


@dataclass(frozen=True, kw_only=True)
class PruningConfig:
    """What is removed, by which criterion, and when."""

    _argument_group_name: ClassVar[str] = "pruning"

    method: Literal["movement", "magnitude", "taylor"] = setting(
        "movement",
        "What is removed, and by which criterion: single weights by movement (learned scores) or magnitude, or whole "
        "heads and neurons by taylor.",
    )
    density: float = setting(0.1, "Fraction of the encoder's weights to keep, in (0, 1].")
    scope: Literal["local", "global"] = setting(
        "local", "Keep that fraction of each matrix (local) or of all matrices together (global)."
    )
    start_from: Literal["teacher", "pretrained"] = setting(
        "teacher", "Weights the pruning starts from: the fine-tuned teacher's or the pre-trained model's."
    )
    freeze_embeddings: bool = setting(
        False, "Leave the word embeddings as they are: words that the training data lacks then stay where they were."
    )
    score_init: Literal["saliency", "magnitude", "zero"] = setting(
        "saliency",
        "Movement: what the scores start from: the rank of the weight's diagonal-Fisher saliency under the starting "
        "model, the rank of its magnitude, or zero (Sanh et al. 2020).",
    )
    score_learning_rate: float = setting(1e-3, "Movement: peak learning rate of the scores.")
    prune_warmup: float = setting(0.1, "Fraction of the run before the density starts to fall from 1.")
    prune_cooldown: float = setting(0.3, "Fraction of the run, at its end, that trains at the final density.")
    freeze_masks: float = setting(0.15, "Fraction of the run, at its end, in which the masks no longer change.")

    def __post_init__(self) -> None:
        _require(0 < self.density <= 1, "density", "a fraction in (0, 1]", self.density)
        _require(self.score_learning_rate > 0, "score_learning_rate", "a positive number", self.score_learning_rate)
        for flag in ("prune_warmup", "prune_cooldown", "freeze_masks"):
            _require(0 <= getattr(self, flag) <= 1, flag, "a fraction of the run in [0, 1]", getattr(self, flag))
        both = self.prune_warmup + self.prune_cooldown
        _require(both <= 1, "prune_warmup", "prune_warmup + prune_cooldown of at most 1", both)
        _require(
            self.freeze_masks <= self.prune_cooldown,
            "freeze_masks",
            f"at most prune_cooldown ({self.prune_cooldown}): masks freeze at the final density",
            self.freeze_masks,
        )


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
    importance_examples: int = setting(2048, "Training examples from which each stage's importance scores come.")
    normalize_importance: bool = setting(True, "Divide each layer's importance scores by their L2 norm.")

    def __post_init__(self) -> None:
        _require(self.num_stages >= 1, "num_stages", "at least 1", self.num_stages)
        _require(self.importance_examples >= 1, "importance_examples", "at least 1", self.importance_examples)
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

    def percents(self) -> list[float]:
        """The percentages of ``--stages``, checked."""
        try:
            percents = [float(part) for part in (self.stages or "").split(",")]
        except ValueError:
            percents = []
        rising = all(low < high for low, high in pairwise([0.0, *percents]))
        ok = bool(percents) and rising and percents[-1] <= 100
        _require(ok, "stages", "rising percentages such as 10,20,30", self.stages)
        return percents


def refuse_unless_default(config: Any, names: Sequence[str], reason: str) -> None:
    """Refuses settings that would have no effect.

    Raises:
        UserError: one of the fields ``names`` of ``config`` was changed from its default.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    for name in names:
        if getattr(config, name) != defaults[name]:
            raise UserError(f"--{name} {getattr(config, name)}: {reason}")


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
    pooling: Literal["cls", "mean"] = setting(
        "mean", "Sentence representation: the mean over tokens, or the pooler output or first token (cls)."
    )
    bank_dtype: Literal["float16", "float32"] = setting("float16", "Number format of the representation banks.")
    bank_memory_gb: float = setting(4.0, "Banks beyond this many gigabytes in all stay on disk (memory-mapped).")
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


@dataclass(frozen=True, kw_only=True)
class PruneRunConfig(RunConfig):
    """Models and where things go, when pruning."""

    teacher: str = field(metadata={"help": "The fine-tuned model to compress: its directory or hub name."})
    cache_dir: str | None = setting(
        None,
        "Where the representations and logits of teacher and pre-trained model are kept for later runs. "
        "Default: $XDG_CACHE_HOME/contraprune.",
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How to evaluate a finished model."""

    _argument_group_name: ClassVar[str] = "evaluation"

    batch_size: int = setting(64, "Examples per forward pass.")
    json: bool = setting(False, "Print the metrics as one line of JSON.")
    quiet: bool = setting(False, "No progress bar.")

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, "batch_size", "a positive number", self.batch_size)


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
    report_to: None | str | list[str] = field(  # noqa: RUF036 - the order HfArgumentParser understands
        default="none", metadata={"help": "Loggers: none, all, tensorboard, wandb, ..."}
    )

    def __post_init__(self) -> None:
        _check_training(self)
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu = True  # which transformers would ask the user to say
        try:
            super().__post_init__()
        except (ValueError, ImportError) as error:
            raise UserError(f"training settings: {' '.join(str(error).split())}") from error


@dataclass
class PruneArguments(FinetuneArguments):
    """:class:`FinetuneArguments` with defaults for pruning."""

    learning_rate: float = field(default=2e-4, metadata={"help": "Peak learning rate of the weights."})
    num_train_epochs: float | None = field(
        default=None, metadata={"help": "Training epochs; with --method taylor, of each stage. Default: 8, or 1."}
    )


# Fields of TrainingArguments that cannot mean here what they say, and why.
_REFUSED: dict[str, str] = {
    "load_best_model_at_end": "the best checkpoint of a pruning run is a denser one; leave it off",
    "push_to_hub": "upload OUTPUT_DIR/model when the run is over (hf upload)",
    "deepspeed": "sharded weights cannot be ranked; use plain data parallelism",
    "fsdp": "sharded weights cannot be ranked; use plain data parallelism",
    "use_liger_kernel": "its fused layers bypass the masked ones; leave it off",
}
SHOWN_TRAINING_FIELDS = (
    "output_dir", "num_train_epochs", "max_steps", "learning_rate", "warmup_steps", "per_device_train_batch_size",
    "per_device_eval_batch_size", "gradient_accumulation_steps", "weight_decay", "seed", "bf16", "eval_strategy",
    "save_strategy", "logging_steps", "report_to", "disable_tqdm", "resume_from_checkpoint",
)  # fmt: skip


def _check_training(arguments: TrainingArguments) -> None:
    if arguments.output_dir is None:
        raise UserError("--output_dir: expected a directory for the results, found none")
    for name, reason in _REFUSED.items():
        value = getattr(arguments, name)
        if value and value != "false":
            raise UserError(f"--{name} {value}: not supported: {reason}")
    for name in ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size"):
        value = getattr(arguments, name)
        _require(value is None or value > 0, name, "a positive number", value)


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
    except yaml.YAMLError as error:
        raise UserError(f"--config {path}: not YAML ({' '.join(str(error).split())})") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"--config {path}: expected lines of 'option: value', found {type(content).__name__}")
    return content
