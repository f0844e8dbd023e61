"""``contraprune export``: one model, one format, one new directory, and what it kept of the metric."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from transformers import PreTrainedModel

from contraprune.config import DataConfig, EvaluationConfig
from contraprune.errors import UserError
from contraprune.evaluation import evaluate_path
from contraprune.export.dense import write_dense
from contraprune.export.sparse import write_sparse_model
from contraprune.files import replace_folder, temporary_name, write_json
from contraprune.inspection import weight_bytes
from contraprune.saving import has_tokenizer, load, load_tokenizer, model_directory
from contraprune.settings import setting

RECORD = "export.json"


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What to write, and where."""

    _argument_group_name: ClassVar[str] = "export"

    output_dir: str | None = setting(None, "A new directory for the exported model.")
    format: Literal["sparse", "dense"] = setting(
        "sparse",
        "sparse: compressed, for contraprune's sparse CPU engine (contraprune.load). dense: safetensors as "
        "transformers loads them.",
    )
    values: Literal["float32", "float16"] = setting(
        "float32", "Number format of the weight matrices; float32 is exact. Sparse biases and norms stay float32."
    )
    embeddings: Literal["float32", "float16", "int8"] | None = setting(
        None, "Number format of the embeddings (int8 in the sparse format only). Default: --values."
    )
    overwrite: bool = setting(False, "Replace what an earlier export left in --output_dir.")

    def __post_init__(self) -> None:
        if self.format == "dense" and self.embeddings not in (None, self.values):
            raise UserError(
                f"--embeddings {self.embeddings}: expected --values' {self.values} or nothing with --format dense"
            )


_WRITERS: dict[str, Callable[[PreTrainedModel, Path, ExportConfig], None]] = {
    "sparse": write_sparse_model,
    "dense": write_dense,
}


def run_export(path: str, data: DataConfig, config: ExportConfig) -> dict[str, Any]:
    """Writes a model in another format, and where data are named, measures it before and after.

    Args:
        path: the model directory, or the run directory that holds it; in any format that contraprune wrote.

    Returns:
        What is written to ``export.json``: the format, ``bytes`` of the weights before and after, and ``metrics``.

    Raises:
        UserError: the model, the data or the directory cannot be used.
    """
    source = model_directory(path)
    directory = _claim(config, source)
    model = load(source, engine="torch")
    measured = data.task is not None or data.validation_file is not None
    before = evaluate_path(str(source), data, EvaluationConfig()).metrics if measured else None
    temporary = temporary_name(directory)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    _WRITERS[config.format](model, temporary, config)
    if has_tokenizer(source):
        load_tokenizer(str(source)).save_pretrained(temporary)
    record: dict[str, Any] = {
        "source": path,
        "format": config.format,
        "values": config.values,
        "embeddings": config.embeddings or config.values,
        "bytes": {"before": weight_bytes(source), "after": weight_bytes(temporary)},
    }
    if before is not None:
        after = evaluate_path(str(temporary), data, EvaluationConfig()).metrics
        record["metrics"] = {name: {"before": value, "after": after[name]} for name, value in before.items()}
    write_json(temporary / RECORD, record)
    replace_folder(temporary, directory)
    return record


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
