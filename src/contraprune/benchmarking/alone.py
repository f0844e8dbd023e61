"""One runtime in a process of its own: how long it takes to load a model, and how much memory it needs to run it.

    python -m contraprune.benchmarking.alone RUNTIME DIRECTORY THREADS BATCH LENGTH INPUT,INPUT

Prints ``{"import_seconds", "load_seconds", "first_seconds", "peak_bytes"}``.
"""

import importlib
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

from contraprune.benchmarking.runtimes import RUNTIMES, open_model

_IMPORTS = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "dense": "contraprune.saving",
    "sparse": "contraprune.saving",
}


def peak_bytes() -> int:
    """The most memory this process has had resident at once."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count what the parent process had
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(runtime: str, directory: str, threads: str, batch: str, length: str, names: str) -> None:
    started = time.perf_counter()
    importlib.import_module(_IMPORTS[RUNTIMES[runtime].format])
    imported = time.perf_counter()
    run = open_model(runtime, Path(directory), int(threads))
    loaded = time.perf_counter()
    ones = np.ones((int(batch), int(length)), np.int64)
    run(dict.fromkeys(names.split(","), ones))
    seconds = {
        "import_seconds": imported - started,
        "load_seconds": loaded - imported,
        "first_seconds": time.perf_counter() - loaded,
    }
    print(json.dumps({name: round(value, 3) for name, value in seconds.items()} | {"peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
