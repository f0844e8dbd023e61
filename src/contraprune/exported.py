"""Models in the formats of ONNX Runtime and OpenVINO, run by these, behind the call of a transformers model.

The files are those of ``transformers.exporters``; ``ExportedModel.from_pretrained`` of transformers reads the same
directory, and so do onnxruntime and openvino alone.
"""

import importlib.util
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contraprune.errors import UserError
from contraprune.runtime_options import onnx_options, openvino_options

RECORD = "export.json"  # what an export was made of, in every format; transformers' own manifest in these
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}


class RuntimeModel(nn.Module):
    """A model that ONNX Runtime or OpenVINO runs on the CPU: called like the transformers model it was made of.

    It has a configuration and outputs of that model's class, and no parameters.
    """

    def __init__(self, exported: Any) -> None:
        super().__init__()
        self.config = exported.config
        self.runtime = str(exported.export_format)
        self._exported = exported
        self._inputs = tuple(next(iter(exported.components.values())).metadata.kwargs)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def can_generate(self) -> bool:
        return False  # pipelines ask

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Any:
        """What the model that was exported returns.

        Args:
            input_ids: (batch, length) token ids.
            attention_mask: (batch, length), 0 for padding. Default: no padding.
            token_type_ids: (batch, length). Default: zeros.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        inputs = {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": types}
        return self._exported(**{name: inputs[name].contiguous() for name in self._inputs})


def exported_format(directory: Path | str) -> str | None:
    """``onnx`` or ``openvino`` where a model directory holds that, else None."""
    try:
        manifest = json.loads((Path(directory) / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = manifest.get("export_format") if isinstance(manifest, dict) else None
    return found if found in PACKAGES else None


def load_exported(directory: Path | str, *, threads: int | None = None) -> RuntimeModel:
    """The model of a directory that holds an ONNX or OpenVINO model, ready to run.

    Args:
        threads: of the runtime. Default: torch's number.

    Raises:
        UserError: a package is missing, or a file is damaged.
    """
    name = exported_format(directory)
    assert name is not None
    require_packages(name, str(directory))
    from transformers.exporters.base import ExportedModel

    threads = torch.get_num_threads() if threads is None else threads
    if threads < 1:
        raise UserError(f"threads: expected at least 1, found {threads}")
    onnx = name == "onnx"
    options = {"session_options": onnx_options(threads)} if onnx else {"config": openvino_options(threads)}
    try:
        with without_remarks():
            exported = ExportedModel.from_pretrained(directory, device="cpu", local_files_only=True, **options)
    except Exception as error:  # each runtime has exceptions of its own
        reason = " ".join(str(error).split())
        raise UserError(f"{directory}: expected {name} as contraprune export writes it ({reason:.200})") from error
    architecture = exported.components["model"].metadata.architecture
    own = type(architecture, (RuntimeModel,), {"__module__": __name__})  # pipelines look models up by this name
    return own(exported).eval()


def require_packages(name: str, what: str, *more: str) -> None:
    """Refuses to go on without the packages of a format, and ``more``.

    Raises:
        UserError: one is missing; says how to install them, and ``what`` needs them.
    """
    missing = [package for package in (*PACKAGES[name], *more) if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"{what}: needs {' and '.join(missing)}; pip install 'contraprune[{name}]'")


@contextmanager
def without_remarks() -> Iterator[None]:
    """Keeps back what exporters and loaders log below the level of an error: versions they were not tested with."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
