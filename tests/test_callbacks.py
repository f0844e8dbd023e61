"""What happens between steps: the density schedule and the log file."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from contraprune.callbacks import GradualPruning, LogFile, Snapshots
from contraprune.pipeline import prune
from contraprune.pruning_config import PruningConfig
from reference import cubic


def state(step, total=100, epoch=0.0):
    return SimpleNamespace(global_step=step, max_steps=total, epoch=epoch, is_world_process_zero=True)


class Recorder:
    """Stands for a trainer and its criterion."""

    def __init__(self):
        self.criterion = self
        self.masks_restored = False
        self.densities, self.moments = [], []

    def update_masks(self, moment):
        self.moments.append(moment)
        self.densities.append(moment.cubic(1.0, 0.1))


def run(recorder, *, frozen, start=0, total=100):
    schedule = GradualPruning(recorder, PruningConfig(prune_warmup=0.1, prune_cooldown=0.3, freeze_masks=frozen))
    schedule.on_train_begin(None, state(start, total), None)
    for step in range(start + 1, total + 1):
        schedule.on_step_end(None, state(step, total), None)
    return schedule


def test_masks_are_made_once_per_step_and_follow_the_cubic_schedule_until_they_freeze():
    recorder = Recorder()
    run(recorder, frozen=0.15)
    expected = [
        cubic(step, 100, warmup_steps=1, initial=1.0, final=0.1, initial_warmup=10, final_warmup=30)
        for step in range(86)
    ]
    assert recorder.densities == pytest.approx(expected)
    assert recorder.densities[10] == 1.0
    assert recorder.densities[-1] == 0.1
    assert [moment.last for moment in recorder.moments] == [False] * 85 + [True]


def test_without_freezing_the_last_masks_are_made_after_the_last_step():
    recorder = Recorder()
    run(recorder, frozen=0.0)
    assert len(recorder.densities) == 101
    assert [moment.step for moment in recorder.moments if moment.last] == [100]


def test_restored_masks_are_not_made_anew():
    recorder = Recorder()
    recorder.masks_restored = True
    run(recorder, frozen=0.15, start=90)
    assert recorder.densities == []


def test_snapshots_are_taken_at_the_start_of_every_epoch_after_the_first_and_reread_on_resume():
    taken = []
    callback = Snapshots(taken.append)
    for epoch in (0.0, 1.0, 2.0):
        callback.on_epoch_begin(None, state(0, epoch=epoch), None)
    assert taken == [1, 2]
    resumed = []
    Snapshots(resumed.append).on_epoch_begin(None, state(0, epoch=2.4), None)
    assert resumed == [1, 2]


def test_a_resumed_run_drops_the_lines_after_its_checkpoint_and_keeps_other_stages(tmp_path):
    file = tmp_path / "log.jsonl"
    for stage in ("one", "two"):
        log = LogFile(file, stage)
        log.on_train_begin(None, state(0), None)
        for step in (1, 2, 3):
            log.on_log(None, state(step), None, {"loss": step})
    again = LogFile(file, "two")
    again.on_train_begin(None, state(2), None)
    again.on_log(None, state(3), None, {"loss": 30})
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(e["stage"], e["step"], e["loss"]) for e in entries] == [
        ("one", 1, 1), ("one", 2, 2), ("one", 3, 3), ("two", 1, 1), ("two", 2, 2), ("two", 3, 30),
    ]  # fmt: skip


@pytest.mark.parametrize("method", ["movement", "taylor"])
def test_tensorboard_gets_the_parts_of_the_loss_and_the_density(tiny_options, tmp_path, method):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415 - optional

    extra = {"num_stages": 2, "density": 0.5} if method == "taylor" else {}
    prune(**tiny_options | extra | {"method": method, "num_train_epochs": 1, "report_to": "tensorboard"})
    run = tmp_path / "run"
    folders = sorted({file.parent for file in (run / "tensorboard").rglob("events*")})
    assert len(folders) == (2 if method == "taylor" else 1)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for folder in folders:
        events = EventAccumulator(str(folder)).Reload()
        stage = folder.name if method == "taylor" else None
        for name in ("loss", "loss_ce", "loss_kd", "loss_finetuned_supervised", "density"):
            logged = [(entry["step"], entry[name]) for entry in log if name in entry and entry.get("stage") == stage]
            found = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
            assert len(found) == 4
            np.testing.assert_allclose(found, logged, rtol=1e-6)
    assert not (run / "checkpoints").exists()
