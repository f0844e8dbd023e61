"""What happens between steps: the density schedule and the log file."""

import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest

from contraprune.callbacks import GradualPruning, Interruption, LogFile, NoLastCheckpoint, Snapshots
from contraprune.errors import Interrupted
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


@pytest.mark.parametrize(("step", "best", "saved"), [(99, False, True), (100, False, False), (100, True, True)])
def test_a_checkpoint_right_before_the_model_is_saved_is_left_out_unless_it_may_be_the_best(step, best, saved):
    arguments, control = SimpleNamespace(load_best_model_at_end=best), SimpleNamespace(should_save=True)
    NoLastCheckpoint().on_step_end(arguments, state(step), control)
    assert control.should_save is saved
    control.should_save = True
    NoLastCheckpoint().on_epoch_end(arguments, state(step), control)
    assert control.should_save is saved


def test_restored_masks_are_not_made_anew():
    recorder = Recorder()
    recorder.masks_restored = True
    run(recorder, frozen=0.15, start=90)
    assert recorder.densities == []


def test_snapshots_are_taken_at_the_start_of_every_epoch_after_the_first_and_reread_on_resume():
    taken = []
    callback = Snapshots(lambda *call: taken.append(call))
    for epoch in (0.0, 1.0, 2.0):
        callback.on_epoch_begin(None, state(0, epoch=epoch), None)
    assert taken == [(1, True), (2, True)]
    for epoch, now in ((2.4, False), (2.0, True)):
        resumed = []
        Snapshots(lambda *call, calls=resumed: calls.append(call)).on_epoch_begin(None, state(0, epoch=epoch), None)
        assert resumed == [(1, False), (2, now)]


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


def test_half_a_line_of_a_process_that_was_killed_is_dropped(tmp_path):
    file = tmp_path / "log.jsonl"
    file.write_text('{"step": 1, "loss": 1}\n{"step": 2, "loss": 2}\n[]\n{"step": 2, "eval_lo')
    LogFile(file).on_train_begin(None, state(2), None)
    assert file.read_text() == '{"step": 1, "loss": 1}\n{"step": 2, "loss": 2}\n'


def test_ctrl_c_waits_for_the_end_of_the_step_and_its_checkpoint_a_second_one_does_not(capsys):
    before = signal.getsignal(signal.SIGINT)
    interruption = Interruption()
    control = SimpleNamespace(should_save=False)
    with interruption.listening():
        interruption.on_step_end(None, state(1), control)
        interruption.on_save(None, state(1), control)
        assert not control.should_save
        os.kill(os.getpid(), signal.SIGINT)
        interruption.on_step_end(None, state(2), control)
        assert control.should_save
        with pytest.raises(Interrupted, match="state saved after step 2 of 100"):
            interruption.on_save(None, state(2), control)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().err.count("Ctrl-C once more stops at once") == 1


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
