"""Who may use a directory for a run, and what is left of an earlier one."""

import json
from pathlib import Path

import pytest

from contraprune import runs
from contraprune.errors import UserError
from contraprune.runs import RunDirectory, Stopwatch, checkpoints

OPTIONS = {"density": 0.1, "output_dir": "run"}
RECORD = {"command": "prune", "data": "fingerprint"}


def claim(path, density=0.1, *, newer=1, overwrite=False):
    """Claims a directory as a process would that then ends."""
    directory = RunDirectory(path)
    try:
        options = OPTIONS | {"density": density, "newer": newer}
        return directory.claim(options, RECORD, identity={"density": None, "newer": 1}, overwrite=overwrite)
    finally:
        directory.release()


@pytest.fixture
def begun(tmp_path):
    claim(tmp_path / "run")
    (tmp_path / "run" / "banks").mkdir()
    (tmp_path / "run" / "banks" / "snapshot.rows").write_text("rows")
    return tmp_path / "run"


def names(path):
    return sorted(file.name for file in path.iterdir())


def test_an_option_that_an_earlier_version_did_not_know_had_its_default(begun):
    config = begun / "config.yaml"
    config.write_text("".join(line for line in config.read_text().splitlines(True) if not line.startswith("newer")))
    assert claim(begun) == "interrupted"
    with pytest.raises(UserError, match="newer was 1, now 2"):
        claim(begun, newer=2)


def test_a_directory_is_new_then_interrupted_then_finished(begun):
    assert claim(begun) == "interrupted"
    RunDirectory(begun).finish({"metrics": {}})
    assert names(begun) == ["SHA256SUMS", "config.yaml", "results.json"]
    assert claim(begun) == "finished"
    assert RunDirectory(begun).read_results() == {"metrics": {}}
    assert names(begun) == ["SHA256SUMS", "config.yaml", "results.json"]


def test_other_settings_need_overwrite_unless_nothing_was_done(begun, tmp_path):
    with pytest.raises(UserError, match=r"density was 0\.1, now 0\.2"):
        claim(begun, density=0.2)
    assert claim(begun, density=0.2, overwrite=True) == "new"
    assert names(begun) == ["config.yaml"]
    (begun / "seconds.json").write_text('{"load": 9}')
    (begun / "checkpoints").mkdir()  # which transformers makes before anything is trained
    assert claim(begun, density=0.3) == "new"
    assert "density: 0.3" in (begun / "config.yaml").read_text()
    assert not (begun / "seconds.json").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_others_are_left_alone(tmp_path, overwrite):
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "README.md").write_text("mine")
    with pytest.raises(UserError, match="not a run of contraprune"):
        claim(tmp_path / "run", overwrite=overwrite)
    assert names(tmp_path / "run") == ["README.md", "model"]


@pytest.mark.parametrize("moment", [0, 1, 15, 33, 34])  # at last, config.yaml
def test_overwriting_that_is_interrupted_can_be_repeated(begun, monkeypatch, moment):
    RunDirectory(begun).finish({})
    (begun / "model").mkdir()
    remove, removed = runs._remove, []

    def interrupted(path):
        if len(removed) == moment:
            raise KeyboardInterrupt
        removed.append(path)
        remove(path)

    monkeypatch.setattr(runs, "_remove", interrupted)
    with pytest.raises(KeyboardInterrupt):
        claim(begun, density=0.2, overwrite=True)
    assert ("results.json" in names(begun)) == (moment == 0)
    monkeypatch.undo()
    assert claim(begun, density=0.2, overwrite=True) == "new"
    assert names(begun) == ["config.yaml"]


def test_a_second_claim_is_refused_until_the_first_is_released(begun):
    first = RunDirectory(begun)
    first.claim(OPTIONS, RECORD, identity={}, overwrite=False)
    with pytest.raises(UserError, match=r"run: process \d+ on \S+ is writing to it"):
        claim(begun)
    first.release()
    assert claim(begun) == "interrupted"


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--output_dir .*file/run: cannot be written to \(Not a directory\)"):
        claim(tmp_path / "file" / "run")


def test_only_whole_checkpoints_count_and_in_the_order_of_their_steps(tmp_path):
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-x", "other-11"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "SHA256SUMS").write_text("")
    (tmp_path / "checkpoint-12").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]


def test_seconds_add_up_over_starts_and_a_broken_file_costs_only_them(tmp_path, monkeypatch):
    now = iter([10.0, 12.0, 15.0, 100.0, 101.5, 0.0, 1.0])
    monkeypatch.setattr(runs.time, "perf_counter", lambda: next(now))
    file = tmp_path / "seconds.json"
    watch = Stopwatch(file, write=True)
    watch.lap("load")
    watch.lap("train")
    again = Stopwatch(file, write=True)
    again.lap("load")
    assert json.loads(file.read_text()) == again.seconds == {"load": 3.5, "train": 3.0}
    Path(file).write_text('{"load": "much"}')
    broken = Stopwatch(file, write=False)
    broken.lap("load")
    assert broken.seconds == {"load": 1.0}
    assert file.read_text() == '{"load": "much"}'
