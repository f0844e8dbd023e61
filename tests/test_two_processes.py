"""Data-parallel runs: two real processes (gloo) against one, with the same batches of a step.

The two processes are two nodes. ``movement`` and ``fisher`` have a directory that both see; in ``taylor`` each keeps
its own banks, and the last batch whose importance is rated has an example for one of them only.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import contraprune
from tiny_tasks import small_run

SCRIPT = Path(__file__).with_name("two_processes.py")
BATCH = 16


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """The same two runs in one process and in two; the folder of each, and where the options of a run are."""
    folders = {}
    models = tmp_path_factory.mktemp("models")
    for name in ("pretrained", "teacher"):
        shutil.copytree(tiny / name, models / name)
        file = models / name / "config.json"
        quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
        file.write_text(json.dumps(json.loads(file.read_text()) | quiet))  # every process draws its own dropout
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"processes{processes}")
        common = small_run(models, folder, max_eval_samples=45, save_strategy="no")
        common |= {"per_device_train_batch_size": BATCH // processes}
        options = {
            "movement": {"density": 0.3},
            "fisher": {"method": "fisher", "density": 0.3, "contrast": "none", "num_train_epochs": 1},
            "taylor": {"method": "taylor", "density": 0.5, "num_stages": 2, "importance_examples": 33},
        }
        options = {name: common | own | {"output_dir": str(folder / name)} for name, own in options.items()}
        if processes == 2:
            options["taylor"] |= {"output_dir": "taylor", "cache_dir": "cache", "save_on_each_node": True}
        (folder / "options.json").write_text(json.dumps(options))
        if processes == 1:
            for chosen in options.values():
                contraprune.prune(**chosen)
        else:
            start_two_nodes(folder)
        folders[processes] = folder
    return folders


def start_two_nodes(folder):
    """Starts what torchrun would start on two nodes, each in a directory of its own."""
    common = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(29000 + os.getpid() % 1000), "PYTHONPATH": os.pathsep.join(sys.path)}
    nodes = []
    for node in range(2):
        (folder / f"node{node}").mkdir()
        with (folder / f"node{node}.log").open("w") as output:
            where = {"cwd": folder / f"node{node}", "env": os.environ | common | {"RANK": str(node)}}
            command = [sys.executable, str(SCRIPT), str(folder)]
            nodes.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **where))
    for node, process in enumerate(nodes):
        assert process.wait(timeout=300) == 0, (folder / f"node{node}.log").read_text()[-3000:]


def result(runs, processes, name):
    """The run directory; that of the first node where each has its own."""
    return runs[processes] / ("node0" if processes == 2 and name == "taylor" else "") / name


def losses(folder):
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry for entry in log if "grad_norm" in entry]


NAMES = ["movement", "fisher", "taylor"]


@pytest.mark.parametrize("name", NAMES)
def test_both_processes_end_with_the_same_masks_and_sizes(runs, name):
    first, second = (load_file(runs[2] / f"{name}-{rank}.safetensors") for rank in (0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(("name", "steps"), [("movement", 8), ("fisher", 4), ("taylor", 16)])
def test_two_processes_have_the_loss_curve_of_one_at_the_same_batch(runs, name, steps):
    one, two = (losses(result(runs, processes, name)) for processes in (1, 2))
    assert len(one) == len(two) == steps
    contrast = {"loss_pretrained_supervised", "loss_finetuned_unsupervised"} if name != "fisher" else set()
    for entry, other in zip(one, two, strict=True):
        parts = [key for key in entry if key.startswith("loss")]
        assert {"loss", "loss_ce", "loss_kd"} | contrast <= {*parts}
        for part in (*parts, "density"):
            assert other[part] == pytest.approx(entry[part], rel=1e-4, abs=1e-5), (part, entry["step"])
    assert ("loss_snapshots_unsupervised" in two[-1]) == (name != "fisher")


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_end_with_the_result_of_one(runs, name):
    results = [json.loads((result(runs, n, name) / "results.json").read_text()) for n in (1, 2)]
    for key in ("metrics", "parameters", "density"):
        assert results[0][key] == results[1][key]
    sizes = [[(stage["heads"], stage["neurons"]) for stage in found.get("stages", [])] for found in results]
    assert sizes[0] == sizes[1]
    # The weights that are left are those of the same masks, heads and neurons.
    first, second = (load_file(result(runs, n, name) / "model" / "model.safetensors") for n in (1, 2))
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=1e-3, atol=1e-4)


def test_two_processes_fill_the_banks_of_one(runs):
    files = [sorted((runs[n] / "cache").glob("*/*.rows")) for n in (1, 2)]
    names = [[file.relative_to(runs[n] / "cache") for file in found] for n, found in zip((1, 2), files, strict=True)]
    assert names[0] == names[1]
    assert len(names[0]) == 3  # the pre-trained model's rows, the teacher's, and its outputs
    for one, two in zip(*files, strict=True):
        dtype = np.float32 if one.stem == "outputs" else np.float16
        first, second = (np.fromfile(file, dtype=dtype).astype(np.float32) for file in (one, two))
        np.testing.assert_allclose(second, first, atol=1e-3)
        assert np.abs(first).max() > 0.1


def test_every_node_has_banks_of_its_own_where_they_share_no_files(runs):
    nodes = [runs[2] / f"node{node}" for node in (0, 1)]
    for node in nodes:
        files = sorted((node / "cache").glob("*/*.rows"))
        assert [file.stem for file in files] == ["outputs", "representations", "representations"]
        assert not (node / "taylor" / "banks").exists()
    first, second = ([file.read_bytes() for file in sorted((node / "cache").glob("*/*.rows"))] for node in nodes)
    assert first == second


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc-per-node", "2"],
    # As on two GPUs; accelerate has no launcher of its own for processes on a CPU.
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                   "--mixed_precision", "no", "--dynamo_backend", "no"],
}  # fmt: skip


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_command_line_under_a_launcher_ends_with_the_result_of_one_process(runs, tmp_path, launcher):
    options = json.loads((runs[2] / "options.json").read_text())["fisher"] | {"output_dir": str(tmp_path / "run")}
    (tmp_path / "run.yaml").write_text(json.dumps(options))
    port = ["--master_port" if launcher == "torchrun" else "--main_process_port", str(30000 + os.getpid() % 1000)]
    command = [sys.executable, "-m", *LAUNCHERS[launcher], *port, "-m", "contraprune", "prune"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command += ["--config", str(tmp_path / "run.yaml")]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found, expected = (
        json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "run", runs[1] / "fisher")
    )
    assert all(found[key] == expected[key] for key in ("metrics", "parameters", "density"))
    assert len(losses(tmp_path / "run")) == len(losses(runs[1] / "fisher"))
