"""Latency of every stage of a structured run against the dense model, in PyTorch, in one process.

    python benchmarks/latency.py RUN_DIR [--threads 1] [--repeats 15] [--output FILE.json]

Models are rebuilt from the sizes in results.json (what is computed does not depend on the values of weights).
All models take turns in every round; a speed-up is the median over rounds of dense time over own time.
"""

import argparse
import copy
import json
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from contraprune.shrinking import shrink
from contraprune.structure import find_layers
from machine import describe

BATCHES = ((1, 128), (8, 128))


def shrunk(dense: PreTrainedModel, heads: list[int], neurons: list[int]) -> PreTrainedModel:
    model = copy.deepcopy(dense)
    layers = find_layers(model)
    keep = [
        [torch.arange(getattr(layer, kind).num_units) < size for layer, size in zip(layers, sizes, strict=True)]
        for kind, sizes in (("heads", heads), ("neurons", neurons))
    ]
    shrink(model, layers, *keep)
    return model.eval()


@torch.inference_mode()
def milliseconds_of_rounds(
    models: dict[str, PreTrainedModel], batch: int, length: int, repeats: int
) -> dict[str, list[float]]:
    inputs = {"input_ids": torch.randint(5, 1000, (batch, length)), "attention_mask": torch.ones(batch, length).long()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for repeat in range(repeats + 2):
        for name, model in models.items():
            start = perf_counter()
            model(**inputs)
            if repeat >= 2:  # warm
                times[name].append(1e3 * (perf_counter() - start))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", required=True, help="The dense model: its config.json gives the sizes.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = json.loads((arguments.run / "results.json").read_text())
    dense = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(arguments.model)).eval()
    models = {"0": dense}
    for stage in results["stages"]:
        models[f"{stage['removed_percent']:g}"] = shrunk(dense, stage["heads"], stage["neurons"])
    table: dict[str, Any] = {name: {"parameters": sum(p.numel() for p in m.parameters())} for name, m in models.items()}
    for batch, length in BATCHES:
        times = milliseconds_of_rounds(models, batch, length, arguments.repeats)
        for name, values in times.items():
            ratios = [dense_ms / ms for dense_ms, ms in zip(times["0"], values, strict=True)]
            table[name][f"ms_{batch}x{length}"] = round(median(values), 2)
            table[name][f"speedup_{batch}x{length}"] = round(median(ratios), 2)
    for name, row in table.items():
        print(f"{name:>5} % removed", row)
    if arguments.output:
        arguments.output.write_text(json.dumps({"machine": describe(), "stages": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
