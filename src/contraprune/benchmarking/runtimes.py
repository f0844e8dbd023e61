"""One way to run a model directory in each runtime. Only the runtime that is used is imported."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from contraprune.runtime_options import onnx_options, openvino_options

Run = Callable[[Mapping[str, np.ndarray]], np.ndarray]
Format = Literal["dense", "sparse", "onnx", "openvino"]


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A runtime in one precision.

    Attributes:
        format: of the directories it reads, as ``contraprune export`` calls it.
        values: likewise, of the weights.
        packages: what it needs beyond contraprune.
        exact: whether it computes in float32, so that its outputs have to be PyTorch's.
    """

    format: Format
    values: Literal["float32", "int8"] = "float32"
    packages: tuple[str, ...] = ()
    exact: bool = True

    @property
    def installed(self) -> bool:
        return all(importlib.util.find_spec(package) is not None for package in self.packages)


_ONNX = ("onnx", "onnxscript", "onnxruntime")
RUNTIMES: dict[str, Runtime] = {
    "torch": Runtime(format="dense"),
    "torch-bf16": Runtime(format="dense", exact=False),
    "onnx": Runtime(format="onnx", packages=_ONNX),
    "onnx-int8": Runtime(format="onnx", values="int8", packages=_ONNX, exact=False),
    "openvino": Runtime(format="openvino", packages=("openvino",)),
    "openvino-int8": Runtime(format="openvino", values="int8", packages=("openvino", "nncf"), exact=False),
    "sparse": Runtime(format="sparse"),
}


def installed() -> list[str]:
    """The names of the runtimes whose packages are here."""
    return [name for name, runtime in RUNTIMES.items() if runtime.installed]


def open_model(runtime: str, directory: Path, threads: int) -> Run:
    """A function from input arrays by name, each (batch, length) int64, to the model's first output.

    ONNX Runtime and OpenVINO are called directly, without torch in between, as they are where they are deployed.
    """
    match RUNTIMES[runtime].format:
        case "onnx":
            return _onnx(directory, threads)
        case "openvino":
            return _openvino(directory, threads)
        case _:
            return _torch(runtime, directory, threads)


def _onnx(directory: Path, threads: int) -> Run:
    import onnxruntime

    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(directory / "model.onnx", onnx_options(threads), providers=providers)
    names = [port.name for port in session.get_inputs()]
    output = session.get_outputs()[0].name
    return lambda inputs: session.run([output], {name: inputs[name] for name in names})[0]


def _openvino(directory: Path, threads: int) -> Run:
    import openvino

    model = directory / "openvino_model.xml"
    compiled = openvino.Core().compile_model(model, "CPU", openvino_options(threads))
    request = compiled.create_infer_request()
    names = [port.any_name for port in compiled.inputs]

    def run(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        request.infer({name: inputs[name] for name in names}, share_inputs=True)
        output: np.ndarray = request.get_output_tensor(0).data
        return output

    return run


def _torch(runtime: str, directory: Path, threads: int) -> Run:
    import torch

    from contraprune.saving import load

    torch.set_num_threads(threads)
    model: Any = load(directory, engine="torch" if RUNTIMES[runtime].format == "dense" else "auto", threads=threads)
    if runtime == "torch-bf16":
        model = model.to(torch.bfloat16)

    @torch.inference_mode()
    def run(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        outputs = model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        first = next(value for value in outputs.values() if isinstance(value, torch.Tensor))
        array: np.ndarray = first.float().numpy()
        return array

    return run
