import pytest
from datasets import Dataset

from contraprune.tasks.base import Task, content_fingerprint


def rows(texts: list[str], labels: list[int]) -> Dataset:
    return Dataset.from_dict({"text": texts, "label": labels})


def test_a_task_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Task(name="x", train=None, evaluation={}, label_names=(), main_metric="accuracy", fingerprint="")  # type: ignore[abstract]


def test_fingerprint_is_the_same_in_every_run():
    # sha256sum of these lines: ["no", "yes"]; ["train", "text", ["a", "b"]]; ["train", "label", [0, 1]]
    expected = "feb3d3b1c222a9c598b049f4566d8a42d46fca295c55912de044f1f66042065c"
    assert content_fingerprint(["no", "yes"], {"train": rows(["a", "b"], [0, 1])}) == expected


@pytest.mark.parametrize(
    ("names", "split", "texts", "labels"),
    [
        (["yes", "no"], "train", ["a", "b"], [0, 1]),
        (["no", "yes"], "validation", ["a", "b"], [0, 1]),
        (["no", "yes"], "train", ["b", "a"], [0, 1]),
        (["no", "yes"], "train", ["a", "b"], [1, 1]),
        (["no", "yes"], "train", ["ab", ""], [0, 1]),
        (["no", "yes"], "train", ["a", "b", "b"], [0, 1, 1]),
    ],
)
def test_fingerprint_sees_every_change(names, split, texts, labels):
    original = content_fingerprint(["no", "yes"], {"train": rows(["a", "b"], [0, 1])})
    assert content_fingerprint(names, {split: rows(texts, labels)}) != original
