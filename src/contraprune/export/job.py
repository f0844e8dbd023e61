"""``contraprune export``: one model, one format, one new directory, and what it kept of the metric."""

import inspect
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from contraprune.config import DataConfig, EvaluationConfig
from contraprune.errors import UserError
from contraprune.evaluation import evaluate_path
from contraprune.export.dense import write_dense
from contraprune.export.graphs import write_onnx, write_openvino
from contraprune.export.sparse import write_sparse_model
from contraprune.exported import RECORD
from contraprune.files import replace_folder, temporary_name, write_json, write_text
from contraprune.inspection import weight_bytes
from contraprune.padding import require_padding
from contraprune.saving import has_tokenizer, load, load_config, load_tokenizer, model_directory
from contraprune.settings import setting
from contraprune.tasks import load_task
from contraprune.tasks.sentences import MODULES, read_sentence_model

_VALUES = {
    "sparse": ("float32", "float16"),
    "dense": ("float32", "float16"),
    "onnx": ("float32", "int8"),
    "openvino": ("float32", "int8"),
}
_GRAPHS = {"onnx": write_onnx, "openvino": write_openvino}
CALIBRATION_TEXTS = 128


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What to write, and where."""

    _argument_group_name: ClassVar[str] = "export"

    output_dir: str | None = setting(None, "A new directory for the exported model.")
    format: Literal["sparse", "dense", "onnx", "openvino"] = setting(
        "sparse",
        "sparse: compressed, for contraprune's sparse CPU engine (contraprune.load). dense: safetensors as "
        "transformers loads them. onnx, openvino: a graph for ONNX Runtime or OpenVINO, which need neither torch nor "
        "contraprune.",
    )
    values: Literal["float32", "float16", "int8"] = setting(
        "float32",
        "Number format of the weight matrices; float32 is exact. float16: sparse (biases and norms stay float32) and "
        "dense. int8: onnx (dynamic quantization), and openvino (weights and activations; needs training data).",
    )
    embeddings: Literal["float32", "float16", "int8"] | None = setting(
        None, "Number format of the embeddings, in the sparse format only. Default: --values."
    )
    overwrite: bool = setting(False, "Replace what an earlier export left in --output_dir.")

    def __post_init__(self) -> None:
        if self.values not in _VALUES[self.format]:
            expected = " or ".join(_VALUES[self.format])
            raise UserError(f"--values {self.values}: expected {expected} with --format {self.format}")
        if self.format != "sparse" and self.embeddings not in (None, self.values):
            raise UserError(
                f"--embeddings {self.embeddings}: expected --values' {self.values} or nothing with --format "
                f"{self.format}"
            )


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is exported.

    Attributes:
        inputs: the arguments of the model's forward pass that its tokenizer makes.
        calibration: batches of training texts, where the format needs them.
    """

    model: PreTrainedModel
    inputs: tuple[str, ...]
    calibration: Sequence[Mapping[str, Tensor]]


def run_export(path: str, data: DataConfig, config: ExportConfig) -> dict[str, Any]:
    """Writes a model in another format, and where data are named, measures it before and after.

    Args:
        path: the model directory, or the run directory that holds it; in any format that contraprune wrote.

    Returns:
        What is written to ``export.json``: the format, ``bytes`` of the weights before and after, ``metrics``, and of
        a float32 graph the ``largest_difference`` of its outputs from PyTorch's.

    Raises:
        UserError: the model, the data or the directory cannot be used.
    """
    source = model_directory(path)
    directory = _claim(config, source)
    model = load(source, engine="torch")
    tokenizer = load_tokenizer(str(source)) if has_tokenizer(source) else None
    if tokenizer is not None:
        require_padding(tokenizer, model.config, name=str(source))
    measured = data.task is not None or data.validation_file is not None
    calibration = _calibration(source, tokenizer, data, config)
    before = evaluate_path(str(source), data, EvaluationConfig()).metrics if measured else None
    temporary = temporary_name(directory)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    record: dict[str, Any] = {}
    if config.format == "sparse":
        write_sparse_model(model, temporary, config)
    elif config.format == "dense":
        write_dense(model, temporary, config)
    else:
        exported = Source(model=model, inputs=graph_inputs(model, tokenizer), calibration=calibration)
        difference = _GRAPHS[config.format](exported, temporary, config.values)
        # transformers' manifest, which it finds under this name and whose other keys it leaves alone
        record = json.loads((temporary / RECORD).read_text())
        record |= {} if difference is None else {"largest_difference": difference}
    if tokenizer is not None:
        tokenizer.save_pretrained(temporary)
    if (source / MODULES).is_file():
        for name, text in read_sentence_model(str(source), model.config.hidden_size).files.items():
            write_text(temporary / name, text)
    record |= {
        "source": path,
        "format": config.format,
        "values": config.values,
        "embeddings": config.embeddings or config.values,
        "bytes": {"before": weight_bytes(source), "after": weight_bytes(temporary)},
    }
    write_json(temporary / RECORD, record)
    if before is not None:
        after = evaluate_path(str(temporary), data, EvaluationConfig()).metrics
        record["metrics"] = {name: {"before": value, "after": after[name]} for name, value in before.items()}
        write_json(temporary / RECORD, record)
    replace_folder(temporary, directory)
    return record


def graph_inputs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, ...]:
    """What a graph of the model takes: the arguments of its forward pass that its tokenizer makes."""
    made = tokenizer.model_input_names if tokenizer is not None else ["input_ids", "attention_mask"]
    taken = inspect.signature(model.forward).parameters
    return tuple(name for name in ("input_ids", "attention_mask", "token_type_ids") if name in made and name in taken)


def _calibration(
    source: Path, tokenizer: PreTrainedTokenizerBase | None, data: DataConfig, config: ExportConfig
) -> list[dict[str, Tensor]]:
    """The first training texts, one by one: without padding, whose activations would widen the ranges."""
    if (config.format, config.values) != ("openvino", "int8"):
        return []
    if tokenizer is None or (data.task is None and data.train_file is None):
        missing = f"{source} has no tokenizer" if tokenizer is None else "found neither --task nor --train_file"
        raise UserError(f"--format openvino --values int8: expected training texts to calibrate on, {missing}")
    few = min(CALIBRATION_TEXTS, data.max_train_samples or CALIBRATION_TEXTS)
    options = data.source() | {"max_train_samples": few, "need_evaluation": False}
    model_config = load_config(str(source))
    names = [label for _, label in sorted(model_config.id2label.items())]
    task = load_task(**options, seed=0, known_labels=names)
    max_length = data.for_task(task, {str(source): model_config}).max_length
    assert task.train is not None
    assert max_length is not None
    rows = task.encode(task.train, tokenizer, max_length=max_length)
    collate = task.collator(tokenizer)
    return [collate([row]) for row in rows.remove_columns("length").select(range(min(few, len(rows))))]


def _claim(config: ExportConfig, source: Path) -> Path:
    if config.output_dir is None:
        raise UserError("--output_dir: expected a directory for the exported model, found none")
    directory = Path(config.output_dir)
    if directory.exists() and directory.resolve() == source.resolve():
        raise UserError(f"--output_dir {directory}: that is the model itself; name another directory")
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--output_dir {directory}: expected a directory, found a file")
    if directory.is_dir() and any(directory.iterdir()):
        if not (directory / RECORD).is_file():
            raise UserError(f"--output_dir {directory}: not empty, and not an export; name another directory")
        if not config.overwrite:
            raise UserError(f"--output_dir {directory}: holds an earlier export; use --overwrite to replace it")
    return directory
