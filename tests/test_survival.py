"""Runs that are killed, interrupted or run out of disk, and files that are damaged: real processes, real signals."""

import json
import signal

import pytest

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
    "finetune": [call(STEP, 3), call("torch:save", 2, "tear"), call("contraprune.jobs:save_model")],
    "movement": [
        before_rename("/config.yaml"),
        call("contraprune.bank:RowFile.write"),  # half a bank
        before_rename("outputs.rows"),
        call("contraprune.unstructured:fisher_saliency"),
        call(STEP, 3),
        before_rename("/checkpoint-3"),
        call("contraprune.trainer:save_file", 1, "tear"),  # masks and scores
        call("contraprune.bank:RowFile.seal"),  # a snapshot, in the second epoch
        call("contraprune.files:seal", 2),
        call("torch:save", 6, "tear"),
        call(STEP, 2),
        before_rename("/run/model"),
        before_rename("/results.json"),
        call("contraprune.runs:shutil.rmtree"),  # finished, and not tidied up
    ],
    "taylor": [
        call("contraprune.bank:RowFile.write"),
        before_rename("/kept.json"),
        call("contraprune.structured:shrink"),
        call("contraprune.structured:shrink", after=True),
        call(STEP, 3),
        call("torch:save", 2, "tear"),
        call("contraprune.structured:save_model"),
        before_rename("/01/model"),
        before_rename("/01/stage.json"),
        call("contraprune.structured:StageRunner._drop_earlier"),  # between stages
        call("contraprune.bank:RowFile.seal"),
        call("contraprune.structured:shrink", after=True),
        call(STEP, 2),
        before_rename("/run/model"),
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
