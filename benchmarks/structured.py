"""Structured pruning with units removed for good, against the same stages with units only masked.

    OMP_NUM_THREADS=1 python benchmarks/structured.py --model M --teacher DIR --task sst2 --data_dir D \\
        --density 0.1 --stages 10,20,30,40,50,60,70,80,90 --output_dir O [other flags of prune]

Both runs share seed, losses, data and schedule; the masked one multiplies by zero what the other removes, as the
released code of the paper does. Each is a process of its own, and they take turns: a stage of one, then the same stage
of the other, so that what else the machine does falls on both. Seconds are those of the processor; run it with one
thread (waiting threads count too). Prints them with the accuracy of every stage and the ratio, and writes
O/comparison.json. What was finished is not repeated.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from contraprune import pipeline, structured
from contraprune.allocator import keep_freed_memory
from contraprune.cli import parse
from contraprune.files import write_json
from contraprune.gates import Gates, attach_gates
from contraprune.machine import describe
from contraprune.selection import remove_lowest
from contraprune.shrinking import shrink
from contraprune.structure import find_layers


class TimedStageRunner(structured.StageRunner):
    """Books the processor's seconds of every stage: importance, removal, snapshot, training, evaluation."""

    def run(self, stage: Any) -> None:
        start = time.process_time()
        super().run(stage)
        self.records[-1].setdefault("processor_seconds", round(time.process_time() - start, 2))
        write_json(self.job.directory.stages / f"{stage.number:02d}" / "stage.json", self.records[-1])


class MaskingStageRunner(TimedStageRunner):
    """Keeps the whole model and gates the removed units with zero, until the run is over."""

    gates: Gates | None = None

    def remove_units(self, stage: Any, trainer: Any, folder: Path) -> None:
        model = self.prepared.model
        layers = find_layers(model)
        if self.gates is None:
            self.gates = attach_gates(model, layers)
        importance = self.rate_units(stage, trainer, layers)
        for kind in structured.KINDS:
            gates = getattr(self.gates, kind)
            scores = torch.stack(getattr(importance, kind)).float()
            alive = remove_lowest(scores, torch.stack(gates).bool(), self.surplus(kind), **self.limits(kind, layers))
            for gate, row in zip(gates, alive, strict=True):
                gate.copy_(row)

    def units(self) -> dict[str, int]:
        if self.gates is None:
            return super().units()
        return {kind: sum(int(gate.sum()) for gate in getattr(self.gates, kind)) for kind in structured.KINDS}

    def run(self, stage: Any) -> None:
        super().run(stage)
        if stage.number == len(self.structured.fractions()):
            assert self.gates is not None
            keep = [[gate.bool() for gate in getattr(self.gates, kind)] for kind in structured.KINDS]
            self.gates.remove()
            shrink(self.prepared.model, find_layers(self.prepared.model), *keep)


def run(runner: type[structured.StageRunner], output: Path, flags: list[str]) -> None:
    """One whole run, that stops after every stage until it is told to go on."""

    class Stopping(runner):  # type: ignore[valid-type, misc]
        def run(self, stage: Any) -> None:
            super().run(stage)
            os.kill(os.getpid(), signal.SIGSTOP)

    keep_freed_memory()  # as every run of the command line
    structured.StageRunner = Stopping  # type: ignore[misc]
    settings = parse("prune", pipeline.PRUNE_SETTINGS, [*flags, "--method=taylor", f"--output_dir={output}"])
    pipeline.run_prune(*settings[: len(pipeline.PRUNE_SETTINGS)])


def take_turns(processes: list[multiprocessing.Process]) -> None:
    """Lets one process after the other go on until it stops, until all have ended."""
    try:
        for process in processes:
            process.start()
            wait(process)
        while running := [process for process in processes if process.is_alive()]:
            for process in running:
                assert process.pid is not None
                os.kill(process.pid, signal.SIGCONT)
                wait(process)
    finally:
        for process in processes:
            process.kill()
    if any(process.exitcode for process in processes):
        sys.exit("a run failed")


def wait(process: multiprocessing.Process) -> None:
    """Until it has stopped or ended; an end is left for ``multiprocessing`` to notice."""
    assert process.pid is not None
    seen = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    if seen is not None and seen.si_code == os.CLD_STOPPED:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)


def main() -> None:
    flags = sys.argv[1:]
    output = Path(flags[flags.index("--output_dir") + 1])
    runners = {"removed": TimedStageRunner, "masked": MaskingStageRunner}
    context = multiprocessing.get_context("spawn")
    take_turns([context.Process(target=run, args=(kind, output / name, flags)) for name, kind in runners.items()])
    runs = {name: json.loads((output / name / "results.json").read_text()) for name in runners}
    seconds = {name: sum(stage["processor_seconds"] for stage in run["stages"]) for name, run in runs.items()}
    comparison = {
        "machine": describe(),
        "threads": torch.get_num_threads(),
        "flags": [flag for flag in flags if "/" not in flag],
        "processor_seconds": {name: round(value, 1) for name, value in seconds.items()},
        "masked_over_removed": round(seconds["masked"] / seconds["removed"], 2),
        "metrics": {name: run["metrics"] for name, run in runs.items()},
        "stages": {
            name: [
                {key: stage[key] for key in ("removed_percent", "metrics", "processor_seconds")}
                for stage in run["stages"]
            ]
            for name, run in runs.items()
        },
    }
    print(json.dumps(comparison, indent=2))
    (output / "comparison.json").write_text(json.dumps(comparison, indent=2) + "\n")


if __name__ == "__main__":
    main()
