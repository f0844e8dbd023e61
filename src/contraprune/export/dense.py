"""Plain safetensors: what ``from_pretrained`` loads, zeros and all."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from contraprune.errors import UserError
from contraprune.remote_code import declare_shapes

if TYPE_CHECKING:
    from contraprune.export.job import ExportConfig


def write_dense(model: PreTrainedModel, directory: Path, config: "ExportConfig") -> None:
    """What ``from_pretrained`` loads; a shrunk model as ``contraprune.saving.save_model`` describes.

    Raises:
        UserError: a value is beyond float16.
    """
    if config.values == "float16":
        for name, parameter in model.named_parameters():
            if parameter.isfinite().all() and not parameter.half().isfinite().all():
                raise UserError(f"--values float16: {name} has values beyond its range; use float32")
        model = model.to(torch.float16)
    declare_shapes(model)
    model.save_pretrained(directory)
