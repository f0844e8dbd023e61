import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from contraprune.errors import UserError
from contraprune.tasks import TASKS, load_task
from contraprune.tasks.classification import TextClassification
from contraprune.tasks.labels import match_labels
from tasks.test_files import write

TRAIN = [
    {"text": "good", "label": "yes"},
    {"text": "bad", "label": "no"},
    {"text": "so so", "label": "maybe"},
    {"text": "fine", "label": "yes"},
]
VALIDATION = [{"text": "great", "label": "yes"}, {"text": "sad", "label": "no"}]
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def load(**changes) -> TextClassification:
    flags = {
        "task": None,
        "task_type": None,
        "data_dir": None,
        "train_file": None,
        "validation_file": None,
        "text_columns": None,
        "label_column": None,
        "labels": None,
        "label_columns": None,
        "label_separator": None,
        "max_train_samples": None,
        "max_eval_samples": None,
        "seed": 0,
    }
    assert changes.keys() <= flags.keys() | {"need_train", "need_evaluation", "answering", "known_labels"}
    paths = {k: str(v) for k, v in changes.items() if isinstance(v, Path)}
    return load_task(**{**flags, **changes, **paths})


def own(tmp_path: Path, train=TRAIN, validation=VALIDATION, ending=".jsonl", **changes) -> TextClassification:
    return load(
        train_file=write(tmp_path / f"train{ending}", train),
        validation_file=write(tmp_path / f"validation{ending}", validation),
        **changes,
    )


def failure(**changes) -> str:
    with pytest.raises(UserError) as caught:
        load(**changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_own_files(tmp_path):
    task = own(tmp_path)
    assert task.name == "train"
    assert task.label_names == ("maybe", "no", "yes")
    assert task.main_metric == "accuracy"
    assert task.auto_class is AutoModelForSequenceClassification
    assert task.train.column_names == ["text", "label", "idx"]
    assert task.train[:] == {
        "text": ["good", "bad", "so so", "fine"],
        "label": [2, 1, 0, 2],
        "idx": [0, 1, 2, 3],
    }
    assert list(task.evaluation) == ["validation"]
    assert task.evaluation["validation"][:] == {"text": ["great", "sad"], "label": [2, 1], "idx": [0, 1]}


@pytest.mark.parametrize("labels", [["no", "yes"], [0, 1], [3, 17]])
def test_every_format_gives_the_same_task(tmp_path, labels):
    train = [{"text": text, "label": label} for text, label in zip("ab", labels, strict=True)]
    tasks = [own(tmp_path, train, train[::-1], ending) for ending in ENDINGS]
    for task in tasks:
        assert task.label_names == tuple(map(str, labels))
        assert task.train["label"][:] == [0, 1]
        assert task.evaluation["validation"]["label"][:] == [1, 0]
    assert len({task.fingerprint for task in tasks}) == 1


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([0, 1, 2], ("0", "1", "2")),
        ([10, 9, 2], ("2", "9", "10")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["01", "02"], ("01", "02")),
        (["1", "-"], ("-", "1")),
        (["1.0", "one"], ("1.0", "one")),
        (["007", "1.0"], ("007", "1.0")),
        (["True", "none"], ("True", "none")),
        (["v1.0", "2.0"], ("2.0", "v1.0")),
        (["Ärger", "Freude"], ("Freude", "Ärger")),
    ],
)
@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_label_names_of_own_files(tmp_path, values, names, ending):
    rows = [{"text": "x", "label": value} for value in values]
    task = own(tmp_path, rows, rows[:1], ending)
    assert task.label_names == names
    assert [task.label_names[i] for i in task.train["label"]] == [str(value) for value in values]


def test_label_types_may_differ_between_formats(tmp_path):
    train = write(tmp_path / "train.jsonl", [{"text": "x", "label": i} for i in (0, 1)])
    validation = write(tmp_path / "validation.csv", [{"text": "x", "label": 1}])
    assert load(train_file=train, validation_file=validation).evaluation["validation"]["label"][:] == [1]
    train = write(tmp_path / "train.jsonl", [{"text": "x", "label": i} for i in ("1", "one")])
    assert load(train_file=train, validation_file=validation).evaluation["validation"]["label"][:] == [0]


@pytest.mark.parametrize(
    ("names", "values", "expected"),
    [
        (("1", "2", "3", "4", "5"), [1, 2, 3, 4, 1], [0, 1, 2, 3, 0]),
        (("1", "2", "3"), [2], [1]),
        (("2", "1", "0"), [0, 1], [2, 1]),
        (("2", "0", "1"), ["0", "2"], [1, 0]),
        (("0", "1", "2"), [2, 1], [2, 1]),
        (("10", "20", "30"), [20, 30], [1, 2]),
        (("10", "20", "30"), [0, 2], [0, 2]),
        (("no", "yes", "maybe"), [0, 2], [0, 2]),
        (("FALSE", "TRUE"), [True], [1]),
        (("LABEL_0", "LABEL_1", "LABEL_2"), [2, 0], [2, 0]),
        (("A-B", "c"), ["a_b"], [0]),
        (("a-b", "ab"), ["ab"], [1]),
    ],
)
@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_labels_of_a_file_to_evaluate_on_are_the_models_names_before_they_are_positions(
    tmp_path, names, values, expected, ending
):
    file = write(tmp_path / f"v{ending}", [{"text": "x", "label": value} for value in values])
    task = load(validation_file=file, need_train=False, known_labels=names)
    assert task.label_names == names
    assert task.evaluation["validation"]["label"][:] == expected


@pytest.mark.parametrize(
    ("names", "values"),
    [
        (("1", "2", "3", "4", "5"), [0, 1, 2, 3]),
        (("1", "0"), [0, 1, 2]),
        (("a-b", "ab"), ["AB", "A_B"]),
        (("1-2", "3"), [12, 3]),
    ],
)
def test_labels_that_are_neither_the_models_names_nor_its_positions_are_not_guessed(tmp_path, names, values):
    file = write(tmp_path / "v.jsonl", [{"text": "x", "label": value} for value in values])
    task = load(validation_file=file, need_train=False, known_labels=names)
    assert task.label_names == tuple(map(str, sorted(values)))


@pytest.mark.parametrize(
    ("names", "values", "expected"),
    [
        ("1,2,3,4,5", [1, 2, 3, 4, 1], [0, 1, 2, 3, 0]),
        ("1,2,3", [1, 2, 3], [0, 1, 2]),
        ("3,2,1", [1, 2], [2, 1]),
        ("10,20,30", [0, 2, 20], [0, 2, 1]),
        ("neg,pos", [0, 1], [0, 1]),
        ("0,1", [1, 0], [1, 0]),
        ("b,a,c", ["a", "b"], [1, 0]),
    ],
)
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", [str, lambda value: value])
def test_named_labels_mean_the_same_in_every_format(tmp_path, names, values, expected, ending, kind):
    rows = [{"text": "x", "label": kind(value)} for value in values]
    task = own(tmp_path, rows, rows, ending, labels=[names])
    assert task.label_names == tuple(names.split(","))
    assert task.train["label"][:] == task.evaluation["validation"]["label"][:] == expected


@pytest.mark.parametrize(
    ("names", "value", "known"),
    [
        ("1,2,3", 0, "'1', '2', '3'"),
        ("0,1", 2, "'0', '1'"),
        ("neg,pos", "2", "'0', 'neg', '1', 'pos'"),
    ],
)
def test_named_labels_that_a_file_lacks_are_shown_once(tmp_path, names, value, known):
    file = write(tmp_path / "train.jsonl", [{"text": "x", "label": value}])
    message = failure(train_file=file, need_evaluation=False, labels=[names])
    assert message == f"{file}, line 1: column 'label': expected a label of --labels ({known}), found {value!r}"


@pytest.mark.parametrize(("train", "validation"), [(".csv", ".jsonl"), (".jsonl", ".csv"), (".jsonl", ".jsonl")])
@pytest.mark.parametrize("kinds", [(int, str), (str, int)])
def test_numbers_may_be_text_in_one_of_two_files(tmp_path, train, validation, kinds):
    files = [
        write(tmp_path / f"{name}{ending}", [{"text": "x", "label": kind(label)} for label in labels])
        for name, ending, kind, labels in zip("tv", (train, validation), kinds, ([10, 9], [10, 9, 10]), strict=True)
    ]
    task = load(train_file=files[0], validation_file=files[1])
    assert (task.label_names, task.train["label"][:]) == (("9", "10"), [1, 0])
    assert task.evaluation["validation"]["label"][:] == [1, 0, 1]


@pytest.mark.parametrize(
    ("values", "names", "expected"),
    [
        ([1.0, 10.0, 2.0], ("1", "2", "10"), [0, 2, 1]),
        ([2, 1.0], ("1", "2"), [1, 0]),
        ([True, False], ("false", "true"), [1, 0]),
    ],
)
def test_whole_floats_and_booleans_are_labels_in_every_format(tmp_path, values, names, expected):
    rows = [{"text": "x", "label": value} for value in values]
    tasks = [own(tmp_path, rows, rows, ending) for ending in ENDINGS]
    for task in tasks:
        assert (task.label_names, task.train["label"][:]) == (names, expected)
    assert len({task.fingerprint for task in tasks}) == 1


@pytest.mark.parametrize(
    ("train", "validation", "expected"),
    [
        ([0, 1], [1.0, 0.0], [1, 0]),
        ([0.0, 1.0], ["1", 0], [1, 0]),
        (["1.0", "2.0"], [2.0, "1.0"], [1, 0]),
        ([False, True], ["True", "FALSE", True], [1, 0, 1]),
        (["True", "False"], [True, False], [1, 0]),
    ],
)
@pytest.mark.parametrize("endings", [(".jsonl", ".jsonl"), (".csv", ".jsonl"), (".jsonl", ".csv")])
def test_whole_floats_and_booleans_are_found_among_the_labels_of_another_file(
    tmp_path, train, validation, expected, endings
):
    files = [
        write(tmp_path / f"{name}{ending}", [{"text": "x", "label": value} for value in values])
        for name, ending, values in zip("tv", endings, (train, validation), strict=True)
    ]
    found = load(train_file=files[0], validation_file=files[1]).evaluation["validation"]["label"][:]
    assert found == expected


@pytest.mark.parametrize(
    ("names", "values", "expected"),
    [
        (("true", "false"), [False, True], [1, 0]),
        (("1.0", "2.0", "3.0"), [1.0, 2.0], [0, 1]),
        (("1", "2", "3"), [1.0, 2.0], [0, 1]),
        (("no", "yes"), [1.0, 0.0], [1, 0]),
    ],
)
@pytest.mark.parametrize("flag", ["labels", "known_labels"])
@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_whole_floats_and_booleans_are_found_among_given_names(tmp_path, names, values, expected, flag, ending):
    file = write(tmp_path / f"v{ending}", [{"text": "x", "label": value} for value in values])
    task = load(validation_file=file, need_train=False, **{flag: names})
    assert (task.label_names, task.evaluation["validation"]["label"][:]) == (names, expected)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["text"], ("text",)),
        (["id", "sentence"], ("sentence",)),
        (["sentence1", "sentence2"], ("sentence1", "sentence2")),
        (["hypothesis", "premise"], ("premise", "hypothesis")),
        (["question", "sentence"], ("question", "sentence")),
        (["question1", "question2"], ("question1", "question2")),
    ],
)
@pytest.mark.parametrize("label", ["label", "labels"])
def test_columns_found_by_their_usual_names(tmp_path, columns, expected, label):
    rows = [{**dict.fromkeys(columns, "x"), label: i} for i in (0, 1)]
    task = own(tmp_path, rows, rows)
    assert task.text_columns == expected
    assert task.train.column_names == [*expected, "label", "idx"]


def test_columns_named_by_flags(tmp_path):
    rows = [{"a": "x", "b": "y", "text": "z", "label": 5, "gold": i} for i in (0, 1)]
    task = own(tmp_path, rows, rows, text_columns=["b", "a"], label_column="gold")
    assert task.text_columns == ("b", "a")
    assert task.train[0] == {"b": "y", "a": "x", "label": 0, "idx": 0}


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        (["a,b"], ("a", "b")),
        (["b, a"], ("b", "a")),
        (["b,c"], ("b,c",)),
        (["b,c", "a"], ("b,c", "a")),
        (["text"], ("text",)),
    ],
)
def test_text_columns_are_joined_by_commas_unless_that_is_a_column(tmp_path, flag, expected):
    rows = [{"a": "x", "b": "y", "b,c": "z", "text": "t", "label": i} for i in (0, 1)]
    assert own(tmp_path, rows, rows, text_columns=flag).text_columns == expected


def test_first_rows_only_and_labels_of_all(tmp_path):
    task = own(tmp_path, max_train_samples=2, max_eval_samples=1)
    assert task.train["text"][:] == ["good", "bad"]
    assert task.evaluation["validation"]["text"][:] == ["great"]
    assert task.label_names == ("maybe", "no", "yes")
    assert task.fingerprint != own(tmp_path).fingerprint


def test_only_what_is_needed(tmp_path):
    train, validation = write(tmp_path / "t.csv", TRAIN), write(tmp_path / "v.csv", VALIDATION)
    task = load(train_file=train, need_evaluation=False)
    assert (task.name, len(task.train), task.evaluation) == ("t", 4, {})
    task = load(validation_file=validation, need_train=False)
    assert (task.name, task.train, task.label_names) == ("v", None, ("no", "yes"))
    task = load(train_file=train, validation_file=validation, need_train=False)
    assert (task.name, task.train, task.label_names) == ("t", None, ("maybe", "no", "yes"))
    assert load(train_file=train, validation_file=tmp_path / "none.csv", need_evaluation=False).evaluation == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "expected --task, or --train_file and --validation_file, found none of them"),
        (
            {"data_dir": "d"},
            "expected --task, or --train_file and --validation_file, found --data_dir",
        ),
        ({"data_dir": "d", "train_file": "t"}, "--data_dir: expected with --task only, found with --train_file"),
        (
            {"task": "sst2", "train_file": "t", "validation_file": "v"},
            "--train_file and --validation_file: expected without --task, found with --task sst2",
        ),
        (
            {"task": "toy", "label_column": "x"},
            "--label_column: expected without --task, found with --task toy",
        ),
        (
            {"task": "imdb"},
            f"--task: expected one of {', '.join(repr(name) for name in TASKS)}, found 'imdb'",
        ),
        ({"train_file": "t"}, "--validation_file: expected a data file, found none"),
        ({"validation_file": "t"}, "--train_file: expected a data file, found none"),
        ({"task": "toy", "max_train_samples": 0}, "--max_train_samples: expected at least 1, found 0"),
        ({"task": "toy", "max_eval_samples": -3}, "--max_eval_samples: expected at least 1, found -3"),
    ],
)
def test_flags_that_do_not_go_together(changes, message):
    assert failure(**changes) == message


UNLABELLED = "expected a label, found -1, which marks unlabelled rows such as GLUE's test splits"


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        ([{"text": "x"}], None, "train.jsonl, line 1: expected a column 'label', found columns 'text'"),
        (
            [{"review": "x", "label": 1}],
            None,
            "train.jsonl: expected sentence1,sentence2 or premise,hypothesis or question1,question2 or "
            "question,sentence or text or sentence (else --text_columns), found columns 'review', 'label'",
        ),
        (
            [{"text": "x", "premise": "a", "hypothesis": "b", "label": 1}],
            None,
            "train.jsonl: expected one text or pair, found premise,hypothesis and text; choose with --text_columns",
        ),
        (
            [*TRAIN, {"text": "x", "label": None}],
            None,
            "train.jsonl, line 5: column 'label': expected a label, found none",
        ),
        (
            [*TRAIN, {"text": "x", "label": ""}],
            None,
            "train.jsonl, line 5: column 'label': expected a label, found none",
        ),
        (
            [{"text": "x", "label": 0}, {"text": "x", "label": -1}],
            None,
            f"train.jsonl, line 2: column 'label': {UNLABELLED}",
        ),
        (
            [{"text": "x", "label": 3.8}],
            None,
            "train.jsonl, line 1: column 'label': expected a name or a whole number, found 3.8; "
            "for real numbers pass --task_type regression",
        ),
        (
            [{"text": "x", "label": 1.0}, {"text": "x", "label": 0.5}],
            None,
            "train.jsonl, line 2: column 'label': expected a name or a whole number, found 0.5; "
            "for real numbers pass --task_type regression",
        ),
        (
            [{"text": "x", "label": float("inf")}],
            None,
            "train.jsonl, line 1: column 'label': expected a name or a whole number, found inf; "
            "for real numbers pass --task_type regression",
        ),
        (
            [{"text": "x", "label": 1.0}, {"text": "x", "label": float("nan")}],
            None,
            "train.jsonl, line 2: column 'label': expected a label, found none",
        ),
        (
            [{"text": "x", "label": 1.0}, {"text": "x", "label": -1.0}],
            None,
            f"train.jsonl, line 2: column 'label': {UNLABELLED}",
        ),
        (
            [{"text": "x", "label": True}, {"text": "x", "label": 1}],
            None,
            "train.jsonl, line 2: column 'label': expected all labels to be names or all to be whole numbers, "
            "found True before 1",
        ),
        (
            [{"text": "x", "label": i} for i in (0, 1)],
            [{"text": "x", "label": True}],
            "validation.jsonl, line 1: column 'label': expected a label of {dir}/train.jsonl ('0', '1'), found True",
        ),
        (
            [{"text": "x", "label": ["a"]}],
            None,
            "train.jsonl, line 1: column 'label': expected a name or a whole number, found ['a']; "
            "for several labels of one text pass --task_type multi_label",
        ),
        (
            [{"tokens": ["x"], "ner_tags": ["O"]}],
            None,
            "train.jsonl: expected sentence1,sentence2 or premise,hypothesis or question1,question2 or "
            "question,sentence or text or sentence (else --text_columns), found columns 'tokens', 'ner_tags'; "
            "for labels of each token pass --task_type token_classification",
        ),
        (
            [{"text": "x", "label": 0}, {"text": "x", "label": "1"}],
            None,
            "train.jsonl, line 2: column 'label': expected all labels to be names or all to be whole numbers, "
            "found 0 before '1'",
        ),
        (
            TRAIN[:1],
            None,
            "train.jsonl: expected at least two different labels in column 'label', found only 'yes'",
        ),
        (
            TRAIN,
            [*VALIDATION, {"text": "x", "label": "perhaps"}],
            "validation.jsonl, line 3: column 'label': expected a label of {dir}/train.jsonl "
            "('maybe', 'no', 'yes'), found 'perhaps'",
        ),
        (
            TRAIN,
            [*VALIDATION, {"text": "x", "label": -1}],
            f"validation.jsonl, line 3: column 'label': {UNLABELLED}",
        ),
        (
            [*TRAIN, {"text": None, "label": "no"}],
            None,
            "train.jsonl, line 5: expected text in column 'text', found null",
        ),
        (
            TRAIN,
            [{"sentence": "x", "label": "no"}],
            "validation.jsonl, line 1: expected a column 'text', found columns 'sentence', 'label'",
        ),
    ],
)
def test_own_files_that_cannot_be_used(tmp_path, train, validation, message):
    files = {
        "train_file": write(tmp_path / "train.jsonl", train),
        "validation_file": write(tmp_path / "validation.jsonl", validation or VALIDATION),
    }
    assert failure(**files) == f"{tmp_path}/{message.replace('{dir}', str(tmp_path))}"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["5.0", "4", "3.75"], "line 4: column 'label': expected a name or a whole number, found 3.75; for real"),
        (["0.0", "1.0", "-1.0"], f"line 4: column 'label': {UNLABELLED}"),
        (["0.0", "1.0", ""], "line 4: column 'label': expected a label, found none"),
        (["1", "0", "-1"], f"line 4: column 'label': {UNLABELLED}"),
        (["yes", "no", ""], "line 4: column 'label': expected a label, found none"),
    ],
)
def test_csv_labels_that_cannot_be_used(tmp_path, labels, message):
    file = write(tmp_path / "train.csv", [{"text": "x", "label": label} for label in labels])
    assert failure(train_file=file, need_evaluation=False).startswith(f"{file}, {message}")


@pytest.mark.parametrize(
    ("text_columns", "message"),
    [
        (["text", "text"], "expected one or two columns of their own, found 'text', 'text' and"),
        (["text", "label"], "expected one or two columns of their own, found 'text', 'label' and"),
        (["text,a,b"], "expected one or two columns of their own, found 'text', 'a', 'b' and"),
        (["a", "b", "c"], "expected one or two columns of their own, found 'a', 'b', 'c' and"),
        (["idx"], "expected names other than 'label', 'labels', 'idx', 'length',"),
    ],
)
def test_text_columns_that_cannot_be_used(tmp_path, text_columns, message):
    file = write(tmp_path / "train.jsonl", TRAIN)
    found = failure(train_file=file, text_columns=text_columns, need_evaluation=False)
    assert found.startswith(f"--text_columns: {message}")


@pytest.fixture(scope="module")
def bert(minilm):
    return AutoTokenizer.from_pretrained(minilm)


PAIRS = [
    {"premise": "A man walks. " * 20, "hypothesis": "He moves.", "label": 0},
    {"premise": "It rains.", "hypothesis": "", "label": 1},
]


@pytest.mark.parametrize("pairs", [False, True])
def test_encode_equals_the_tokenizer_row_by_row(tmp_path, bert, pairs):
    task = own(tmp_path, PAIRS, PAIRS) if pairs else own(tmp_path)
    encoded = task.encode(task.train, bert, max_length=16)
    assert set(encoded.column_names) == {
        *("input_ids", "attention_mask", "token_type_ids"),
        *("labels", "idx", "length"),
    }
    assert encoded.features["labels"].dtype == "int64"
    for row, source in zip(encoded, task.train, strict=True):
        # lists of one: given bare strings, the tokenizer takes an empty second text for none
        texts = [[source[column]] for column in task.text_columns]
        expected = bert(*texts, truncation=True, max_length=16)
        assert {key: [row[key]] for key in expected} == dict(expected)
        assert (row["labels"], row["idx"]) == (source["label"], source["idx"])
        assert row["length"] == len(row["input_ids"]) <= 16
    assert len(set(encoded["length"])) > 1
    if pairs:
        assert max(encoded["length"]) == 16
        assert max(encoded[0]["token_type_ids"]) == 1


def test_encode_takes_what_the_tokenizer_gives(tmp_path):
    vocabulary = Tokenizer(models.WordLevel({"[UNK]": 0, "good": 1, "so": 2}, unk_token="[UNK]"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ["input_ids", "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, unk_token="[UNK]", model_input_names=names)
    task = own(tmp_path)
    encoded = task.encode(task.train, tokenizer, max_length=8)
    assert set(encoded.column_names) == {*names, "labels", "idx", "length"}
    assert encoded["input_ids"][:] == [[1], [0], [2, 2], [0]]


def test_encode_is_silent_and_leaves_no_files(tmp_path, bert, capfd):
    task = own(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoded = task.encode(task.train, bert, max_length=16)
    assert not encoded.cache_files
    assert sorted(tmp_path.rglob("*")) == before
    assert capfd.readouterr() == ("", "")


LOGITS = np.array([[2.0, 1], [0, 1], [3, -1], [-2, 5], [0, 4], [1, 0.5]], dtype=np.float32)
LABELS = np.array([0, 0, 1, 1, 1, 0])


def scores_of(task, logits, labels):
    rows = Dataset.from_dict({"label": labels})
    return task.metrics(list(logits), rows, rows)


def test_accuracy(tmp_path):
    scores = scores_of(own(tmp_path), LOGITS, LABELS)
    correct = [row.tolist().index(max(row)) == label for row, label in zip(LOGITS, LABELS, strict=True)]
    assert scores == {"accuracy": pytest.approx(sum(correct) / 6)}
    assert type(scores["accuracy"]) is float


def counts() -> tuple[int, int, int, int]:
    """True and false positives, true and false negatives, of label id 1."""
    pairs = [(int(row[1] > row[0]), int(label)) for row, label in zip(LOGITS, LABELS, strict=True)]
    return tuple(pairs.count(pair) for pair in ((1, 1), (1, 0), (0, 0), (0, 1)))


@pytest.mark.parametrize("name", ["mrpc", "qqp"])
def test_f1_is_of_label_1(tmp_path, name):
    task = glue_task(tmp_path, name)
    tp, fp, _, fn = counts()
    scores = scores_of(task, LOGITS, LABELS)
    assert task.main_metric == "f1"
    assert scores["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert scores.keys() == {"accuracy", "f1"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scores_of(task, -np.eye(2)[[1, 1]], np.array([0, 0]))["f1"] == 0.0


def test_matthews_correlation(tmp_path):
    tp, fp, tn, fn = counts()
    scores = scores_of(glue_task(tmp_path, "cola"), LOGITS, LABELS)
    expected = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert scores["matthews_correlation"] == pytest.approx(expected)
    assert scores.keys() == {"accuracy", "matthews_correlation"}


def glue_task(tmp_path: Path, name: str) -> TextClassification:
    columns = {"cola": ["sentence"], "mrpc": ["sentence1", "sentence2"], "qqp": ["question1", "question2"]}
    rows = [{**dict.fromkeys(columns[name], "x"), "label": i} for i in (0, 1)]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load(task=name, data_dir=tmp_path, need_train=False)


@pytest.mark.parametrize(
    ("task", "model", "expected"),
    [
        (["negative", "positive"], ["negative", "positive"], [0, 1]),
        (["negative", "positive"], ["POSITIVE", "NEGATIVE"], [1, 0]),
        (["entailment", "not_entailment"], ["Not-Entailment", "Entailment"], [1, 0]),
        (["entailment", "neutral", "contradiction"], ["contradiction", "entailment", "neutral"], [1, 2, 0]),
        (["a", "b", "c"], ["c", "a", "b"], [1, 2, 0]),
        (["a", "A"], ["A", "a"], [1, 0]),
        (["1", "-1"], ["-1", "1"], [1, 0]),
        (["0", "1"], ["1", "0"], [1, 0]),
    ],
)
def test_labels_matched_by_name(task, model, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = match_labels(task, model, model="m")
    assert found == expected
    assert [model[i].casefold().replace("-", "_") for i in found] == [
        name.casefold().replace("-", "_") for name in task
    ]


@pytest.mark.parametrize(
    ("task", "model"),
    [
        (["negative", "positive"], ["LABEL_0", "LABEL_1"]),
        (["LABEL_0", "LABEL_1"], ["negative", "positive"]),
        (["0", "1", "2"], ["LABEL_0", "LABEL_1", "LABEL_2"]),
        (["0", "1"], ["NEGATIVE", "POSITIVE"]),
    ],
)
def test_labels_without_names_matched_by_position(task, model):
    with pytest.warns(UserWarning, match=f"^m: labels are matched by position.*{task[1]} = {model[1]}"):
        assert match_labels(task, model, model="m") == list(range(len(task)))


@pytest.mark.parametrize(
    ("task", "model"),
    [
        (["negative", "positive"], ["LABEL_1", "LABEL_0"]),
        (["negative", "positive"], ["LABEL_0", "LABEL_1", "LABEL_2"]),
        (["negative", "positive"], ["negative", "neutral"]),
        (["negative", "positive"], ["negative", "neutral", "positive"]),
        (["2", "3"], ["negative", "positive"]),
        (["a-b", "ab"], ["AB", "A_B"]),
    ],
)
def test_labels_that_do_not_match(task, model):
    with pytest.raises(UserError) as caught:
        match_labels(task, model, model="some/model")
    message = str(caught.value)
    assert message.startswith(f"some/model: expected a model with the {len(task)} labels '{task[0]}', ")
    assert f"found {len(model)}: '{model[0]}', " in message


def answers(predicted, classes):
    return {"validation": [np.eye(classes, dtype=np.float32)[label] for label in predicted]}


def read_by(order, labels, names=("entailment", "neutral", "contradiction")):
    rows = Dataset.from_dict({"label": labels})
    return TextClassification(
        name="t", train=None, evaluation={"validation": rows}, label_names=names, main_metric="accuracy",
        fingerprint="", label_order=order, text_columns=("sentence",),
    )  # fmt: skip


def test_a_teacher_whose_labels_stand_in_another_order_is_refused():
    labels = [0, 1, 2, 0, 1, 2, 1] * 6
    shuffled = [(label + 1) % 3 for label in labels]
    refused = (
        r"^m: its outputs are read as 'entailment', 'neutral', 'contradiction', with an accuracy of 0.00 "
        r"\(validation\); as 'contradiction', 'entailment', 'neutral' it would be 1.00: correct id2label in its "
        r"config\.json$"
    )
    with pytest.raises(UserError, match=refused):
        read_by((0, 1, 2), labels).check_answers(answers(shuffled, 3), name="m")
    turned = "read as 'contradiction', 'entailment', 'neutral', .* as 'neutral', 'contradiction', 'entailment' it would"
    with pytest.raises(UserError, match=turned):  # the order is that of the model's outputs
        read_by((1, 2, 0), labels).check_answers(answers(shuffled, 3), name="m")


@pytest.mark.parametrize(
    "predicted",
    [
        [0, 1, 2, 0, 1, 2, 1] * 6,  # right
        [1] * 42,  # the same answer to everything
        [0] * 42,
        [2, 1, 0, 0, 1, 2, 1] * 6,  # two classes taken for each other now and then
        [0, 0, 0, 1, 1, 1, 2] * 6,  # no better than chance in any order
    ],
)
def test_a_teacher_that_is_only_bad_is_not(predicted):
    read_by((0, 1, 2), [0, 1, 2, 0, 1, 2, 1] * 6).check_answers(answers(predicted, 3), name="m")
