"""Compiles the engine's kernels: used by the package's build, and by hand as ``python -m contraprune.engine.compile``.

Standard library only. The same source is compiled once for each instruction set; which one runs is decided at run
time, so the result is good for every machine of the architecture.
"""

import argparse
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = HERE / "kernels"
LIBRARY = HERE / f"_kernels.{'dylib' if platform.system() == 'Darwin' else 'so'}"
_FLAGS = ("-std=c++17", "-O3", "-fno-exceptions", "-fno-rtti", "-fno-math-errno", "-ffp-contract=fast")
_SHARED = ("-fPIC", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra")
_AVX512 = ("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma", "-mprefer-vector-width=512")
_VARIANTS: dict[str, tuple[int, Sequence[str]]] = {"kPortable": (4, ())}
_X86_VARIANTS: dict[str, tuple[int, Sequence[str]]] = {"kAvx2": (8, ("-mavx2", "-mfma")), "kAvx512": (16, _AVX512)}


class NoCompilerError(RuntimeError):
    """There is no C++ compiler, or it failed; the message says what it said."""


def find_compiler() -> list[str]:
    """The command of a GCC or Clang: CXX, or the first of c++, g++, clang++."""
    if os.environ.get("CXX"):
        return os.environ["CXX"].split()
    found = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if found is None or platform.system() == "Windows":
        raise NoCompilerError("no C++ compiler (g++ or clang++) was found")
    return [found]


def build(output: Path = LIBRARY, *, extra: Sequence[str] = (), machine: str | None = None) -> list[str]:
    """Compiles the kernels into a shared library.

    Args:
        extra: more flags for compiling and linking.
        machine: the architecture compiled for, as ``platform.machine()`` calls it. Default: this one.

    Returns:
        The names of the instruction sets.

    Raises:
        NoCompilerError: no compiler, or it failed.
    """
    compiler = find_compiler()
    x86 = (machine or platform.machine()).lower() in ("x86_64", "amd64")
    variants = _VARIANTS | (_X86_VARIANTS if x86 else {})
    jobs: list[tuple[str, str, Sequence[str]]] = [
        ("pack.cpp", "pack.o", []),
        ("team.cpp", "team.o", []),
        ("encoder.cpp", "encoder.o", []),
    ]
    for table, (lanes, flags) in variants.items():
        jobs.append(("kernels.cpp", f"{table}.o", [f"-DLANES={lanes}", f"-DKERNELS={table}", *flags]))
    with tempfile.TemporaryDirectory() as folder:
        for source, target, own in jobs:
            shared = [*_FLAGS, *_SHARED, *extra, *own]
            _run([*compiler, *shared, "-c", str(SOURCES / source), "-o", f"{folder}/{target}"])
        objects = [f"{folder}/{target}" for _, target, _ in jobs]
        linked = Path(folder) / output.name
        _run([*compiler, "-shared", "-pthread", *extra, *objects, "-o", str(linked), "-lm"])
        shutil.copy(linked, output.with_name(output.name + ".tmp"))
        output.with_name(output.name + ".tmp").replace(output)
    return list(variants)


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except OSError as error:
        raise NoCompilerError(f"{command[0]}: {error}") from error
    except subprocess.CalledProcessError as error:
        raise NoCompilerError(f"{' '.join(command)}\n{error.stderr}") from error


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the sparse engine's kernels.")
    parser.add_argument("--output", type=Path, default=LIBRARY)
    parser.add_argument("--sanitize", action="store_true", help="With address and undefined-behaviour sanitizers.")
    parser.add_argument("--machine", help="The architecture CXX compiles for, such as aarch64. Default: this one.")
    options = parser.parse_args()
    if options.machine and options.output == LIBRARY:
        parser.error("--machine: expected --output too, found none; the engine of this machine stays as it is")
    extra = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"] if options.sanitize else []
    variants = build(options.output, extra=extra, machine=options.machine)
    print(f"{', '.join(variants)} -> {options.output}")


if __name__ == "__main__":
    main()
