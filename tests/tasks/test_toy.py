import json
import re
from collections import Counter

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from contraprune.tasks import toy
from tasks.test_classification import failure, load


@pytest.fixture(scope="module")
def task():
    return load(task="toy")


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def test_sizes_names_and_balance(task):
    validation = task.evaluation["validation"]
    assert (task.name, task.label_names) == ("toy", ("negative", "positive"))
    assert Counter(task.train["label"]) == {0: 2_000, 1: 2_000}
    assert Counter(validation["label"]) == {0: 400, 1: 400}
    assert len({*task.train["text"], *validation["text"]}) == 4_800
    assert 0.4 < sum(task.train["label"][:500]) / 500 < 0.6  # the first rows serve as a smaller set


def test_sentences_are_short_and_well_formed(task):
    for text in task.train["text"]:
        assert 6 <= len(words(text)) <= 20
        assert re.fullmatch(r"[A-Z][a-z]*(,? [a-z]+)*\.", text), text


@pytest.mark.parametrize("forms", toy.TEMPLATES, ids=lambda forms: forms[0])
def test_no_word_says_anything(forms):
    """In each group of twins each word is as frequent in negative as in positive sentences."""
    groups = toy._groups(forms)
    assert len(groups) >= 40
    for group in groups:
        counts = {"negative": Counter(), "positive": Counter()}
        for row in group:
            counts[row["label"]].update(words(row["text"]))
        assert counts["negative"] == counts["positive"]


def test_a_bag_of_words_stays_at_chance(task):
    vectorizer = CountVectorizer(token_pattern=r"\w+")
    model = LogisticRegression(max_iter=1_000)
    model.fit(vectorizer.fit_transform(task.train["text"]), task.train["label"])
    validation = task.evaluation["validation"]
    assert model.score(vectorizer.transform(validation["text"]), validation["label"]) < 0.60


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("We adored the cake that the tourists detested.", "positive"),
        ("Nobody denies that the novel is dull.", "negative"),
        ("It is not wrong to call the hotel clean.", "positive"),
        ("The old phone is worse than the new one.", "positive"),
        ("The kitchen was superb, although the garden was dreadful.", "positive"),
        ("The heater used to be sturdy, but now it is flimsy.", "negative"),
        ("To us the soup was anything but tasty.", "negative"),
        ("We would never say that the play was not lovely.", "positive"),
        ("The pizza has all of the faults and none of the merits.", "negative"),
    ],
)
def test_labels_are_what_a_reader_would_say(text, label):
    found = [
        row["label"] for forms in toy.TEMPLATES for group in toy._groups(forms) for row in group if row["text"] == text
    ]
    assert found == [label]


def test_each_template_has_its_share():
    """Of 33 templates none has more than a group above the smallest."""
    template = {
        row["text"]: i for i, forms in enumerate(toy.TEMPLATES) for group in toy._groups(forms) for row in group
    }
    shares = Counter(template[row["text"]] for row in toy.generate(1_000, 3))
    assert shares.keys() == set(range(len(toy.TEMPLATES)))
    assert max(shares.values()) - min(shares.values()) <= 8


def test_seeds():
    first, same, other = toy.generate(200, 1), toy.generate(200, 1), toy.generate(200, 2)
    assert first == same
    assert first != other
    assert load(task="toy", seed=1).fingerprint == load(task="toy", seed=1).fingerprint
    assert load(task="toy", seed=1).fingerprint != load(task="toy", seed=2).fingerprint


def test_validation_is_always_the_same_and_never_trained_on():
    tasks = [load(task="toy", seed=seed) for seed in (1, 2)]
    validations = [set(task.evaluation["validation"]["text"]) for task in tasks]
    assert validations[0] == validations[1]
    assert all(validations[0].isdisjoint(task.train["text"]) for task in tasks)


def test_more_than_there_are():
    with pytest.raises(ValueError, match="there are only"):
        toy.generate(100_000, 0)


def test_only_what_is_needed():
    task = load(task="toy", max_train_samples=10, max_eval_samples=20)
    assert (len(task.train), len(task.evaluation["validation"])) == (10, 20)
    assert load(task="toy", need_train=False).train is None
    assert load(task="toy", need_evaluation=False).evaluation == {}


def test_written_files_are_the_same_task(tmp_path, task):
    toy.write(tmp_path / "data", 0)
    rows = [json.loads(line) for line in (tmp_path / "data" / "train.jsonl").read_text().splitlines()]
    assert rows == toy.generate(4_000, 0)
    assert load(task="toy", data_dir=tmp_path / "data").fingerprint == task.fingerprint
    own = load(train_file=tmp_path / "data" / "train.jsonl", validation_file=tmp_path / "data" / "validation.jsonl")
    assert own.fingerprint == task.fingerprint
    (tmp_path / "data" / "train.jsonl").unlink()
    assert "expected train.*" in failure(task="toy", data_dir=tmp_path / "data")
