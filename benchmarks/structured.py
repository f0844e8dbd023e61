"""Structured pruning with units removed for good, against the same stages with units only masked.

    python benchmarks/structured.py --model M --teacher DIR --task sst2 --data_dir D --output_dir O [prune flags]

Both runs share seed, losses, data and schedule; the masked one multiplies by zero what the other removes, as the
released code of the paper does. Prints seconds, accuracy and the ratio, and writes O/comparison.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from contraprune import pipeline, structured
from contraprune.cli import parse
from contraprune.gates import Gates, attach_gates
from contraprune.selection import remove_lowest
from contraprune.shrinking import shrink
from contraprune.structure import find_layers
from machine import describe

KINDS = ("heads", "neurons")


class MaskingStageRunner(structured.StageRunner):
    """Keeps the whole model and gates the removed units with zero, until the run is over."""

    gates: Gates | None = None

    def remove_units(self, stage: Any, trainer: Any, folder: Path) -> None:
        model = self.prepared.model
        layers = find_layers(model)
        if self.gates is None:
            self.gates = attach_gates(model, layers)
        importance = self.rate_units(stage, trainer, layers)
        for kind, count in zip(KINDS, (stage.heads, stage.neurons), strict=True):
            gates = getattr(self.gates, kind)
            least = structured.fewest_units([getattr(layer, kind) for layer in layers], kind)
            scores = torch.stack(getattr(importance, kind)).float()
            alive = remove_lowest(scores, torch.stack(gates), count, keep_at_least=least)
            for gate, row in zip(gates, alive, strict=True):
                gate.copy_(row)

    def run(self, stage: Any) -> None:
        super().run(stage)
        if stage.number == len(self.structured.fractions()):
            assert self.gates is not None
            keep = [[gate.bool() for gate in getattr(self.gates, kind)] for kind in KINDS]
            self.gates.remove()
            shrink(self.prepared.model, find_layers(self.prepared.model), *keep)


def main() -> None:
    flags = sys.argv[1:]
    output = Path(flags[flags.index("--output_dir") + 1])
    runs = {}
    removing = structured.StageRunner
    for name, runner in (("removed", removing), ("masked", MaskingStageRunner)):
        structured.StageRunner = runner  # type: ignore[misc]
        settings = parse("prune", pipeline.PRUNE_SETTINGS, [*flags, "--method=taylor", f"--output_dir={output / name}"])
        runs[name] = pipeline.run_prune(*settings[: len(pipeline.PRUNE_SETTINGS)])
    seconds = {name: sum(sum(stage["seconds"].values()) for stage in run["stages"]) for name, run in runs.items()}
    comparison = {
        "machine": describe(),
        "flags": [flag for flag in flags if "/" not in flag],
        "seconds_of_stages": {name: round(value, 1) for name, value in seconds.items()},
        "masked_over_removed": round(seconds["masked"] / seconds["removed"], 2),
        "metrics": {name: run["metrics"] for name, run in runs.items()},
        "per_stage": {name: [stage["seconds"] for stage in run["stages"]] for name, run in runs.items()},
    }
    print(json.dumps(comparison, indent=2))
    (output / "comparison.json").write_text(json.dumps(comparison, indent=2) + "\n")


if __name__ == "__main__":
    main()
