"""Models to and from directories in the sparse format."""

from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from contraprune.engine.families import describe, embedding_names, tensors, why_not
from contraprune.engine.format import FILE, DType, SparseFile, read, write
from contraprune.engine.model import assemble
from contraprune.errors import UserError
from contraprune.remote_code import empty_model

Engine = Literal["auto", "sparse", "torch"]


def is_sparse(directory: Path | str) -> bool:
    """Whether a model directory holds the sparse format."""
    return (Path(directory) / FILE).is_file()


def write_sparse(
    model: PreTrainedModel, directory: Path, *, values: DType = "float32", embeddings: DType = "float32"
) -> None:
    """Writes a model's weights in the sparse format into an existing directory; its configuration is not written.

    Args:
        values: number format of weight matrices; biases and norms always stay float32.
        embeddings: number format of embeddings; int8 has one factor per row.

    Raises:
        UserError: a value is beyond float16.
    """
    tables = embedding_names(model)

    def dtype(name: str, tensor: Tensor) -> DType:
        return "float32" if tensor.dim() < 2 else embeddings if name in tables else values

    stored = (
        (name, tensor.detach().float().cpu().numpy(), dtype(name, tensor)) for name, tensor in tensors(model).items()
    )
    write(directory / FILE, stored, _facts(model))


def load_sparse(
    model_class: Any, config: Any, directory: Path | str, *, engine: Engine = "auto", threads: int | None = None
) -> PreTrainedModel:
    """The model of a directory in the sparse format, in eval mode.

    Args:
        model_class: a transformers model or Auto class.
        config: what was read from the directory.
        engine: ``sparse`` runs it in the sparse engine, ``torch`` gives a dense torch model, ``auto`` takes the
            engine where it knows the family.
        threads: of the engine. Default: torch's number.

    Raises:
        UserError: the file is damaged or does not fit the configuration, or the engine does not know the family.
    """
    if engine not in get_args(Engine):
        raise UserError(f"engine: expected one of {', '.join(get_args(Engine))}, found {engine!r:.40}")
    model = empty_model(model_class, config, str(directory))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors(model).items()}
    file = read(Path(directory) / FILE, shapes, _facts(model))
    if engine == "torch" or (engine == "auto" and why_not(model) is not None):
        model = empty_model(model_class, config, str(directory), device="cpu")
        return _fill(model, file).eval()
    return assemble(model, describe(model), file.values, threads=threads).eval()


def _fill(model: PreTrainedModel, file: SparseFile) -> PreTrainedModel:
    with torch.no_grad():
        for name, tensor in tensors(model).items():
            tensor.copy_(torch.from_numpy(file.values(name)))
    return model


def _facts(model: PreTrainedModel) -> dict[str, Any]:
    """What the configuration has to say of the weights, beyond their shapes."""
    config: Any = model.config
    supported = why_not(model) is None
    return {
        "model_type": config.model_type,
        "num_attention_heads": getattr(config, "num_attention_heads", None),
        "encoder": describe(model).facts() if supported else None,
    }
