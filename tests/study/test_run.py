"""Whole studies of a tiny model. Trials run in this process where it does not matter, which is quicker."""

import csv
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import contraprune
from contraprune.callbacks import GradualPruning
from contraprune.cli import main
from contraprune.errors import UserError
from contraprune.study import queue, run
from contraprune.study.grid import FULL


class InProcess:
    """Stands for the process of a run: runs it when it is waited for."""

    def __init__(self, options, log):
        self.options = options
        self.log = log
        self.stdin = io.BytesIO()

    def wait(self):
        try:
            contraprune.prune(**self.options)
        except UserError as error:
            self.log.write_text(f"{error}\n")
            return 1
        return 0

    def kill(self):
        pass


@pytest.fixture
def started(monkeypatch):
    """The names of the trials that were started, in this process."""
    names = []

    def start(options, lock, log, device):
        names.append(Path(options["output_dir"]).name)
        return InProcess(options, log)

    monkeypatch.setattr(queue, "start_process", start)
    return names


def command(options, kind, *extra):
    return ["study", kind, *(f"--{key}={value}" for key, value in options.items()), *extra]


def table(folder):
    return list(csv.DictReader((folder / "table.csv").read_text().splitlines()))


def test_a_study_is_run_written_and_not_repeated(tiny_options, tmp_path, started, capsys):
    study = tmp_path / "run"
    flags = ("--seeds=1,2", "--methods=magnitude,movement", "--num_train_epochs=2")
    assert main(command(tiny_options, "criteria", *flags)) == 0
    shown = capsys.readouterr().out
    names = [f"{method}-density0.1-seed{seed}" for seed in (1, 2) for method in ("magnitude", "movement")]
    assert started == names
    results = {name: json.loads((study / "runs" / name / "results.json").read_text()) for name in names}
    assert {result["density"]["encoder"] for result in results.values()} == {results[names[0]]["density"]["encoder"]}
    for row in table(study):
        of_row = [results[name] for name in names if name.startswith(row["method"])]
        accuracy = [result["metrics"]["accuracy"] for result in of_row]
        assert [result["seed"] for result in of_row] == [1, 2]
        assert float(row["accuracy_mean"]) == pytest.approx(statistics.mean(accuracy))
        assert float(row["accuracy_std"]) == pytest.approx(statistics.stdev(accuracy))
        assert f"{statistics.mean(accuracy):.4f} ± {statistics.stdev(accuracy):.4f}" in shown
    record = json.loads((study / "study.json").read_text())
    assert record["results"] == results
    assert record["errors"] == {}
    options = tiny_options | {"output_dir": str(tmp_path / "alone"), "num_train_epochs": 2}
    alone = contraprune.prune(**options, method="magnitude", seed=2)
    assert alone["metrics"] == results["magnitude-density0.1-seed2"]["metrics"]

    written = {path: path.stat().st_mtime_ns for path in study.rglob("*.safetensors")}
    assert main(command(tiny_options, "criteria", *flags)) == 0
    assert started == names
    extended = ("--seeds=3", "--methods=magnitude", "--num_train_epochs=2")
    assert main(command(tiny_options, "criteria", *extended)) == 0
    assert started == [*names, "magnitude-density0.1-seed3"]
    assert written.items() <= {path: path.stat().st_mtime_ns for path in study.rglob("*.safetensors")}.items()
    assert [(row["method"], row["finished"]) for row in table(study)] == [("magnitude", "3"), ("movement", "2")]
    changed = command(tiny_options, "criteria", "--seeds=4", "--num_train_epochs=5")
    assert main(changed) == 2
    assert "holds a study with other settings (num_train_epochs was 2.0, now 5.0)" in capsys.readouterr().err
    assert main(command(tiny_options, "sparsity", *flags)) == 2
    assert "(kind was 'criteria', now 'sparsity')" in capsys.readouterr().err


def test_a_failed_trial_is_told_and_the_others_go_on(tiny_options, tmp_path, started, capsys):
    options = command(tiny_options, "criteria", "--seeds=1", "--methods=magnitude,movement")
    failed = "magnitude-density0.1-seed1"
    of_failed = tmp_path / "run" / "runs" / failed
    of_failed.mkdir(parents=True)
    (of_failed / "thesis.tex").write_text("mine")
    assert main(options) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("contraprune: ")]
    error = json.loads((tmp_path / "run" / "study.json").read_text())["errors"][failed]
    assert error.startswith(f"--output_dir {of_failed}: not empty")
    assert lines == [f"contraprune: study: 1 runs failed, first {failed}: {error}"]
    assert len(started) == 2
    page = (tmp_path / "run" / "table.md").read_text()
    assert f"- {failed}: {error}\n" in page
    assert set(json.loads((tmp_path / "run" / "study.json").read_text())["errors"]) == {failed}
    assert [(row["method"], row["finished"], row["wanted"]) for row in table(tmp_path / "run")] == [
        ("magnitude", "0", "1"),
        ("movement", "1", "1"),
    ]
    assert main(options) == 2  # tries what failed once more, and only that
    assert started[2:] == [failed]


def test_an_interrupted_study_ends_with_the_weights_of_an_uninterrupted_one(
    tiny_options, tmp_path, started, monkeypatch, capsys
):
    options = tiny_options | {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 2}
    contraprune.prune(**options | {"output_dir": str(tmp_path / "whole"), "seed": 2})
    step_end = GradualPruning.on_step_end

    def interrupted(self, args, state, control, **kwargs):
        step_end(self, args, state, control, **kwargs)
        if args.seed == 2 and state.global_step == 5:
            raise KeyboardInterrupt

    flags = command(options, "sparsity", "--seeds=1,2", "--densities=0.1")
    with monkeypatch.context() as patched:
        patched.setattr(GradualPruning, "on_step_end", interrupted)
        assert main(flags) == 130
    assert "the same command continues" in capsys.readouterr().err
    folder = tmp_path / "run" / "runs" / "movement-density0.1-seed2"
    assert (folder / "checkpoints" / "checkpoint-4").is_dir()
    assert main(flags) == 0
    assert started == [f"movement-density0.1-seed{seed}" for seed in (1, 2, 2)]
    first, second = (load_file(path / "model" / "model.safetensors") for path in (tmp_path / "whole", folder))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_killed_study_goes_on_where_it_was(tiny_options, tmp_path, started, monkeypatch):
    options = tiny_options | {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "num_train_epochs": 8}
    flags = command(options, "sparsity", "--seeds=1", "--densities=0.1,0.5")
    contraprune.prune(**options | {"output_dir": str(tmp_path / "whole"), "density": 0.1, "seed": 1})
    names = [f"movement-density{density}-seed1" for density in (0.1, 0.5)]
    folder = tmp_path / "run" / "runs" / names[0]
    study = subprocess.Popen([sys.executable, "-m", "contraprune", *flags])
    while study.poll() is None and not (folder / "checkpoints" / "checkpoint-2").is_dir():
        time.sleep(0.01)
    study.kill()
    assert study.wait() == -signal.SIGKILL
    assert not (folder / "results.json").exists()

    steps = []
    step_end = GradualPruning.on_step_end

    def counted(self, args, state, control, **kwargs):
        steps.append((Path(args.output_dir).parent.name, state.global_step))
        step_end(self, args, state, control, **kwargs)

    monkeypatch.setattr(GradualPruning, "on_step_end", counted)
    monkeypatch.setattr(queue, "GRACE", 1)  # second without a sign of life
    assert main(flags) == 0
    assert sorted(started) == names
    of_each = {name: [step for run, step in steps if run == name] for name in names}
    assert of_each[names[0]] == list(range(of_each[names[0]][0], 33))
    assert of_each[names[0]][0] > 2
    assert of_each[names[1]] == list(range(1, 33))
    assert [row["finished"] for row in table(tmp_path / "run")] == ["1", "1"]
    first, second = (load_file(path / "model" / "model.safetensors") for path in (tmp_path / "whole", folder))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_has_a_process_of_its_own(tiny_options, tmp_path, capsys):
    flags = ("--seeds=1", "--densities=0.25", "--num_train_epochs=1", "--eval_strategy=no", "--adam_beta1=0.8")
    assert main(command(tiny_options, "sparsity", *flags)) == 0
    run_directory = tmp_path / "run" / "runs" / "movement-density0.25-seed1"
    results = json.loads((run_directory / "results.json").read_text())
    assert results["density"]["target"] == 0.25
    config = yaml.safe_load((run_directory / "config.yaml").read_text())
    assert (config["eval_strategy"], config["adam_beta1"]) == ("no", 0.8)
    assert "finished" in capsys.readouterr().out


def test_an_ablation_of_the_command_line(tiny_options, tmp_path, started):
    flags = ("--seeds=1", "--num_train_epochs=2", "--contrast=pretrained")
    assert main(command(tiny_options, "ablation", *flags)) == 0
    rows = table(tmp_path / "run")
    assert [row["variant"] for row in rows] == [FULL, "without unsupervised", "without supervised", "without contrast"]
    logs = {name: (tmp_path / "run" / "runs" / name / "log.jsonl").read_text() for name in started}
    assert ["pretrained_unsupervised" in log for log in logs.values()] == [True, False, True, False]
    assert ["pretrained_supervised" in log for log in logs.values()] == [True, True, False, False]
    full = float(rows[0]["accuracy_mean"])
    for row in rows[1:]:
        assert float(row["difference_mean"]) == pytest.approx(float(row["accuracy_mean"]) - full)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--overwrite"], "--overwrite True: a study keeps what is finished"),
        (["--resume_from_checkpoint=x"], "--resume_from_checkpoint x: each trial has checkpoints of its own"),
        (["--lr_scheduler_kwargs={\"a\": 1}"], "--lr_scheduler_kwargs {'a': 1}: a study cannot hand it on"),
        (["--seeds=none"], "--seeds: expected different whole numbers"),
        (["--task=sst3"], "--task: expected one of"),
        (["--teacher=./nowhere"], "./nowhere: no such model directory"),
        (["--model=./nowhere"], "./nowhere: no such model directory"),
        (["--methods=l0,movement", "--scope=global"], "smp, not with l0 (run l0-density0.1-seed1 of this study)"),
        (["--storage=nonsense"], "--storage: expected a database"),
        (["--density=2"], "--density: expected a fraction"),
        (["--sede=1"], "--sede=1: no such flag"),
    ],
)  # fmt: skip
def test_bad_flags_are_one_line_before_anything_runs(tiny_options, started, capsys, flags, message):
    assert main(command(tiny_options, "ablation", *flags)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("contraprune: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert started == []


def test_what_nobody_named_and_cannot_run_is_not_started(tiny_options, tmp_path, started, caplog):
    """The tiny model has 2 layers of 4 heads."""
    flags = ("--seeds=1", "--method=taylor", "--num_stages=1", "--num_train_epochs=1", "--contrast=none")
    assert main(command(tiny_options, "sparsity", *flags)) == 0
    assert started == ["taylor-density0.5-seed1"]
    assert [row["target_density"] for row in table(tmp_path / "run")] == ["0.5"]
    left_out = [message for message in caplog.messages if message.startswith("left out of this study: taylor at 0.")]
    assert len(left_out) == 2
    assert "every one of the 2 layers keeps at least one of its heads" in left_out[0]


def test_a_kind_is_needed_and_has_to_be_known(tiny_options, capsys):
    assert main(command(tiny_options, "magic")) == 2
    assert "study: expected one of ablation, sparsity, criteria, found magic" in capsys.readouterr().err
    assert main(["study", *(f"--{key}={value}" for key, value in tiny_options.items())]) == 2
    assert "KIND" in capsys.readouterr().err


def test_a_foreign_directory_is_left_alone(tiny_options, tmp_path, started, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    assert main(command(tiny_options, "ablation")) == 2
    assert "not empty, and not a study" in capsys.readouterr().err
    assert os.listdir(tmp_path / "run") == ["thesis.tex"]
    (tmp_path / "run" / "thesis.tex").rename(tmp_path / "run" / "study.json")
    assert main(command(tiny_options, "ablation")) == 2
    assert "study.json: not the record of a study" in capsys.readouterr().err
    assert (tmp_path / "run" / "study.json").read_text() == "mine"


def test_without_the_optional_part_the_error_says_what_to_install(tiny_options, monkeypatch, capsys):
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    assert main(command(tiny_options, "ablation")) == 2
    assert 'pip install "contraprune[study]"' in capsys.readouterr().err


def test_workers_take_one_gpu_each(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert run._devices(None, 2) == ["0", "1"]
    assert run._devices(1, 2) == ["0"]
    assert run._devices(3, 2) == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert run._devices(None, 2) == ["4", "6"]
    assert run._devices(None, 0) == [None]
    assert run._devices(2, 0) == [None, None]
