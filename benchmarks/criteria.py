"""Every criterion of unstructured pruning, and the patterns, from one teacher on one budget.

    OMP_NUM_THREADS=1 python benchmarks/criteria.py --model MINILM --teacher TEACHER --data_dir D/glue/sst2 \\
        --output_dir O [NAME ...]

SST-2, the first 4,000 training sentences, the defaults of ``contraprune prune`` (8 epochs, seed 42). Makes the runs
named (all by default) that O does not hold yet, then writes O/criteria.json and prints a table of what O holds.
``steered to`` is the density that a penalty had reached before the last masks were made exact.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from contraprune.machine import describe

RUNS = {
    "movement10": "--density 0.1",
    "movement3": "--density 0.03",
    "soft": "--method soft_movement --density 0.1",
    "l0": "--method l0 --density 0.1",
    "fisher": "--method fisher --density 0.1",
    "smp": "--method smp --density 0.1",
    "magnitude": "--method magnitude --density 0.1",
    "block4x1": "--block 4x1 --density 0.1",
    "pattern24": "--pattern 2:4 --density 0.5",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("model", "teacher", "data_dir", "output_dir"):
        parser.add_argument(f"--{flag}", required=True)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"Of: {', '.join(RUNS)}.")
    arguments = parser.parse_args()
    output = Path(arguments.output_dir)
    for name in arguments.names or RUNS:
        if not (output / name / "results.json").is_file():
            command = [sys.executable, "-m", "contraprune", "prune", "--task=sst2", "--max_train_samples=4000"]
            command += [f"--{flag}={getattr(arguments, flag)}" for flag in ("model", "teacher", "data_dir")]
            command += ["--eval_strategy=no", "--disable_tqdm=true", f"--cache_dir={output / 'cache'}"]
            subprocess.run([*command, f"--output_dir={output / name}", *RUNS[name].split()], check=True)
    found = {name: collect(output / name) for name in RUNS if (output / name / "results.json").is_file()}
    (output / "criteria.json").write_text(json.dumps({"machine": describe(), "runs": found}, indent=2) + "\n")
    print("| flags | density | steered to | accuracy | kept | seconds |\n| --- | --- | --- | --- | --- | --- |")
    for run in found.values():
        steered = "" if run["steered_to"] is None else f"{run['steered_to']:.4f}"
        print(
            f"| `{run['flags']}` | {run['density']:.4f} | {steered} | {run['accuracy']:.4f} | {run['retained']:.1%} "
            f"| {run['seconds']:.0f} |"
        )


def collect(folder: Path) -> dict[str, Any]:
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    steered = [entry["density"] for entry in log if entry.get("penalty_weight")]
    return {
        "flags": RUNS[folder.name],
        "density": results["density"]["encoder"],
        # the last one logged while the masks moved; the one after is exact
        "steered_to": steered[-2] if steered else None,
        "accuracy": results["metrics"]["accuracy"],
        "teacher": results["teacher_metrics"]["accuracy"],
        "retained": results["retained"],
        "seconds": results["seconds"]["total"],
        "seed": results["seed"],
    }


if __name__ == "__main__":
    main()
