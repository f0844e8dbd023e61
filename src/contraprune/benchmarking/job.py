"""Models and runtimes side by side: what ``contraprune bench`` measures."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
import torch

from contraprune.benchmarking.runtimes import RUNTIMES, Run, installed, open_model
from contraprune.engine import is_sparse
from contraprune.engine.families import why_not
from contraprune.errors import UserError
from contraprune.export.graphs import TOLERANCE, sample_batch, write_onnx, write_openvino
from contraprune.export.job import ExportConfig, Source, graph_inputs
from contraprune.export.sparse import write_sparse_model
from contraprune.exported import RECORD, exported_format, require_packages
from contraprune.files import write_json
from contraprune.inspection import weight_bytes
from contraprune.machine import describe
from contraprune.progress import progress
from contraprune.saving import has_tokenizer, load, load_config, load_tokenizer, model_directory
from contraprune.settings import require, setting

_WARM_UP = 2  # rounds
_CALIBRATION = 8  # batches of random tokens: of int8 only the speed is measured here
_GRAPHS = {"onnx": write_onnx, "openvino": write_openvino}


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What to measure, and against what."""

    _argument_group_name: ClassVar[str] = "bench"

    against: str | None = setting(
        None,
        "The dense model to compare with. It is measured in every runtime that is installed, whatever --runtimes says, "
        "so that its fastest one is among them. Default: no comparison.",
    )
    runtimes: str | None = setting(
        None,
        f"Runtimes of the other models: some of {','.join(RUNTIMES)}. Default: all that are installed. Exported models "
        "have one: their own.",
    )
    batch_sizes: str = setting("1,8", "Batch sizes.")
    lengths: str = setting("128", "Tokens of each text.")
    threads: int = setting(1, "Threads of every runtime.")
    rounds: int = setting(25, "In each round everything runs once, in turn.")
    output: str | None = setting(None, "Write all numbers to this JSON file.")
    picture: str | None = setting(None, "Draw the latencies to this file (.png or .svg; needs matplotlib).")

    def __post_init__(self) -> None:
        require(self.threads >= 1, "threads", "at least 1", self.threads)
        require(self.rounds >= 1, "rounds", "at least 1", self.rounds)
        self.shapes()
        self.chosen()

    def shapes(self) -> list[tuple[int, int]]:
        """Every (batch size, length).

        Raises:
            UserError: not lists of positive numbers.
        """
        numbers = []
        for flag in ("batch_sizes", "lengths"):
            parts = getattr(self, flag).split(",")
            ok = all(part.strip().isdecimal() and int(part) > 0 for part in parts)
            require(ok, flag, "positive numbers joined by commas", getattr(self, flag))
            numbers.append([int(part) for part in parts])
        return [(batch, length) for length in numbers[1] for batch in numbers[0]]

    def chosen(self) -> list[str]:
        """The runtimes that are asked for, or installed: of every model but the dense one.

        Raises:
            UserError: one is not known, or not installed.
        """
        if self.runtimes is None:
            return installed()
        names = [name.strip() for name in self.runtimes.split(",")]
        for name in names:
            require(name in RUNTIMES, "runtimes", f"some of {','.join(RUNTIMES)}", name)
            if not RUNTIMES[name].installed:
                require_packages(RUNTIMES[name].format, f"--runtimes {name}", *RUNTIMES[name].packages)
        return names


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One model in one runtime."""

    model: str
    runtime: str
    directory: Path
    inputs: tuple[str, ...]
    vocabulary: int
    dense: bool

    @property
    def name(self) -> str:
        return f"{self.model} in {self.runtime}"


def run_bench(paths: Sequence[str], config: BenchConfig) -> dict[str, Any]:
    """Measures every model in the chosen runtimes, and the dense model, if one is named, in all that are installed.

    Returns:
        What ``--output`` is written with: that of :func:`measure`, and what was ``skipped``.

    Raises:
        UserError: a model cannot be used, none runs in the chosen runtimes, or a float32 runtime gives other outputs
            than PyTorch.
    """
    models = [] if config.against is None else [(config.against, installed(), True)]
    models += [(path, config.chosen(), False) for path in paths]
    for path, _, _ in models:
        model_directory(path)  # that one is missing shows before another is exported
    with tempfile.TemporaryDirectory() as scratch:
        candidates: list[Candidate] = []
        skipped: list[str] = []
        for number, (path, runtimes, dense) in enumerate(progress(models, "exporting", show=True)):
            candidates += candidates_of(path, runtimes, Path(scratch) / str(number), skipped, dense=dense)
        if not candidates:
            raise UserError(f"--runtimes {config.runtimes}: expected one that runs a model, found {'; '.join(skipped)}")
        report = measure(candidates, config) | {"skipped": skipped}
    if config.output is not None:
        write_json(Path(config.output), report)
    return report


def measure(
    candidates: Sequence[Candidate], config: BenchConfig, *, clock: Callable[[], float] = perf_counter
) -> dict[str, Any]:
    """Measures all of them in turn in each round.

    Args:
        clock: seconds. ``time.process_time`` is disturbed less by other work, and says the same of one thread.

    Returns:
        The ``machine``; ``shapes`` such as "8x128"; ``strongest_dense``: of each shape, the fastest runtime of the
        dense model in ``float32`` and in ``any`` precision (empty without a dense model); and in ``models``, of each
        candidate, ``latency`` by shape: ``p50_ms``, ``p95_ms``, ``texts_per_second``, and how many times faster than
        these two it is (median over rounds); ``bytes``, seconds to import and load, ``peak_bytes`` of a process that
        runs it; ``difference`` of its outputs from the same model's in PyTorch, relative to the largest.

    Raises:
        UserError: one cannot be run, or a float32 runtime gives other outputs than PyTorch.
    """
    torch.set_num_threads(config.threads)
    runs = [open_model(candidate.runtime, candidate.directory, config.threads) for candidate in candidates]
    rows = [_alone(candidate, config) for candidate in progress(candidates, "loading", show=True)]
    strongest = {}
    for shape in config.shapes():
        key = f"{shape[0]}x{shape[1]}"
        inputs = [_inputs(candidate, shape) for candidate in candidates]
        _compare(candidates, runs, inputs, rows)
        times = _rounds(runs, inputs, config.rounds, clock)
        strongest[key] = _strongest(candidates, times)
        for row, own in zip(rows, times, strict=True):
            row["latency"][key] = _latency(own, shape[0], times, candidates, strongest[key])
    return {
        "machine": describe() | {"threads": config.threads},
        "rounds": config.rounds,
        "shapes": list(strongest),
        "strongest_dense": strongest,
        "models": rows,
    }


def candidates_of(
    path: str, runtimes: Sequence[str], scratch: Path, skipped: list[str], *, dense: bool
) -> Iterator[Candidate]:
    """A model in its own runtime where it was exported to one, else in all, for which it is exported to ``scratch``."""
    source = model_directory(path)
    config = load_config(str(source))
    tokenizer = load_tokenizer(str(source)) if has_tokenizer(source) else None

    def candidate(runtime: str, directory: Path, inputs: tuple[str, ...]) -> Candidate:
        return Candidate(
            model=path, runtime=runtime, directory=directory, inputs=inputs, vocabulary=config.vocab_size, dense=dense
        )

    exported = exported_format(source)
    if exported is not None:
        record = json.loads((source / RECORD).read_text())
        runtime = exported + ("-int8" if record.get("values") == "int8" else "")
        yield candidate(runtime, source, tuple(record["components"]["model"]["metadata"]["kwargs"]))
        return
    model = load(source, engine="torch")
    inputs = graph_inputs(model, tokenizer)
    if is_sparse(source):
        yield candidate("sparse", source, inputs)
        return
    for runtime in runtimes:
        reason = ("a dense model" if dense else why_not(model)) if RUNTIMES[runtime].format == "sparse" else None
        if reason is None:
            yield candidate(runtime, _exported(model, inputs, runtime, source, scratch), inputs)
        else:
            skipped.append(f"{path} in {runtime}: {reason}")


def _exported(model: Any, inputs: tuple[str, ...], runtime: str, source: Path, scratch: Path) -> Path:
    """A directory that the runtime reads: ``source`` itself, or a new one in ``scratch``."""
    kind = RUNTIMES[runtime]
    if kind.format == "dense":
        return source
    directory = scratch / runtime
    directory.mkdir(parents=True)
    if kind.format == "sparse":
        write_sparse_model(model, directory, ExportConfig())
    else:
        calibration = [sample_batch(model.config, inputs, 1, 64, seed=seed) for seed in range(_CALIBRATION)]
        _GRAPHS[kind.format](Source(model=model, inputs=inputs, calibration=calibration), directory, kind.values)
    return directory


def _inputs(candidate: Candidate, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Random tokens without padding, the same ones for models with the same vocabulary."""
    ids = np.random.default_rng(0).integers(candidate.vocabulary // 10, candidate.vocabulary, shape)
    values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {name: values[name] for name in candidate.inputs}


def _compare(
    candidates: Sequence[Candidate],
    runs: Sequence[Run],
    inputs: Sequence[Mapping[str, np.ndarray]],
    rows: Sequence[dict[str, Any]],
) -> None:
    """Notes how far outputs are from the same model's in PyTorch, where that is measured too."""
    outputs = [run(feed).copy() for run, feed in zip(runs, inputs, strict=True)]
    in_torch = {
        candidate.model: output
        for candidate, output in zip(candidates, outputs, strict=True)
        if candidate.runtime == "torch"
    }
    for candidate, output, row in zip(candidates, outputs, rows, strict=True):
        expected = in_torch.get(candidate.model)
        if expected is None:
            continue
        difference = float(np.abs(output - expected).max() / max(1.0, np.abs(expected).max()))
        row["difference"] = max(difference, row["difference"] or 0.0)
        if RUNTIMES[candidate.runtime].exact and not difference <= TOLERANCE:
            raise UserError(f"{candidate.name}: its outputs differ from PyTorch's by {difference:.1e}")


def _rounds(
    runs: Sequence[Run], inputs: Sequence[Mapping[str, np.ndarray]], rounds: int, clock: Callable[[], float]
) -> list[list[float]]:
    """Seconds of each run in each round."""
    times: list[list[float]] = [[] for _ in runs]
    for number in progress(range(rounds + _WARM_UP), "measuring", show=True):
        for run, feed, own in zip(runs, inputs, times, strict=True):
            run(feed)  # warm caches for itself, as in steady use
            start = clock()
            run(feed)
            if number >= _WARM_UP:
                own.append(clock() - start)
    return times


def _strongest(candidates: Sequence[Candidate], times: Sequence[Sequence[float]]) -> dict[str, str]:
    """The fastest runtime of the dense model, in float32 and in any precision."""
    medians = {
        candidate.runtime: median(own) for candidate, own in zip(candidates, times, strict=True) if candidate.dense
    }
    exact = {name: value for name, value in medians.items() if RUNTIMES[name].exact}
    kinds = {"float32": exact, "any": medians}
    return {kind: min(found, key=found.__getitem__) for kind, found in kinds.items() if found}


def _latency(
    own: Sequence[float],
    batch: int,
    times: Sequence[Sequence[float]],
    candidates: Sequence[Candidate],
    strongest: Mapping[str, str],
) -> dict[str, Any]:
    p50, p95 = np.percentile(own, [50, 95])
    speedups = {}
    for kind, runtime in strongest.items():
        of = next(n for n, other in enumerate(candidates) if other.dense and other.runtime == runtime)
        speedups[kind] = round(median(slow / fast for slow, fast in zip(times[of], own, strict=True)), 2)
    return {
        "p50_ms": round(1e3 * p50, 3),
        "p95_ms": round(1e3 * p95, 3),
        "texts_per_second": round(batch / p50, 1),
        "speedup_over_dense": speedups,
    }


def _alone(candidate: Candidate, config: BenchConfig) -> dict[str, Any]:
    """The candidate's row, with what a process of its own says: seconds to load, and memory for the largest shape."""
    shape = max(config.shapes(), key=lambda shape: shape[0] * shape[1])
    arguments = [candidate.runtime, candidate.directory, config.threads, *shape, ",".join(candidate.inputs)]
    command = [sys.executable, "-m", "contraprune.benchmarking.alone", *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise UserError(f"{candidate.name}: {finished.stderr.strip().splitlines()[-1]:.300}")
    return {
        "model": candidate.model,
        "runtime": candidate.runtime,
        "dense": candidate.dense,
        "bytes": weight_bytes(candidate.directory),
        **json.loads(finished.stdout.splitlines()[-1]),
        "difference": None,
        "latency": {},
    }
