"""Accuracy, parameters and latency after every stage of structured runs, against the dense model, in PyTorch.

    python benchmarks/latency.py RUN_DIR [RUN_DIR ...] --model DENSE [--threads 1] [--rounds 25] [--output FILE.json]

Models are rebuilt from the sizes in each run's results.json (what is computed does not depend on the values of
weights). All models take turns in every round, in one process; a speed-up is the median over rounds of dense time
over own time.
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

from contraprune.machine import describe
from contraprune.shrinking import shrink
from contraprune.structure import find_layers

BATCHES = ((1, 128), (8, 128))
DENSE = ("dense", 0)


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
def milliseconds_of_rounds(models: dict[Any, PreTrainedModel], batch: int, length: int, rounds: int) -> dict[Any, Any]:
    inputs = {"input_ids": torch.randint(5, 1000, (batch, length)), "attention_mask": torch.ones(batch, length).long()}
    times: dict[Any, list[float]] = {name: [] for name in models}
    for number in range(rounds + 2):
        for name, model in models.items():
            start = perf_counter()
            model(**inputs)
            if number >= 2:  # warm
                times[name].append(1e3 * (perf_counter() - start))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR")
    parser.add_argument("--model", required=True, help="The dense model: its config.json gives the sizes.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dense = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(arguments.model)).eval()
    models = {DENSE: dense}
    results = {run.name: json.loads((run / "results.json").read_text()) for run in arguments.runs}
    for name, result in results.items():
        for stage in result["stages"]:
            models[name, stage["stage"]] = shrunk(dense, stage["heads"], stage["neurons"])
    times = {shape: milliseconds_of_rounds(models, *shape, arguments.rounds) for shape in BATCHES}

    def latency(key: Any) -> dict[str, float]:
        row = {}
        for (batch, length), measured in times.items():
            ratios = [slow / own for slow, own in zip(measured[DENSE], measured[key], strict=True)]
            row[f"ms_{batch}x{length}"] = round(median(measured[key]), 2)
            row[f"speedup_{batch}x{length}"] = round(median(ratios), 2)
        return row

    columns = ("removed_percent", "metrics", "parameters", "heads", "neurons", "seconds")
    report = {
        "machine": describe(),
        "dense": {"parameters": sum(p.numel() for p in dense.parameters()), **latency(DENSE)},
        "runs": {
            name: {
                "teacher_metrics": result["teacher_metrics"],
                "contrast": result["contrast"],
                "seed": result["seed"],
                "stages": [
                    {column: stage[column] for column in columns} | latency((name, stage["stage"]))
                    for stage in result["stages"]
                ],
            }
            for name, result in results.items()
        },
    }
    print(json.dumps(report["dense"]))
    for name, run in report["runs"].items():
        for stage in run["stages"]:
            shown = {key: value for key, value in stage.items() if key not in ("heads", "neurons", "seconds")}
            print(name, json.dumps(shown))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
