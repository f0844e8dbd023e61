"""What each default and each criterion is worth: SST-2, 4,000 training sentences, MiniLM, 8 epochs of batch 32.

    python benchmarks/recipes.py --model M --teacher DIR --data_dir D --output_dir O [NAME ...]

Makes the runs named (all by default) that O does not hold yet, one process each, then writes O/recipes.json and
prints a Markdown table of what O holds. Accuracy is on the 872 official validation sentences: its standard error
is about 1.3 points, so compare several runs. ``steered to`` is the density that a penalty had reached before the last
masks were made exact.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from contraprune.machine import describe

COMMON = ("--task=sst2", "--max_train_samples=4000", "--eval_strategy=no", "--save_strategy=no", "--disable_tqdm=True")
RUNS: dict[str, tuple[str, ...]] = {
    "default-42": (),
    "default-43": ("--seed=43",),
    "no-contrast-42": ("--contrast=none",),
    "no-contrast-43": ("--contrast=none", "--seed=43"),
    "density-3-percent-42": ("--density=0.03",),
    "scores-from-zero-42": ("--score_init=zero", "--score_learning_rate=0.01"),
    "stronger-contrast-42": ("--unsupervised_weight=0.5",),
    "longer-cooldown-42": (
        "--unsupervised_weight=0.3", "--prune_warmup=0.05", "--prune_cooldown=0.6", "--freeze_masks=0.3",
    ),
    "longer-cooldown-no-contrast-42": (
        "--contrast=none", "--prune_warmup=0.05", "--prune_cooldown=0.6", "--freeze_masks=0.3",
    ),
    "soft-movement-42": ("--method=soft_movement",),
    "l0-42": ("--method=l0",),
    "fisher-42": ("--method=fisher",),
    "smp-42": ("--method=smp",),
    "magnitude-42": ("--method=magnitude",),
    "blocks-42": ("--block=4x1",),
    "pattern-42": ("--pattern=2:4",),
    "half-42": ("--density=0.5",),
    "taylor-42": ("--method=taylor",),
    "taylor-no-contrast-42": ("--method=taylor", "--contrast=none"),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("model", "teacher", "data_dir", "output_dir"):
        parser.add_argument(f"--{flag}", required=True)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"Of: {', '.join(RUNS)}.")
    arguments = parser.parse_args()
    output = Path(arguments.output_dir)
    places = [f"--{flag}={getattr(arguments, flag)}" for flag in ("model", "teacher", "data_dir")]
    for name in arguments.names or RUNS:
        if not (output / name / "results.json").is_file():
            command = [sys.executable, "-m", "contraprune", "prune", *places, *COMMON, *RUNS[name]]
            subprocess.run([*command, f"--output_dir={output / name}"], check=True)
    results = {
        name: {
            "flags": list(flags),
            "steered_to": steered(output / name / "log.jsonl"),
            **json.loads((output / name / "results.json").read_text()),
        }
        for name, flags in RUNS.items()
        if (output / name / "results.json").is_file()
    }
    (output / "recipes.json").write_text(json.dumps({"machine": describe(), "runs": results}, indent=2) + "\n")
    print("| run | flags beside the defaults | encoder density | steered to | accuracy | of the teacher's | minutes |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, run in results.items():
        flags = " ".join(f"`{flag}`" for flag in run["flags"]) or "none"
        print(
            f"| {name} | {flags} | {run['density']['encoder']:.3f} | {run['steered_to'] or ''} "
            f"| {run['metrics']['accuracy']:.4f} | {run['retained']:.1%} | {run['seconds']['total'] / 60:.0f} |"
        )


def steered(log: Path) -> float | None:
    """The density that was logged last while the masks moved, where a penalty moved them."""
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    found = [round(entry["density"], 4) for entry in entries if entry.get("penalty_weight")]
    return found[-2] if found else None  # the last one was made exact


if __name__ == "__main__":
    main()
