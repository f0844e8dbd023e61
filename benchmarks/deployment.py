"""Pruned models through every format: size, latency, memory and accuracy in one table, beside the dense model.

    pip install ".[bench]"
    python benchmarks/deployment.py NAME=MODEL [NAME=MODEL ...] --against DENSE --task sst2 --data_dir DIR \\
      --output_dir EXPORTS [--threads 1] [--rounds 25] [--max_eval_samples N] [--output FILE.json]

Exports stay in EXPORTS and are used again by a second run with the same names. Prints the table in Markdown.
With one thread times are processor time of the process, which other work on the machine disturbs least.
"""

import argparse
import json
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import transformers
from tqdm.auto import tqdm

from contraprune.benchmarking.job import BenchConfig, Candidate, candidates_of, measure
from contraprune.config import DataConfig, EvaluationConfig
from contraprune.evaluation import evaluate_path
from contraprune.export import ExportConfig, run_export
from contraprune.exported import RECORD
from contraprune.saving import model_directory

FORMATS: dict[str, dict[str, Any]] = {
    "sparse": {"format": "sparse"},
    "sparse, float16, int8 embeddings": {"format": "sparse", "values": "float16", "embeddings": "int8"},
    "onnx": {"format": "onnx"},
    "onnx int8": {"format": "onnx", "values": "int8"},
    "openvino": {"format": "openvino"},
    "openvino int8": {"format": "openvino", "values": "int8"},
}
DENSE = "dense"


def exported(name: str, path: str, folder: Path, data: DataConfig) -> dict[str, tuple[str, dict[str, float]]]:
    """The directory and the metrics of a model in each format, PyTorch first."""
    path = str(model_directory(path))
    found = {"torch": (path, evaluate_path(path, data, EvaluationConfig(quiet=True)).metrics)}
    for label, options in FORMATS.items():
        if name == DENSE and options["format"] == "sparse":
            continue
        directory = folder / name / label.replace(", ", "-").replace(" ", "-")
        if not (directory / RECORD).is_file():
            run_export(path, data, ExportConfig(output_dir=str(directory), **options))
        metrics = json.loads((directory / RECORD).read_text())["metrics"]
        found[label] = (str(directory), {metric: value["after"] for metric, value in metrics.items()})
    return found


def table(report: dict[str, Any]) -> str:
    shapes, rows = report["shapes"], report["models"]
    metric = next(iter(rows[0]["metrics"]))
    best = [report["strongest_dense"][shape] for shape in shapes]
    headers = ["model", "format", "MB", metric, *(f"{shape} ms (x float32, x any)" for shape in shapes)]
    headers += ["load s", "memory MB"]
    lines = [headers, ["---"] * len(headers)]
    for row in rows:
        latencies = [row["latency"][shape] for shape in shapes]
        cells = [
            f"{latency['p50_ms']:.1f} ({', '.join(f'{ratio:.2f}' for ratio in latency['speedup_over_dense'].values())})"
            for latency in latencies
        ]
        cells = [f"{row['bytes'] / 1e6:.1f}", f"{row['metrics'][metric]:.4f}", *cells, f"{row['load_seconds']:.2f}"]
        lines.append([row["model"], row["format"], *cells, f"{row['peak_bytes'] / 1e6:.0f}"])
    note = "; ".join(
        f"{shape}: {strongest['float32']} (float32), {strongest['any']} (any)"
        for shape, strongest in zip(shapes, best, strict=True)
    )
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\nTimes faster than the dense model in its fastest runtime: {note}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--against", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--data_dir")
    parser.add_argument("--max_eval_samples", type=int)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()  # of loading weights
    data = DataConfig(task=options.task, data_dir=options.data_dir, max_eval_samples=options.max_eval_samples)
    config = BenchConfig(against=options.against, threads=options.threads, rounds=options.rounds)
    named = [(DENSE, options.against), *(model.split("=", 1) for model in options.models)]
    candidates: list[Candidate] = []
    labels: list[dict[str, Any]] = []
    for name, path in tqdm(named, desc="exporting"):
        for label, (directory, metrics) in exported(name, path, options.output_dir, data).items():
            candidates += candidates_of(directory, ["torch"], Path(), [], dense=name == DENSE)
            labels.append({"model": name, "format": label, "metrics": metrics})
    report = measure(candidates, config, clock=process_time if options.threads == 1 else perf_counter)
    report["models"] = [row | label for row, label in zip(report["models"], labels, strict=True)]
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(table(report))


if __name__ == "__main__":
    main()
