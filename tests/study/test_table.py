"""The numbers of the table, against the standard library's statistics."""

import csv
import io
import statistics

import pytest

from contraprune.config import ContrastConfig
from contraprune.pruning_config import PruningConfig
from contraprune.study.grid import StudyConfig, trials
from contraprune.study.table import cells, comma_separated, markdown, rows_of

TRIALS = trials(
    "ablation",
    StudyConfig(seeds="1,2,3"),
    PruningConfig(),
    ContrastConfig(contrast="pretrained"),
    seed=42,
    has_classes=False,
)
NAMES = {variant: [t.name for t in TRIALS if t.variant == variant] for variant in ("full", "without contrast")}
ACCURACY = {"full": [0.81, 0.825, 0.79], "without contrast": [0.80, 0.81, 0.75]}


def result(accuracy, number):
    return {
        "metrics": {"accuracy": accuracy, "f1": accuracy - 0.1},
        "retained": accuracy / 0.85,
        "density": {"target": 0.1, "encoder": 0.1 + number / 1000, "total": 0.3},
        "seconds": {"total": 100.0 + number},
    }


RESULTS = {
    name: result(accuracy, number)
    for variant, names in NAMES.items()
    for number, (name, accuracy) in enumerate(zip(names, ACCURACY[variant], strict=True))
}


def test_mean_and_standard_deviation_are_those_of_the_seeds():
    full, without = rows_of(TRIALS, RESULTS)
    for row, variant in ((full, "full"), (without, "without contrast")):
        assert row.variant == variant
        assert row.finished == row.wanted == 3
        accuracy = ACCURACY[variant]
        assert row.metrics["accuracy"] == pytest.approx((statistics.mean(accuracy), statistics.stdev(accuracy)))
        assert row.metrics["f1"].mean == pytest.approx(statistics.mean(accuracy) - 0.1)
        retained = [value / 0.85 for value in accuracy]
        assert row.retained == pytest.approx((statistics.mean(retained), statistics.stdev(retained)))
        assert row.density.mean == pytest.approx(0.101)
        assert row.seconds == pytest.approx((101.0, 1.0))
    assert full.difference is None
    paired = [a - b for a, b in zip(ACCURACY["without contrast"], ACCURACY["full"], strict=True)]
    assert without.difference == pytest.approx((statistics.mean(paired), statistics.stdev(paired)))


def test_only_runs_with_the_same_seed_are_compared():
    results = {name: value for name, value in RESULTS.items() if name != NAMES["full"][1]}
    del results[NAMES["without contrast"][2]]
    full, without = rows_of(TRIALS, results)
    assert (full.finished, full.wanted) == (2, 3)
    assert full.metrics["accuracy"] == pytest.approx((0.80, statistics.stdev([0.81, 0.79])))
    assert without.difference == (pytest.approx(-0.01), None)
    headers, body = cells([full, without])
    shown = [dict(zip(headers, row, strict=True)) for row in body]
    assert shown[0]["accuracy"] == "0.8000 ± 0.0141"
    assert shown[0]["difference"] == ""
    assert shown[1]["difference"] == "-0.0100"
    assert [row["n"] for row in shown] == ["2/3", "2/3"]
    assert "density" not in headers  # the same everywhere
    assert "method" not in headers


def test_variants_without_any_result_have_empty_cells():
    headers, body = cells(rows_of(TRIALS, {}))
    assert headers == ["variant", "of the teacher's", "encoder density", "seconds", "n"]
    assert body == [["full", "", "", "", "0/3"], ["without contrast", "", "", "", "0/3"]]


def test_the_files_hold_the_same_numbers():
    rows = rows_of(TRIALS, RESULTS)
    page = markdown("sst2: parts", rows, {"a-run": "out of memory"})
    mean, std = statistics.mean(ACCURACY["full"]), statistics.stdev(ACCURACY["full"])
    assert f"| full | {mean:.4f} ± {std:.4f} |" in page
    assert "- a-run: out of memory\n" in page
    read = list(csv.DictReader(io.StringIO(comma_separated(rows))))
    assert [row["variant"] for row in read] == ["full", "without contrast"]
    assert float(read[0]["accuracy_mean"]) == pytest.approx(mean)
    assert float(read[0]["accuracy_std"]) == pytest.approx(std)
    assert read[0]["difference_mean"] == ""
    assert float(read[1]["seconds_mean"]) == 101.0
