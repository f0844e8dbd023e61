"""Several runs on one page, from results written by hand."""

import json
import re
import statistics

import pytest
import yaml

from contraprune.cli import main
from contraprune.errors import UserError
from contraprune.report.comparison import compare
from contraprune.study.directory import StudyDirectory
from contraprune.study.grid import Trial

TEACHER = 0.9
ACCURACY = {
    ("movement", 0.1): (0.80, 0.83, 0.82),
    ("movement", 0.5): (0.88, 0.87, 0.89),
    ("fisher", 0.1): (0.81,),
}


def write_run(path, *, method, density, seed, accuracy, task="toy", **options):
    path.mkdir(parents=True)
    results = {
        "task": task,
        "method": method,
        "contrast": [],
        "metrics": {"accuracy": accuracy},
        "teacher_metrics": {"accuracy": TEACHER},
        "retained": accuracy / TEACHER,
        "density": {"target": density, "encoder": density + 0.001, "total": 0.5},
        "parameters": {"before": 1000, "after": 500},
        "seconds": {"total": 1.0},
        "seed": seed,
    }
    (path / "results.json").write_text(json.dumps(results))
    settings = {"method": method, "density": density, "seed": seed, "output_dir": str(path), **options}
    (path / "config.yaml").write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def paths(tmp_path):
    return [
        write_run(tmp_path / f"{method}-{density}-{seed}", method=method, density=density, seed=seed, accuracy=accuracy)
        for (method, density), accuracies in ACCURACY.items()
        for seed, accuracy in enumerate(accuracies)
    ]


def test_runs_that_differ_in_the_seed_are_one_point_with_their_standard_deviation(paths):
    found = compare([(path, None) for path in paths])
    assert found.teacher == TEACHER
    groups = {(group.series, round(group.density - 0.001, 9)): group for group in found.groups}
    assert set(groups) == set(ACCURACY)
    for key, accuracies in ACCURACY.items():
        assert groups[key].runs == len(accuracies)
        assert groups[key].metric.mean == pytest.approx(sum(accuracies) / len(accuracies))
        expected = statistics.stdev(accuracies) if len(accuracies) > 1 else None
        assert groups[key].metric.std == (expected if expected is None else pytest.approx(expected))
        assert groups[key].retained.mean == pytest.approx(sum(accuracies) / len(accuracies) / TEACHER)


def test_the_command_writes_the_page_and_shows_the_table(paths, tmp_path, capsys):
    file = tmp_path / "all.html"
    assert main(["report", *map(str, paths), "--output", str(file)]) == 0
    shown, page = capsys.readouterr().out, file.read_text()
    for text in ("movement", "fisher", "0.8167 ± 0.0153", "0.8800 ± 0.0100", "0.8100", "90.7%"):
        assert text in shown
        assert text in page
    assert len(re.findall(r'<circle[^>]*class="dot', page)) == len(ACCURACY)
    assert "dense teacher" in page


def test_a_series_is_named_by_the_few_settings_that_tell_it_apart(tmp_path):
    paths = [
        write_run(tmp_path / f"{weight}-{seed}", method="movement", density=0.1, seed=seed, accuracy=0.8,
                  kd_weight=weight, ce_weight=1 - weight, learning_rate=1e-4)
        for weight in (0.5, 0.9)
        for seed in (1, 2)
    ]  # fmt: skip
    found = compare([(path, None) for path in paths])
    assert [group.series for group in found.groups] == ["ce_weight 0.5", "ce_weight 0.09999999999999998"]
    assert [group.runs for group in found.groups] == [2, 2]


def test_different_tasks_are_refused(paths, tmp_path):
    other = write_run(tmp_path / "other", method="movement", density=0.1, seed=1, accuracy=0.5, task="rte")
    with pytest.raises(
        UserError, match=r"expected runs of one task and metric, found rte \(accuracy\), toy \(accuracy\)"
    ):
        compare([(path, None) for path in [*paths, other]])


@pytest.mark.parametrize("flags", [[], ["--output", "page.txt"]])
def test_nothing_to_compare_is_one_line(tmp_path, capsys, flags):
    assert main(["report", str(tmp_path), *flags]) == 2
    expected = "--output: expected a name that ends in .html" if flags else "found no results.json"
    assert expected in capsys.readouterr().err


def test_an_ablation_shows_what_each_part_adds(tmp_path, capsys):
    study, numbers = StudyDirectory(tmp_path), {"full": (0.90, 0.88), "without PrC": (0.86, 0.85)}
    asked = [
        Trial(variant=variant, method="movement", density=0.1, seed=seed, options={"seed": seed})
        for variant in numbers
        for seed in (0, 1)
    ]
    with study.claim("ablation", {"task": "toy"}, asked):
        pass
    assert main(["report", str(tmp_path)]) == 2
    assert "no run of the study is finished yet" in capsys.readouterr().err
    for trial in asked:
        accuracy = numbers[trial.variant][trial.seed]
        write_run(study.runs / trial.name, method="movement", density=0.1, seed=trial.seed, accuracy=accuracy)
    study.update({})
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    differences = (-0.04, -0.03)
    spread = f"{statistics.mean(differences):+.4f} ± {statistics.stdev(differences):.4f}"
    assert f"without PrC: {spread}" in page
    assert "full" in page
    with study.claim("ablation", {"task": "toy"}, asked):  # the page is the study's own
        pass
