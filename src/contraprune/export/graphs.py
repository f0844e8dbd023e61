"""ONNX and OpenVINO: the model as a graph for any batch size and length, made by ``transformers.exporters``."""

import copy
import io
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from contraprune.errors import UserError
from contraprune.exported import load_exported, require_packages, without_remarks
from contraprune.remote_code import KEY
from contraprune.shrinking import fill_empty

if TYPE_CHECKING:
    from contraprune.export.job import Source

TOLERANCE = 1e-4
_SHAPES = ((3, 17), (1, 40), (2, 1), (1, 1))  # batch and length; the first is what is traced
_NOT_IN_A_GRAPH = ("auto_map", KEY)  # of a shrunk model's config.json: how torch rebuilds it


def write_onnx(source: "Source", directory: Path, values: str) -> float | None:
    """``model.onnx``, with int8 by ONNX Runtime's dynamic quantization: it needs no calibration data.

    Returns:
        In float32 the :func:`largest_difference` of its outputs from PyTorch's.

    Raises:
        UserError: a package is missing, or float32 outputs differ from PyTorch's.
    """
    require_packages("onnx", "--format onnx")
    from transformers.exporters import OnnxConfig, OnnxExporter
    from transformers.exporters.quantizers import OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    quantizer = OnnxRuntimeQuantizer(OnnxRuntimeDynamicConfig(per_channel=True)) if values == "int8" else None
    return _write(source, directory, values, OnnxExporter, OnnxConfig, quantizer)


def write_openvino(source: "Source", directory: Path, values: str) -> float | None:
    """``openvino_model.xml`` and ``.bin``, with int8 by NNCF's quantization of weights and activations.

    The ranges of the activations come from ``source.calibration``, batches of real text. Weights alone could be had
    without, but are then multiplied in float32.

    Returns:
        In float32 the :func:`largest_difference` of its outputs from PyTorch's.

    Raises:
        UserError: a package is missing, or float32 outputs differ from PyTorch's.
    """
    require_packages("openvino", "--format openvino", *(["nncf"] if values == "int8" else []))
    from transformers.exporters import OpenVINOConfig, OpenVINOExporter
    from transformers.exporters.quantizers import NNCFOpenVINOQuantizer

    quantizer = None
    if values == "int8":
        batches = [{name: batch[name] for name in source.inputs} for batch in source.calibration]
        quantizer = NNCFOpenVINOQuantizer(calibration_dataset=batches)
    return _write(source, directory, values, OpenVINOExporter, OpenVINOConfig, quantizer)


def _write(source: "Source", directory: Path, values: str, exporter: Any, config: Any, quantizer: Any) -> float | None:
    model = copy.deepcopy(source.model)
    fill_empty(model)  # ONNX Runtime fails on a layer without heads
    sample = sample_batch(model.config, source.inputs, *_SHAPES[0])
    # Only these two axes: a graph is for any batch size and length.
    free = {name: dict.fromkeys((0, 1), torch.export.Dim.AUTO) for name in sample}
    options = config(dynamic_shapes=free, quantizer=quantizer)
    with without_remarks(), redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = exporter().export(model, sample, options)
        exported.config = copy.deepcopy(model.config)
        exported.config.architectures = [type(model).__name__]
        for name in _NOT_IN_A_GRAPH:
            if hasattr(exported.config, name):
                delattr(exported.config, name)
        exported.save_pretrained(directory)
    loaded = load_exported(directory)
    if values == "int8":  # what that costs shows on real texts only: the ranges were made for them
        return None
    difference = largest_difference(source.model, loaded, source.inputs)
    if not difference <= TOLERANCE:
        raise UserError(f"--format {exported.export_format}: its outputs differ from PyTorch's by {difference:.1e}")
    return difference


@torch.no_grad()
def largest_difference(model: PreTrainedModel, exported: Any, inputs: Sequence[str]) -> float:
    """Between the outputs of two models, over batches of several shapes with padding; outputs at padding excepted.

    Per output it is relative to the largest absolute value that ``model`` gives, where that is above 1.
    """
    worst = 0.0
    for seed, shape in enumerate(_SHAPES):
        batch = sample_batch(model.config, inputs, *shape, seed=seed)
        found = _tensors(exported(**batch))
        for name, expected in _tensors(model(**batch)).items():
            difference = (found[name] - expected).abs()
            if expected.shape[:2] == shape:
                difference = difference[batch["attention_mask"].bool()]
            worst = max(worst, float(difference.max() / expected.abs().max().clamp(min=1)))
    return worst


def sample_batch(config: Any, inputs: Sequence[str], batch: int, length: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Random tokens, padded on the right: the first text fills the batch, each next one is a little shorter.

    Where the model has two token types, the second half of each text is of the other one, as in a pair of texts.

    Returns:
        ``inputs``, each (batch, length), long.
    """
    generator = torch.Generator().manual_seed(seed)
    most = getattr(config, "max_position_embeddings", None)  # T5 has no limit
    length = length if most is None else min(length, most // 2)
    lengths = (length - 3 * torch.arange(batch)).clamp(min=1)
    mask = (torch.arange(length) < lengths[:, None]).long()
    padding = getattr(config, "pad_token_id", None) or 0
    ids = torch.randint(config.vocab_size, (batch, length), generator=generator)
    ids[ids == padding] = (padding + 1) % config.vocab_size
    two_types = getattr(config, "type_vocab_size", 0) > 1
    second = (torch.arange(length) >= (lengths[:, None] + 1) // 2) & two_types
    values = {
        "input_ids": torch.where(mask.bool(), ids, padding),
        "attention_mask": mask,
        "token_type_ids": second.long() * mask,
    }
    return {name: values[name] for name in inputs}


def _tensors(outputs: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in outputs.items() if isinstance(value, Tensor)}
