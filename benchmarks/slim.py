"""Heads and neurons removed against time gained: BERT-base with 2 and 8 times fewer operations, in every runtime.

    pip install ".[bench]"
    python benchmarks/slim.py --folder EXPORTS [--threads 1] [--rounds 7] [--output FILE.json]

Random weights (what is computed does not depend on them); each layer loses the same heads and neurons. Everything runs
in turn in each round, as in ``contraprune bench``; with one thread times are processor time of the process, which other
work on the machine disturbs least. Speed-ups are over the dense model in the same runtime, our engine's over it in
OpenVINO. Models and exports stay in EXPORTS and are used again.
"""

import argparse
import json
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from contraprune.benchmarking.job import BenchConfig, Candidate, candidates_of, measure
from contraprune.config import DataConfig
from contraprune.export import ExportConfig, run_export
from contraprune.exported import RECORD
from contraprune.saving import save_model
from contraprune.shrinking import shrink
from contraprune.structure import find_layers

DENSE = "dense"
KEPT = {DENSE: (12, 3072), "2x": (6, 1536), "8x": (2, 304)}  # heads and neurons of each layer
HIDDEN, HEAD_SIZE = 768, 64
FORMATS = ("onnx", "openvino", "sparse")
LENGTH = 128


def operations(heads: int, neurons: int) -> float:
    """Multiplications and additions of a layer for one text."""
    width = heads * HEAD_SIZE
    return 2 * LENGTH * (4 * HIDDEN * width + 2 * HIDDEN * neurons) + 4 * LENGTH * LENGTH * width


def write_model(directory: Path, heads: int, neurons: int) -> None:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig()).eval()
    layers = find_layers(model)
    shrink(model, layers, [torch.arange(12) < heads] * len(layers), [torch.arange(3072) < neurons] * len(layers))
    save_model(model, None, directory)


def candidates(folder: Path) -> tuple[list[Candidate], list[tuple[str, str]]]:
    """Everything that is measured, and the name and the runtime of each."""
    found: list[Candidate] = []
    labels = []
    for name, sizes in KEPT.items():
        source = folder / name / "model"
        if not source.is_dir():
            write_model(source, *sizes)
        directories = {"torch": source}
        for kind in FORMATS:
            if name == DENSE and kind == "sparse":
                continue
            directories[kind] = folder / name / kind
            if not (directories[kind] / RECORD).is_file():
                run_export(str(source), DataConfig(), ExportConfig(format=kind, output_dir=str(directories[kind])))
        for runtime, directory in directories.items():
            found += candidates_of(str(directory), ["torch"], Path(), [], dense=name == DENSE)
            labels.append((name, runtime))
    return found, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    measured, labels = candidates(options.folder)
    config = BenchConfig(against=DENSE, threads=options.threads, rounds=options.rounds)
    report = measure(measured, config, clock=process_time if options.threads == 1 else perf_counter)
    latencies = {label: row["latency"] for label, row in zip(labels, report["models"], strict=True)}
    results: list[dict[str, Any]] = []
    for (name, runtime), latency in latencies.items():
        milliseconds = {shape: latency[shape]["p50_ms"] for shape in report["shapes"]}
        dense = latencies[DENSE, "openvino" if runtime == "sparse" else runtime]
        row = {"model": name, "runtime": runtime, "milliseconds": milliseconds}
        row["operations"] = round(operations(*KEPT[DENSE]) / operations(*KEPT[name]), 2)
        row["speedup"] = {shape: round(dense[shape]["p50_ms"] / own, 2) for shape, own in milliseconds.items()}
        results.append(row)
        print(json.dumps(row))
    if options.output:
        report = {"machine": report["machine"], "rounds": options.rounds, "results": results}
        options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
