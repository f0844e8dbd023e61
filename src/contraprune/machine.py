"""What a benchmark ran on: every results file carries it."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_FEATURES = ("avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "sve")
_RUNTIMES = ("onnxruntime", "openvino", "nncf")


def describe() -> dict[str, Any]:
    """Processor, its vector instructions, cores this process may use, torch's threads, accelerator, package versions
    (None: not installed) and date (UTC)."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_model(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cpu_features": _cpu_features(),
        "cores": usable,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "numpy": version("numpy"),
        **{package: _version(package) for package in _RUNTIMES},
        "date": datetime.now(UTC).date().isoformat(),
    }


def _cpuinfo(*keys: str) -> str | None:
    """The first entry of Linux's /proc/cpuinfo under one of these names."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else []:
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return None


def _cpu_features() -> list[str]:
    found = set((_cpuinfo("flags", "Features") or "").split())
    return [feature for feature in _FEATURES if feature in found]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    name = _cpuinfo("model name")
    if name is not None:
        return name
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return platform.processor() or platform.machine()
