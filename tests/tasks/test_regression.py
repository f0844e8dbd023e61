"""Regression: numbers read from files, correlations against naive ones, and a whole run."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, BertConfig

import contraprune
from contraprune.errors import UserError
from tasks.test_classification import failure, load
from tasks.test_files import write

ROWS = [
    {"sentence1": "a man walks", "sentence2": "a man moves", "label": 4.2},
    {"sentence1": "it rains", "sentence2": "a dog", "label": 0},
    {"sentence1": "no", "sentence2": "yes", "label": 1.5},
]


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_own_files_of_numbers(tmp_path, ending):
    rows = [{**row, "label": float(row["label"])} for row in ROWS]
    file = write(tmp_path / f"train{ending}", rows)
    task = load(train_file=file, validation_file=file, task_type="regression")
    assert task.train["label"][:] == pytest.approx([4.2, 0, 1.5])
    assert (task.label_names, task.main_metric) == ((), "spearman")
    assert task.model_options() == {"num_labels": 1, "problem_type": "regression"}


@pytest.mark.parametrize("value", ["good", None, True, float("nan"), [1.0], ""])
def test_what_is_no_number_is_named(tmp_path, value):
    file = tmp_path / "train.jsonl"
    rows = [*ROWS, {**ROWS[0], "label": value}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = failure(train_file=file, task_type="regression", need_evaluation=False)
    assert message == f"{file}, line 4: column 'label': expected a number, found {value!r}"


def test_numbers_are_not_taken_for_classes_unasked(tmp_path):
    file = write(tmp_path / "train.jsonl", ROWS)
    message = failure(train_file=file, need_evaluation=False)
    assert message.endswith(
        "expected a name or a whole number, found 4.2; for real numbers pass --task_type regression"
    )


def test_task_type_is_one_of_those_there_are(tmp_path):
    file = write(tmp_path / "train.jsonl", ROWS)
    found = failure(train_file=file, task_type="regresion", need_evaluation=False)
    assert found.startswith("--task_type: expected one of 'classification', ")
    assert failure(task="stsb", task_type="regression").startswith("--task_type: expected without --task")


def test_the_real_sts_b(data):
    task = load(task="stsb", data_dir=data / "glue" / "stsb")
    assert (len(task.train), len(task.evaluation["validation"])) == (5749, 1500)
    labels = np.asarray(task.train["label"])
    assert labels.min() == 0
    assert labels.max() == 5


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("ending", [".jsonl", ".tsv"])
@pytest.mark.parametrize("value", [-1.0, -1, 5.2])
def test_sts_b_has_numbers_from_0_to_5(tmp_path, split, ending, value):
    for name in ("train", "validation"):
        write(tmp_path / f"{name}{ending}", [*ROWS, {**ROWS[0], "label": value if name == split else 5}])
    text = repr(str(value)) if ending == ".tsv" else value
    found = "-1, which marks unlabelled rows such as GLUE's test splits" if value == -1 else text
    message = f"{tmp_path}/{split}{ending}, line {5 if ending == '.tsv' else 4}: column 'label': "
    assert failure(task="stsb", data_dir=tmp_path) == f"{message}expected a number from 0 to 5, found {found}"


def test_own_numbers_may_be_any(tmp_path):
    file = write(tmp_path / "train.jsonl", [{**ROWS[0], "label": value} for value in (-1, 7.5)])
    task = load(train_file=file, task_type="regression", need_evaluation=False)
    assert task.train["label"][:] == [-1, 7.5]


def naive_pearson(xs, ys):
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    spreads = (sum((v - mean) ** 2 for v in values) for values, mean in ((xs, mean_x), (ys, mean_y)))
    return covariance / math.sqrt(math.prod(spreads))


def naive_ranks(values):
    return [sum(other < v for other in values) + (sum(other == v for other in values) + 1) / 2 for v in values]


def scores(predicted, labels, tmp_path):
    file = write(tmp_path / "validation.jsonl", ROWS)
    task = load(validation_file=file, task_type="regression", need_train=False)
    rows = Dataset.from_dict({"label": labels})
    return task.metrics([np.array([value]) for value in predicted], rows, rows)


def test_correlations(tmp_path):
    predicted, labels = [0.1, 2.5, 2.5, -1.0, 7.0], [0.0, 1.0, 5.0, 1.0, 4.0]
    found = scores(predicted, labels, tmp_path)
    assert found["pearson"] == pytest.approx(naive_pearson(predicted, labels))
    assert found["spearman"] == pytest.approx(naive_pearson(naive_ranks(predicted), naive_ranks(labels)))


def test_a_constant_answer_correlates_with_nothing(tmp_path):
    assert scores([2.0] * 3, [1.0, 2.0, 3.0], tmp_path) == {"pearson": 0.0, "spearman": 0.0}


def test_a_model_of_classes_is_refused(tmp_path):
    task = load(validation_file=write(tmp_path / "v.jsonl", ROWS), task_type="regression", need_train=False)
    with pytest.raises(UserError, match=r"^m: expected a model of one number"):
        task.for_model(BertConfig(num_labels=2), "m")


@pytest.fixture
def run(tiny, tiny_options, tmp_path):
    """A teacher of numbers, and the options to prune it."""
    rows = [{"text": f"{'good' if i % 3 else 'bad'} film {i}", "label": float(i % 3) * 2} for i in range(48)]
    files = {f"{name}_file": str(write(tmp_path / f"{name}.jsonl", rows)) for name in ("train", "validation")}
    options = {key: value for key, value in tiny_options.items() if key not in ("task", "teacher", "output_dir")}
    options |= files | {"task_type": "regression"}
    unpruned = {key: value for key, value in options.items() if key not in ("extra_examples", "cache_dir")}
    unpruned |= {"learning_rate": 3e-3, "num_train_epochs": 10, "output_dir": str(tmp_path / "teacher")}
    results = contraprune.finetune(**unpruned)
    return options | {"teacher": str(tmp_path / "teacher" / "model"), "output_dir": str(tmp_path / "run")}, results


@pytest.mark.parametrize("method", ["movement", "taylor"])
def test_a_whole_run(run, method, caplog):
    options, teacher = run
    assert teacher["metrics"]["pearson"] > 0.8
    results = contraprune.prune(**options, method=method, density=0.5)
    assert "has no classes: supervised contrast is off" in caplog.text
    assert results["teacher_metrics"] == teacher["metrics"]
    log = [json.loads(line) for line in (Path(options["output_dir"]) / "log.jsonl").read_text().splitlines()]
    parts = {key for entry in log for key in entry if key.startswith("loss_")}
    assert {"loss_ce", "loss_kd", "loss_pretrained_unsupervised", "loss_finetuned_unsupervised"} <= parts
    assert not any("_supervised" in part for part in parts)
    model = contraprune.load(options["output_dir"])
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    if method == "movement":
        AutoModelForSequenceClassification.from_pretrained(Path(options["output_dir"]) / "model")


def test_bins_of_numbers_are_classes(run):
    options, _ = run
    contraprune.prune(**options, supervised_bins=3)
    log = (Path(options["output_dir"]) / "log.jsonl").read_text()
    assert "loss_pretrained_supervised" in log
    assert "nan" not in log.lower()


def test_bins_of_classes_and_smoothed_numbers_are_refused(run, tiny_options):
    options, _ = run
    with pytest.raises(UserError, match="--supervised_bins 3: only for regression, not for toy"):
        contraprune.prune(**tiny_options, supervised_bins=3)
    with pytest.raises(UserError, match=r"--label_smoothing_factor 0\.1: only for tasks with classes, not for train"):
        contraprune.prune(**(options | {"label_smoothing_factor": 0.1, "output_dir": options["output_dir"] + "2"}))


def test_settings_of_losses_that_are_off_are_said(run, caplog):
    """Not refused: a run without contrast is the same command with one flag more."""
    options, _ = run
    cases = (
        ({"supervised_weight": 0}, ["--supervised_bins"]),
        ({"contrast": "none", "temperature": 0.2}, ["--supervised_bins", "--temperature", "--extra_examples"]),
        ({}, []),
    )
    for number, (changes, idle) in enumerate(cases):
        caplog.clear()
        folder = {"output_dir": f"{options['output_dir']}{number}"}
        contraprune.prune(**(options | folder | {"supervised_bins": 3, "max_steps": 1} | changes))
        said = [line for line in caplog.messages if line.startswith("without effect")]
        assert said == [f"without effect, as nothing is contrasted by it: {', '.join(idle)}"] * bool(idle)


def test_settings_without_effect_on_numbers_are_refused_before_a_model_is_read(tmp_path):
    changes = {"kd_temperature": 1.0}
    message = "--kd_temperature 1.0: without effect on train, whose outputs are no probabilities"
    rows = [{"text": f"film {i}", "label": float(i)} for i in range(4)]
    files = {f"{name}_file": str(write(tmp_path / f"{name}.jsonl", rows)) for name in ("train", "validation")}
    options = {"model": "m", "teacher": "t", "task_type": "regression", "output_dir": str(tmp_path / "run"), **files}
    with pytest.raises(UserError) as caught:
        contraprune.prune(**options, use_cpu=True, **changes)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
