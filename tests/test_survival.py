"""Runs that are killed, interrupted or run out of disk, and files that are damaged: real processes, real signals."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from contraprune.files import seal
from contraprune.tasks import toy
from fork_server import Server

KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def common(tiny, tmp_path_factory):
    """Flags of a run of 8 optimiser steps, with a checkpoint after each."""
    data = tmp_path_factory.mktemp("data")
    for split, count in (("train", 64), ("validation", 16)):
        rows = toy.load(0)[split].values[:count]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": tiny / "pretrained",
        "task": "toy",
        "data_dir": data,
        "max_length": 16,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 16,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
    }


@pytest.fixture(scope="module")
def commands(common, tiny):
    """Commands by name, without their directories."""
    prune = common | {"teacher": tiny / "teacher", "extra_examples": 32, "density": 0.5}
    taylor = {"method": "taylor", "num_stages": 2, "importance_examples": 32, "num_train_epochs": 1}
    return {
        "finetune": ["finetune", common],
        "movement": ["prune", prune],
        "taylor": ["prune", prune | taylor],
    }


def command(commands, name, output, **more):
    command, options = commands[name]
    if command == "prune":
        options = options | {"cache_dir": output.parent / "cache"}
    return [command, *(f"--{key}={value}" for key, value in (options | {"output_dir": output} | more).items())]


@pytest.fixture(scope="module")
def whole(server, commands, tmp_path_factory):
    """Runs that nothing happened to, by name."""
    runs = {}

    def run(name):
        if name not in runs:
            runs[name] = tmp_path_factory.mktemp(name) / "whole"
            end = server.run(command(commands, name, runs[name]))
            assert end.code == 0, end.error
        return runs[name]

    return run


def same_end(run, whole):
    """Weights bit for bit, every logged loss, and everything in the results but times."""
    model = "model/model.safetensors"
    assert (run / model).read_bytes() == (whole / model).read_bytes()
    losses = [
        [(e.get("stage"), e["step"], e["loss"]) for e in map(json.loads, (r / "log.jsonl").open()) if "loss" in e]
        for r in (run, whole)
    ]
    assert losses[0] == losses[1]
    results = [json.loads((r / "results.json").read_text()) for r in (run, whole)]
    for found in results:
        found.pop("seconds")
        for stage in found.get("stages", []):
            stage.pop("seconds")
    assert results[0] == results[1]
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in whole.iterdir())


def call(name, number=1, then="kill", **more):
    return {"call": name, "number": number, "then": then, **more}


def before_rename(end):
    return {"rename_to": end, "then": "kill"}


STEP = "contraprune.trainer:TaskTrainer.training_step"
MOMENTS = {
    "finetune": [call(STEP, 3), call("contraprune.jobs:save_model")],
    "movement": [
        before_rename("/config.yaml"),
        call("contraprune.bank:RowFile.write"),  # half a bank
        before_rename("outputs.rows"),
        call("contraprune.unstructured:fisher_saliency"),
        call(STEP, 3),
        call("contraprune.trainer:save_file", then="tear"),  # masks and scores
        before_rename("/checkpoint-3"),
        call("contraprune.bank:RowFile.seal"),  # a snapshot, in the second epoch
        before_rename("/run/model"),
        before_rename("/results.json"),
        call("contraprune.runs:shutil.rmtree"),  # finished, and not tidied up
    ],
    "taylor": [
        before_rename("/kept.json"),
        call("contraprune.structured:shrink", after=True),
        call(STEP, 3),
        call("torch:save", 2, "tear"),  # the optimiser's state
        call("contraprune.structured:save_model"),
        before_rename("/01/stage.json"),
        call("contraprune.structured:StageRunner._drop_earlier"),  # between stages
        call("contraprune.bank:RowFile.seal"),
        call("contraprune.structured:shrink", after=True),
        call(STEP, 2),
    ],
}


@pytest.mark.parametrize("name", MOMENTS)
def test_a_run_killed_again_and_again_ends_with_the_weights_of_one_that_was_not(
    server, commands, whole, tmp_path, name
):
    run = tmp_path / "run"
    for moment in MOMENTS[name]:
        end = server.run(command(commands, name, run), moment)
        assert end.code == KILLED, (moment, end.error)
    end = server.run(command(commands, name, run))
    assert end.code == 0, end.error
    same_end(run, whole(name))


def test_ctrl_c_saves_after_the_step_it_comes_in_and_says_how_to_go_on(server, commands, whole, tmp_path):
    run = tmp_path / "run"
    end = server.run(command(commands, "movement", run, save_strategy="no"), call(STEP, 3, "interrupt"))
    assert end.code == 130
    assert end.lines == [
        "contraprune: interrupted (state saved after step 3 of 8); the same command continues from there"
    ]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["checkpoint-3"]
    before = json.loads((run / "seconds.json").read_text())
    end = server.run(command(commands, "movement", run, save_strategy="no"))
    assert end.code == 0, end.error
    same_end(run, whole("movement"))
    seconds = json.loads((run / "results.json").read_text())["seconds"]
    assert all(seconds[name] > before[name] for name in ("load", "encode", "train"))
    assert seconds["total"] == pytest.approx(sum(value for name, value in seconds.items() if name != "total"), abs=0.01)


def test_a_run_directory_is_one_process_at_a_time_s(server, commands, whole, tmp_path):
    run = tmp_path / "run"
    first = server.run(command(commands, "finetune", run), call(STEP, 3, "stop"))
    assert first.code is None
    try:
        for more in ({}, {"overwrite": True}):
            second = server.run(command(commands, "finetune", run, **more))
            assert second.code == 2
            assert f"--output_dir {run}: process {first.pid} on " in second.lines[0]
    finally:
        os.kill(first.pid, signal.SIGKILL)
    assert server.run(command(commands, "finetune", run)).code == 0
    same_end(run, whole("finetune"))


def test_a_full_disk_stops_with_one_line_and_what_was_saved_before(server, commands, whole, tmp_path):
    run = tmp_path / "run"
    arguments = command(commands, "movement", run)
    assert server.run(arguments, call("contraprune.sources:encode")).code == KILLED

    def full(largest):
        end = server.run(arguments, largest_file=largest)
        assert (end.code, len(end.lines)) == (2, 1), end.error
        assert f"{run}: the disk is full" in end.lines[0]
        assert "Traceback" not in end.error
        return {path.name for path in (run / "checkpoints").glob("unfinished/*/*.safetensors")}

    assert full(2_500) == set()  # the first bank does not fit
    assert full(2_000_000) == set()  # nor the weights of the first checkpoint
    assert server.run(arguments, call(STEP, 3)).code == KILLED
    assert full(6_000_000) == {"model.safetensors"}  # nor its optimiser's state, which torch writes
    assert [path.name for path in (run / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]
    end = server.run(arguments)
    assert end.code == 0, end.error
    same_end(run, whole("movement"))


def flip(path, position=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 1
    path.write_bytes(content)


def test_damaged_checkpoints_are_named_and_an_older_one_is_taken(server, commands, whole, tmp_path):
    run = tmp_path / "run"
    keeping = command(commands, "movement", run, save_total_limit=3)
    assert server.run(keeping, call(STEP, 5)).code == KILLED
    checkpoints = sorted((run / "checkpoints").glob("checkpoint-*"))
    assert [path.name for path in checkpoints] == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]
    flip(checkpoints[2] / "optimizer.pt")
    rows = checkpoints[1] / "pruning.safetensors"
    rows.write_bytes(rows.read_bytes()[:-1])
    end = server.run(keeping, call(STEP, 2))
    assert end.code == KILLED
    assert f"{checkpoints[2] / 'optimizer.pt'}: damaged or edited" in end.error
    assert f"{rows}: damaged or edited" in end.error
    assert "going on from checkpoint-2" in end.error
    for checkpoint in (run / "checkpoints").glob("checkpoint-*"):
        flip(checkpoint / "trainer_state.json")
    end = server.run(keeping)
    assert (end.code, len(end.lines)) == (2, 1), end.error
    assert ": damaged or edited (expected the checksum " in end.lines[0]
    for checkpoint in (run / "checkpoints").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    assert server.run(keeping).code == 0
    same_end(run, whole("movement"))


def test_a_lost_snapshot_is_not_made_from_another_model(server, commands, tmp_path):
    run = tmp_path / "run"
    arguments = command(commands, "movement", run)
    assert server.run(arguments, call(STEP, 7)).code == KILLED  # in the second epoch
    flip(run / "banks" / "snapshot-001" / "representations.rows")
    end = server.run(arguments)
    assert (end.code, len(end.lines)) == (2, 1), end.error
    advice = "the model that it is of is gone; use --overwrite to start again"
    assert end.lines[0].endswith(f"its checksum differs from the one it was sealed with; {advice}")
    shutil.rmtree(run / "banks")
    end = server.run(arguments)
    assert end.lines == [f"contraprune: {run}/banks/snapshot-001: snapshot 1 is missing; {advice}"]


@pytest.mark.parametrize(("name", "parts"), [("finetune", ""), ("movement", " (ce ")])
def test_a_run_that_diverges_stops_in_that_step_and_keeps_the_last_good_checkpoint(
    server, commands, tmp_path, name, parts
):
    run = tmp_path / "run"
    end = server.run(command(commands, name, run, learning_rate=1e38, warmup_steps=4))
    assert (end.code, len(end.lines)) == (2, 1), end.error
    found = re.fullmatch(
        r"contraprune: training diverged in step (\d) of 8: (the loss is nan|\S+ is not finite)( \(.*\))?; "
        r"lower --learning_rate \(it was 1e\+38\), or the weight of the part that grew; checkpoint-(\d) is kept",
        end.lines[0],
    )
    assert found, end.lines[0]
    assert int(found[4]) == int(found[1]) - 1
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"checkpoint-{found[4]}"]
    kept = load_file(run / "checkpoints" / f"checkpoint-{found[4]}" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())
    assert not (run / "model").exists()
    assert (found[3] or "").startswith(parts)


def test_code_in_a_checkpoint_is_not_run(server, commands, tmp_path):
    run = tmp_path / "run"
    assert server.run(command(commands, "finetune", run), call(STEP, 3)).code == KILLED
    checkpoint = run / "checkpoints" / "checkpoint-2"
    for name in ("rng_state.pth", "optimizer.pt"):
        torch.save(Code(tmp_path / "ran"), checkpoint / name)
        seal(checkpoint)  # as whoever wants the code to be run would
        end = server.run(command(commands, "finetune", run))
        assert (end.code, len(end.lines)) == (2, 1), end.error
        assert f"{checkpoint}: not a checkpoint of this run" in end.lines[0]
        assert not (tmp_path / "ran").exists()


class Code:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_what_a_finished_run_left_is_checked(server, commands, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole("finetune"), run)
    again = command(commands, "finetune", run)
    assert subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=run / "model", check=False).returncode == 0
    for damaged, arguments in (
        (run / "results.json", again),
        (run / "model" / "model.safetensors", ["inspect", run]),
        (run / "model" / "config.json", ["inspect", run]),
    ):
        before = damaged.read_bytes()
        flip(damaged, before.index(b"0") if damaged.suffix == ".json" else None)
        end = server.run(arguments)
        assert (end.code, len(end.lines)) == (2, 1), end.error
        assert f"{damaged}: damaged or edited" in end.lines[0]
        damaged.write_bytes(before)
    for format in ("dense", "sparse"):
        exported = tmp_path / format
        assert server.run(["export", run, f"--format={format}", f"--output_dir={exported}"]).code == 0
        weights = next(exported.glob("*.safetensors"))
        flip(weights)
        end = server.run(["inspect", exported])
        assert (end.code, len(end.lines)) == (2, 1), end.error
        assert f"{weights}: damaged or edited" in end.lines[0]
