"""Sets of labels: files, scores, and whole runs of a tiny model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertModel,
    pipeline,
)

import contraprune
import reference
from contraprune.cli import main
from contraprune.config import DataConfig, EvaluationConfig
from contraprune.errors import UserError
from contraprune.evaluation import evaluate_path
from contraprune.objectives import ManyLabels
from contraprune.tasks.multi_label import MultiLabelClassification
from tasks.test_classification import failure, load
from tasks.test_files import write

NAMES = ("bold", "cheap", "new")
TRAIN = [
    {"text": "a", "labels": ["new", "bold"]},
    {"text": "b", "labels": []},
    {"text": "c", "labels": ["cheap"]},
    {"text": "d", "labels": ["bold", "new"]},
]
VALIDATION = [{"text": "e", "labels": ["cheap"]}, {"text": "f", "labels": []}]
SETS = [[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 0, 1]]


def written(path: Path, rows: list[dict], separator: str = ",") -> Path:
    """Rows in the format of the path's ending; in csv and tsv labels are joined."""
    if path.suffix in (".csv", ".tsv"):
        rows = [{**row, "labels": separator.join(map(str, row["labels"]))} for row in rows]
    return write(path, rows)


def own(
    tmp_path, train=TRAIN, validation=VALIDATION, ending=".jsonl", separator=",", **changes
) -> MultiLabelClassification:
    return load(
        task_type="multi_label",
        train_file=written(tmp_path / f"train{ending}", train, separator),
        validation_file=written(tmp_path / f"validation{ending}", validation, separator),
        **changes,
    )


# ---- files ----


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_gives_the_same_task(tmp_path, ending):
    task = own(tmp_path, ending=ending)
    assert (task.name, task.label_names, task.main_metric) == ("train", NAMES, "f1_micro")
    assert task.auto_class is AutoModelForSequenceClassification
    assert isinstance(task.objective, ManyLabels)
    assert task.train[:] == {"text": [*"abcd"], "label": SETS, "idx": [0, 1, 2, 3]}
    assert task.evaluation["validation"]["label"][:] == [[0, 1, 0], [0, 0, 0]]
    assert task.fingerprint == own(tmp_path).fingerprint


@pytest.mark.parametrize("separator", [",", "|", ";", " / ", ", "])
def test_labels_joined_in_text(tmp_path, separator):
    asked = {"label_separator": separator} if separator == " / " else {}
    for ending in (".csv", ".tsv"):
        assert own(tmp_path, ending=ending, separator=separator, **asked).train["label"][:] == SETS
    rows = [{"text": row["text"], "label": separator.join(row["labels"])} for row in TRAIN]
    assert own(tmp_path, rows, rows, **asked).train["label"][:] == SETS  # text in jsonl, too


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_numbered_labels(tmp_path, ending):
    train = [{"text": "x", "labels": labels} for labels in ([10, 9], [2], [], [9])]
    task = own(tmp_path, train, train[1:], ending)
    assert task.label_names == ("2", "9", "10")
    assert task.train["label"][:] == [[0, 1, 1], [1, 0, 0], [0, 0, 0], [0, 1, 0]]
    train = [{"text": "x", "labels": labels} for labels in ([0, 2], [])]
    task = own(tmp_path, train, train, ending, labels=["bold,cheap", "new"])
    assert task.label_names == NAMES
    assert task.train["label"][:] == [[1, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("values", [(0, 1), (False, True), (0.0, 1.0)])
@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_a_column_of_zeros_and_ones_for_each_label(tmp_path, values, ending):
    rows = [
        {"text": text, **{name: values[one] for name, one in zip(NAMES, row, strict=True)}}
        for text, row in zip("abcd", SETS, strict=True)
    ]
    expected = own(tmp_path).train[:]
    files = [write(tmp_path / f"{split}{ending}", rows) for split in ("train", "validation")]
    for columns in (["bold,cheap,new"], ["bold", "cheap", "new"]):
        task = load(task_type="multi_label", train_file=files[0], validation_file=files[1], label_columns=columns)
        assert task.label_names == NAMES
        assert task.train[:] == expected


def test_pairs(tmp_path):
    rows = [{"premise": row["text"], "hypothesis": "x", "label": row["labels"]} for row in TRAIN]
    task = own(tmp_path, rows, rows)
    assert task.text_columns == ("premise", "hypothesis")
    assert task.train.column_names == ["premise", "hypothesis", "label", "idx"]


@pytest.mark.parametrize("rows", [VALIDATION, [{"text": "e", "labels": []}], [{"text": "e", "labels": [1]}]])
def test_a_file_to_evaluate_on_may_lack_labels_that_the_model_has(tmp_path, rows):
    file = write(tmp_path / "validation.jsonl", rows)
    task = load(task_type="multi_label", validation_file=file, need_train=False, known_labels=NAMES)
    assert task.label_names == NAMES
    assert task.evaluation["validation"]["label"][0] == [0, int(rows[0]["labels"] != []), 0]


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
@pytest.mark.parametrize(("names", "expected"), [("a,b,c", [[1, 0, 1], [0, 1, 0]]), ("1,2,0", [[0, 1, 1], [1, 0, 0]])])
def test_numbers_in_joined_text_mean_the_same_in_every_format(tmp_path, ending, names, expected):
    rows = [{"text": "x", "labels": "0,2"}, {"text": "y", "labels": "1"}]
    file = write(tmp_path / f"train{ending}", rows)
    task = load(task_type="multi_label", train_file=file, need_evaluation=False, labels=[names])
    assert task.train["label"][:] == expected


def test_numbers_that_are_the_models_names_are_no_positions(tmp_path):
    file = write(tmp_path / "validation.jsonl", [{"text": "e", "labels": [1, 2]}])
    task = load(task_type="multi_label", validation_file=file, need_train=False, known_labels=("1", "2", "3"))
    assert task.evaluation["validation"]["label"][:] == [[1, 1, 0]]


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (
            [*TRAIN, {"text": "x", "labels": None}],
            None,
            "train.jsonl, line 5: column 'labels': expected a list of labels (empty for none), found null",
        ),
        (
            [*TRAIN, {"text": "x", "labels": 1}],
            None,
            "train.jsonl, line 5: column 'labels': expected a list of labels (empty for none), found 1",
        ),
        *(
            (
                [*TRAIN, {"text": "x", "labels": every}],
                None,
                "train.jsonl, line 5: column 'labels': expected the names or numbers of the row's labels, found "
                f"{every}; zeros and ones stand in a column for each label (--label_columns)",
            )
            for every in ([1.0, 0.0], [False, True])
        ),
        (
            [*TRAIN, {"text": "x", "labels": ["new", 1]}],
            None,
            "train.jsonl, line 5: column 'labels': expected all labels to be names or all to be whole numbers, "
            "found 'new' before 1",
        ),
        (
            [*TRAIN, {"text": "x", "labels": "new,,bold"}],
            None,
            "train.jsonl, line 5: column 'labels': expected a label, found none",
        ),
        (
            [{"text": "x", "labels": [0, 1, 0]}],
            None,
            "train.jsonl, line 1: column 'labels': expected the labels of the row, each once, "
            "found '0' twice in [0, 1, 0]",
        ),
        (
            [{"text": "x", "labels": ["a"]}, {"text": "y", "labels": []}],
            None,
            "train.jsonl: expected at least two different labels in column 'labels', found only 'a'",
        ),
        (
            [{"text": "x", "labels": []}],
            None,
            "train.jsonl: expected at least two different labels in column 'labels', found none",
        ),
        (
            [{"text": "x", "labels": "a,b"}, {"text": "x", "labels": "a|b"}],
            None,
            "train.jsonl: column 'labels': expected one sign between labels, found ',', '|'; "
            "choose with --label_separator",
        ),
        (
            TRAIN,
            [*VALIDATION, {"text": "x", "labels": ["new", "old"]}],
            "validation.jsonl, line 3: column 'labels': expected a label of {dir}/train.jsonl "
            "('bold', 'cheap', 'new'), found 'old'",
        ),
        ([{"text": "x"}], None, "train.jsonl, line 1: expected a column 'label', found columns 'text'"),
    ],
)
def test_own_files_that_cannot_be_used(tmp_path, train, validation, message):
    files = {
        "train_file": write(tmp_path / "train.jsonl", train),
        "validation_file": write(tmp_path / "validation.jsonl", validation or VALIDATION),
    }
    found = failure(task_type="multi_label", **files)
    assert found == f"{tmp_path}/{message.replace('{dir}', str(tmp_path))}"


COLUMNS = [{"text": "x", "a": 0, "b": 1}, {"text": "y", "a": 1, "b": 0}]


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([*COLUMNS, {"text": "z", "a": 1, "b": 2}], {}, "train.jsonl, line 3: column 'b': expected 0 or 1, found '2'"),
        (
            [*COLUMNS, {"text": "z", "a": -1, "b": 1}],
            {},
            "train.jsonl, line 3: column 'a': expected 0 or 1, found '-1'",
        ),
        ([*COLUMNS, {"text": "z", "a": [1], "b": 1}], {}, "line 3: column 'a': expected 0 or 1, found '[1]'"),
        ([*COLUMNS, {"text": "z", "a": None, "b": 1}], {}, "line 3: column 'a': expected 0 or 1, found 'none'"),
        ([*COLUMNS, {"text": "z", "a": 1}], {}, "line 3: expected a column 'b', found columns 'text', 'a'"),
        (COLUMNS, {"label_columns": ["a"]}, "--label_columns: expected at least two different columns, found 'a'"),
        (
            COLUMNS,
            {"label_columns": ["a,a"]},
            "--label_columns: expected at least two different columns, found 'a', 'a'",
        ),
        (COLUMNS, {"label_columns": ["a,text"]}, "expected sentence1,sentence2 or"),
        (COLUMNS, {"labels": ["x,y"]}, "--labels: expected without --label_columns, which say it, found both"),
        (COLUMNS, {"label_column": "a"}, "--label_column: expected without --label_columns, which say it, found both"),
        (COLUMNS, {"label_separator": ";"}, "--label_separator: expected without --label_columns"),
        (
            TRAIN,
            {"label_columns": None, "label_separator": ";"},
            "--label_separator: expected the text between labels, found lists in column 'labels' of",
        ),
        (
            TRAIN,
            {"label_columns": None, "label_separator": ""},
            "--label_separator: expected the text between labels, found nothing",
        ),
        (
            TRAIN,
            {"label_columns": None, "labels": ["bold,cheap"]},
            "line 1: column 'labels': expected a label of --labels (",
        ),
        (COLUMNS, {"task_type": None}, "--label_columns: only for --task_type multi_label, found classification"),
        (
            COLUMNS,
            {"task_type": "regression", "labels": ["a,b"], "label_columns": None},
            "--labels: only for --task_type classification or multi_label or token_classification, found regression",
        ),
    ],
)
def test_flags_and_columns_that_cannot_be_used(tmp_path, rows, changes, message):
    flags = {"task_type": "multi_label", "label_columns": ["a,b"]} | changes
    file = write(tmp_path / "train.jsonl", rows)
    assert message in failure(train_file=file, need_evaluation=False, **flags)


@pytest.mark.parametrize("flag", ["labels", "label_columns", "label_separator"])
def test_flags_of_own_files_are_refused_with_a_task(flag):
    assert failure(task="toy", **{flag: ["x"]}) == f"--{flag}: expected without --task, found with --task toy"


def test_labels_of_plain_classification_may_be_numbered_too(tmp_path):
    rows = [{"text": "x", "label": 2}, {"text": "y", "label": 0}]
    file = write(tmp_path / "train.jsonl", rows)
    task = load(train_file=file, labels=["bad,so so", "good"], need_evaluation=False)
    assert task.label_names == ("bad", "so so", "good")
    assert task.train["label"][:] == [2, 0]


# ---- encoding, classes, scores ----


def task_of(names=NAMES) -> MultiLabelClassification:
    common = {"name": "t", "train": None, "evaluation": {}, "fingerprint": "", "text_columns": ("text",)}
    return MultiLabelClassification(**common, label_names=tuple(names), main_metric="f1_micro")


def test_batches_hold_zeros_and_ones(tmp_path, minilm):
    task, tokenizer = own(tmp_path), AutoTokenizer.from_pretrained(minilm)
    encoded = task.encode(task.train, tokenizer, max_length=16)
    batch = task.collator(tokenizer)(list(encoded))
    assert batch["labels"].tolist() == SETS
    assert torch.isfinite(task.objective.loss(torch.zeros(4, 3), batch))


def test_rows_with_the_same_labels_are_of_one_class():
    sets = [[1, 0, 1], [0, 0, 0], [1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 0, 1]]
    classes = task_of().classes(Dataset.from_dict({"labels": sets})).tolist()
    assert [[a == b for a in classes] for b in classes] == [[a == b for a in sets] for b in sets]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_scores_are_those_of_loops(data):
    rows, labels = data.draw(st.integers(1, 6)), data.draw(st.integers(2, 4))
    right = data.draw(st.lists(st.lists(st.booleans(), min_size=labels, max_size=labels), min_size=rows, max_size=rows))
    score = st.sampled_from([-2.0, -0.5, 0.0, 0.5, 1.0, 3.0])  # with ties; a logit of 0 is a probability of 0.5: no
    logits = data.draw(st.lists(st.lists(score, min_size=labels, max_size=labels), min_size=rows, max_size=rows))
    encoded = Dataset.from_dict({"label": [[int(one) for one in row] for row in right]})
    outputs = [np.array(row, dtype=np.float32) for row in logits]
    found = task_of([f"l{i}" for i in range(labels)]).metrics(outputs, encoded, encoded)
    columns = [[(row[i], scores[i]) for row, scores in zip(right, logits, strict=True)] for i in range(labels)]
    everything = [pair for column in columns for pair in column]
    assert found == pytest.approx(
        {
            "f1_micro": reference.f1([(one, other > 0) for one, other in everything]),
            "f1_macro": np.mean([reference.f1([(one, other > 0) for one, other in column]) for column in columns]),
            "average_precision_micro": reference.average_precision(everything) if any(map(any, right)) else 0.0,
            "subset_accuracy": np.mean(
                [row == [value > 0 for value in scores] for row, scores in zip(right, logits, strict=True)]
            ),
        }
    )


def test_no_label_anywhere_is_no_warning(recwarn):
    rows = Dataset.from_dict({"label": [[0, 0, 0]]})
    scores = task_of().metrics([np.array([-1.0, -1.0, -1.0])], rows, rows)
    assert scores == {"f1_micro": 0.0, "f1_macro": 0.0, "average_precision_micro": 0.0, "subset_accuracy": 1.0}
    assert not recwarn.list


# ---- models ----

WORDS = {"bold": "daring", "cheap": "bargain", "new": "modern"}


def phrases(count: int, seed: int) -> list[dict]:
    """Texts in which a word says of each label whether it holds."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        labels = [name for name in NAMES if rng.random() < 0.4]
        words = ["the", "house", "is", *(WORDS[name] for name in labels), "and", "green"][:12]
        rows.append({"text": " ".join(rng.permutation(words)), "labels": labels})
    return rows


def config_of(names, **changes) -> BertConfig:
    return BertConfig(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}, **changes)


def test_models_are_matched_by_the_names_of_their_labels():
    assert task_of().for_model(config_of(["New", "bold", "CHEAP"]), "m").label_order == (1, 2, 0)
    with pytest.raises(UserError, match=r"^m: expected a model with the 3 labels 'bold', 'cheap', 'new', found 2"):
        task_of().for_model(config_of(["bold", "new"]), "m")
    single = config_of(NAMES, problem_type="single_label_classification")
    with pytest.raises(
        UserError, match=r"^m: expected a model of multi_label_classification, found one of single_label"
    ):
        task_of().for_model(single, "m")


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    return {
        "task_type": "multi_label",
        "train_file": str(write(tmp_path / "train.jsonl", phrases(48, 0))),
        "validation_file": str(write(tmp_path / "validation.jsonl", phrases(30, 1))),
    }


@pytest.fixture(scope="module")
def fine_tuned(tiny, tmp_path_factory) -> Path:
    """The run directory of a tiny model that has learned these words."""
    folder = tmp_path_factory.mktemp("fine_tuned")
    results = contraprune.finetune(
        model=str(tiny / "pretrained"),
        task_type="multi_label",
        train_file=str(write(folder / "train.jsonl", phrases(120, 0))),
        validation_file=str(write(folder / "validation.jsonl", phrases(30, 1))),
        output_dir=str(folder / "run"),
        num_train_epochs=15,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        max_length=24,
        save_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    assert next(iter(results["metrics"])) == "f1_micro"
    assert results["metrics"]["f1_micro"] > 0.9
    return folder / "run"


def options_of(tiny_options, files, **changes):
    return {k: v for k, v in tiny_options.items() if k not in ("task", "teacher")} | files | changes


def test_finetune_prune_and_evaluate(tiny_options, fine_tuned, files, tmp_path, capsys):
    run = tmp_path / "run"
    options = options_of(
        tiny_options, files, teacher=str(fine_tuned / "model"), max_train_samples=48, num_train_epochs=6
    )
    assert main(["prune", *(f"--{name}={value}" for name, value in options.items()), "--density", "0.3"]) == 0
    results = json.loads((run / "results.json").read_text())
    assert results["teacher_metrics"] == json.loads((fine_tuned / "results.json").read_text())["metrics"]
    assert results["metrics"].keys() == {"f1_micro", "f1_macro", "average_precision_micro", "subset_accuracy"}
    assert results["density"]["encoder"] == pytest.approx(0.3, abs=1e-3)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert any("loss_finetuned_supervised" in entry for entry in log)  # sets of labels are classes to contrast by
    capsys.readouterr()
    data = ["--task_type", "multi_label", "--validation_file", files["validation_file"], "--max_length", "24"]
    assert main(["evaluate", str(run / "model"), *data, "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == results["metrics"]


def test_heads_and_neurons(tiny_options, fine_tuned, files):
    options = options_of(
        tiny_options, files, teacher=str(fine_tuned / "model"), max_train_samples=48, num_train_epochs=1
    )
    results = contraprune.prune(**options, method="taylor", density=0.5, num_stages=2)
    assert results["metrics"].keys() == results["teacher_metrics"].keys()
    model = contraprune.load(options["output_dir"])
    assert model.config.problem_type == "multi_label_classification"
    assert model.config.id2label == dict(enumerate(NAMES))


def test_the_result_gives_a_probability_of_each_label(fine_tuned):
    model = AutoModelForSequenceClassification.from_pretrained(fine_tuned / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(fine_tuned / "model")
    text = "the daring modern house is green"
    found = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)([text])[0]
    with torch.no_grad():
        logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
    expected = dict(zip(NAMES, (1 / (1 + np.exp(-logits.numpy()))).tolist(), strict=True))
    assert {answer["label"]: answer["score"] for answer in found} == pytest.approx(expected, abs=1e-6)


@pytest.fixture(scope="module")
def random_models(minilm, tmp_path_factory) -> Path:
    """A random tiny BERT for the three labels: ``teacher``, and ``turned``, the same with labels in another order."""
    folder = tmp_path_factory.mktemp("random")
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    problem = {"problem_type": "multi_label_classification", "initializer_range": 0.2}
    model = BertForSequenceClassification(config_of(NAMES, vocab_size=len(tokenizer), **sizes, **problem))
    model.save_pretrained(folder / "teacher")
    order = [2, 0, 1]
    with torch.no_grad():
        for parameter in (model.classifier.weight, model.classifier.bias):
            parameter.copy_(parameter[order])
    turned = config_of([NAMES[i].upper() for i in order])
    model.config.id2label, model.config.label2id = turned.id2label, turned.label2id
    model.save_pretrained(folder / "turned")
    for name in ("teacher", "turned"):
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("name", ["teacher", "turned"])
def test_evaluation_equals_one_text_at_a_time(random_models, files, name):
    model = AutoModelForSequenceClassification.from_pretrained(random_models / name).eval()
    tokenizer = AutoTokenizer.from_pretrained(random_models / name)
    decisions, whole = [], []
    for row in phrases(30, 1):
        with torch.no_grad():
            logits = model(**tokenizer(row["text"], truncation=True, max_length=8, return_tensors="pt")).logits[0]
        found = {model.config.id2label[i].lower() for i in range(3) if torch.sigmoid(logits[i]) > 0.5}
        decisions += [(label in row["labels"], label in found) for label in NAMES]
        whole.append(found == {*row["labels"]})
    data = DataConfig(task_type="multi_label", validation_file=files["validation_file"], max_length=8)
    metrics = evaluate_path(str(random_models / name), data, EvaluationConfig(batch_size=7, quiet=True)).metrics
    assert metrics["f1_micro"] == pytest.approx(reference.f1(decisions))
    assert metrics["subset_accuracy"] == pytest.approx(np.mean(whole))
    assert 0 < metrics["f1_micro"] < 1


def test_a_teacher_whose_labels_are_ordered_otherwise_gives_the_same_run(tiny_options, random_models, files, tmp_path):
    results = [
        contraprune.prune(
            **options_of(
                tiny_options,
                files,
                teacher=str(random_models / name),
                output_dir=str(tmp_path / name),
                num_train_epochs=2,
            )
        )
        for name in ("teacher", "turned")
    ]
    assert results[0]["teacher_metrics"] == results[1]["teacher_metrics"]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert contraprune.load(tmp_path / "turned").config.id2label[0] == "NEW"


def test_a_model_without_token_types(tiny_options, files, tmp_path, minilm):
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 64}
    DistilBertModel(DistilBertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "pretrained")
    tokenizer.save_pretrained(tmp_path / "pretrained")
    options = options_of(tiny_options, files, model=str(tmp_path / "pretrained"), num_train_epochs=1)
    training = {name: value for name, value in options.items() if name not in ("extra_examples", "cache_dir")}
    contraprune.finetune(**(training | {"output_dir": str(tmp_path / "teacher")}))
    results = contraprune.prune(**options, teacher=str(tmp_path / "teacher" / "model"), density=0.5)
    assert 0 <= results["metrics"]["f1_micro"] <= 1
