"""Lines of progress: what they say and when, by a clock that the test moves."""

import re
import sys

import pytest

from contraprune import progress as module
from contraprune.pipeline import prune
from contraprune.progress import EVERY, Lines, duration, progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that go on only when the test says so."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_line_now_and_then_says_what_how_far_and_how_long(clock, capsys):
    lines = Lines("encoding", 1200, done=200)
    clock[0] += EVERY - 1
    lines.step(300)
    assert capsys.readouterr().err == ""
    clock[0] += 71
    lines.step(700, "loss 0.5")
    assert capsys.readouterr().err == "encoding: 700 of 1,200 (58%), 100 s gone, about 100 s left, loss 0.5\n"
    lines.step(701)
    assert capsys.readouterr().err == ""
    clock[0] += 1
    lines.step(1200)
    assert capsys.readouterr().err == "encoding: 1,200 of 1,200 (100%), 101 s gone, done\n"


def test_short_work_says_nothing(clock, capsys):
    assert list(progress([1, 2, 3], "short", show=True)) == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_items_are_counted_when_they_are_done_with(clock, capsys):
    for _ in progress(range(4), "slow", show=True):
        clock[0] += EVERY
    shown = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0] for line in shown] == [f"slow: {n} of 4" for n in (1, 2, 3, 4)]


def test_quiet_is_quiet(clock, capsys):
    for _ in progress(range(4), "slow", show=False):
        clock[0] += EVERY
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(progress(range(3), "bar", show=True)) == [0, 1, 2]
    assert "bar:   0%" in capsys.readouterr().err


def test_a_run_in_a_log_says_how_far_every_part_of_it_is(tiny_options, monkeypatch, capsys):
    monkeypatch.setattr(module, "EVERY", 0.0)
    prune(**tiny_options | {"disable_tqdm": False, "num_train_epochs": 2})
    shown = capsys.readouterr().err
    for part in ("evaluating", "encoding with the pre-trained model", "encoding with the teacher", "rating weights"):
        assert re.search(rf"^{part}: \d+ of \d+ \(\d+%\), \d+ s gone, ", shown, re.MULTILINE), part
    (end,) = [line for line in shown.splitlines() if line.startswith("training, steps: 8 of 8 (100%), ")]
    assert re.search(r"s gone, done, .*\bloss \d.*\bdensity 0\.\d", end)
    assert "training, steps: 4 of 8 (50%), " in shown


@pytest.mark.parametrize(("seconds", "shown"), [(55.2, "55 s"), (500, "8 min"), (7300, "2 h 2 min")])
def test_durations(seconds, shown):
    assert duration(seconds) == shown
