"""Every kind of task once: a teacher, and the same model pruned. MiniLM on real texts.

    python benchmarks/made_up_data.py ner --data_dir D --output_dir M/ner          (and multi_label)
    python benchmarks/squad_split.py --data_dir D/squad --output_dir M/squad
    python benchmarks/tasks.py --model MINILM --data_dir D --made_up_dir M --output_dir O [NAME ...]

D holds ``glue/`` and ``squad/`` with JSON lines. Makes the runs named (all by default) that O does not hold yet, then
writes what O holds to O/tasks.json and as a table to O/tasks.md. Budgets are small: the table says that every kind of
task works, and roughly what a pruned model keeps, not what a long run reaches.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contraprune.machine import describe

QUIET = ("--eval_strategy=no", "--disable_tqdm=true")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Flags of one kind of task; no flags of a teacher where the model is its own."""

    data: str
    teacher: str | None
    prune: str


def _glue(task: str, *, rows: int = 2000, teacher: int = 3, pruning: int = 4) -> Run:
    """One task of GLUE: training rows, epochs of the teacher and of pruning."""
    return Run(
        data=f"--task={task} --data_dir={{data}}/glue/{task} --max_train_samples={rows}",
        teacher=f"--num_train_epochs={teacher}",
        prune=f"--density=0.1 --num_train_epochs={pruning}",
    )


def _files(task_type: str, folder: str, *, teacher: int = 3, rows: int = 1000, pruning: int = 5) -> Run:
    """Made-up data of one kind: epochs of the teacher, rows and epochs of pruning."""
    files = " ".join(f"--{split}_file={{made_up}}/{folder}/{split}.jsonl" for split in ("train", "validation"))
    return Run(
        data=f"--task_type={task_type} {files} --max_length=96",
        teacher=f"--num_train_epochs={teacher}",
        prune=f"--max_train_samples={rows} --density=0.1 --num_train_epochs={pruning}",
    )


RUNS = {
    "sst2": _glue("sst2"),
    "rte": _glue("rte", rows=2490, pruning=3),
    "stsb": _glue("stsb"),
    "squad": Run(
        data="--task=squad --data_dir={made_up}/squad --max_length=256 --bf16=true --per_device_train_batch_size=16",
        teacher="--num_train_epochs=1 --learning_rate=2e-4",
        prune="--max_train_samples=4000 --num_train_epochs=1 --density=0.5",
    ),
    "ner": _files("token_classification", "ner"),
    "multi_label": _files("multi_label", "multi_label", teacher=5, rows=3000, pruning=6),
    "embedding": Run(
        data="--task=stsb --data_dir={data}/glue/stsb --task_type=embedding --max_train_samples=1500",
        teacher=None,
        prune="--density=0.1 --num_train_epochs=3",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("model", "data_dir", "made_up_dir", "output_dir"):
        parser.add_argument(f"--{flag}", required=True)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"Of: {', '.join(RUNS)}.")
    arguments = parser.parse_args()
    output = Path(arguments.output_dir)
    for name in arguments.names or RUNS:
        make(RUNS[name], output / name, arguments)
    found = {name: collect(run, output / name) for name, run in RUNS.items() if _results(output / name / "pruned")}
    (output / "tasks.json").write_text(json.dumps({"machine": describe(), "runs": found}, indent=2) + "\n")
    table = ["| task | metric | teacher | pruned | kept | density | seconds |", "| --- " * 7 + "|"]
    table += [
        f"| {name} | {run['metric']} | {run['teacher']:.3f} | {run['pruned']:.3f} | {run['retained']:.1%} "
        f"| {run['density']:.2f} | {run['seconds']:.0f} |"
        for name, run in found.items()
    ]
    (output / "tasks.md").write_text("\n".join(table) + "\n")
    print(*table, sep="\n")


def make(run: Run, folder: Path, arguments: argparse.Namespace) -> None:
    data = run.data.format(data=arguments.data_dir, made_up=arguments.made_up_dir).split()
    teacher = arguments.model
    if run.teacher is not None:
        teacher = str(folder / "teacher" / "model")
        _contraprune("finetune", folder / "teacher", [f"--model={arguments.model}", *data, *run.teacher.split()])
    models = [f"--model={arguments.model}", f"--teacher={teacher}", f"--cache_dir={folder / 'cache'}"]
    _contraprune("prune", folder / "pruned", [*models, *data, *run.prune.split()])


def collect(run: Run, folder: Path) -> dict[str, Any]:
    results = _results(folder / "pruned")
    metric = next(iter(results["metrics"]))
    return {
        "flags": {"data": run.data, "teacher": run.teacher, "prune": run.prune},
        "metric": metric,
        "teacher": results["teacher_metrics"][metric],
        "pruned": results["metrics"][metric],
        "retained": results["retained"],
        "density": results["density"]["encoder"],
        "metrics": results["metrics"],
        "teacher_metrics": results["teacher_metrics"],
        "seconds": sum(_results(part)["seconds"]["total"] for part in folder.iterdir() if _results(part)),
        "seed": results["seed"],
    }


def _contraprune(command: str, folder: Path, flags: list[str]) -> None:
    if not _results(folder):
        whole = [sys.executable, "-m", "contraprune", command, *flags, *QUIET, f"--output_dir={folder}"]
        subprocess.run(whole, check=True)


def _results(folder: Path) -> Any:
    file = folder / "results.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


if __name__ == "__main__":
    main()
