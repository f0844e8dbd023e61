"""The published sets: real rows, both versions, and the hub."""

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contraprune.tasks import squad
from tasks.test_classification import failure, load
from tasks.test_files import write
from tasks.test_question_answering import ROWS, UNANSWERABLE


def test_real_validation_data(data):
    task = load(task="squad", data_dir=data / "squad", need_train=False)
    rows = task.evaluation["validation"]
    assert len(rows) == 10_570
    assert rows[0]["question"] == "Which NFL team represented the AFC at Super Bowl 50?"
    assert rows[0]["answers"] == {"text": ["Denver Broncos"] * 3, "answer_start": [177] * 3}
    assert sum(map(len, (answers["text"] for answers in rows["answers"]))) == 34_726  # as published


def test_real_training_subset_passes_the_checks_of_own_files(data):
    """Every answer stands where its row says."""
    path = data / "squad" / "train_subset_4k.jsonl"
    task = load(task_type="question_answering", train_file=path, need_evaluation=False)
    assert len(task.train) == 4_000


def test_questions_without_an_answer_belong_to_version_2(tmp_path):
    file = write(tmp_path / "validation.jsonl", UNANSWERABLE)
    expected = "column 'answers': expected an answer, found none (--task squad_v2 has questions without)"
    assert failure(task="squad", data_dir=tmp_path, need_train=False) == f"{file}, line 3: {expected}"
    task = load(task="squad_v2", data_dir=tmp_path, need_train=False)
    assert task.evaluation["validation"][2]["answers"] == {"text": [], "answer_start": []}


@pytest.mark.parametrize(("name", "rows"), [("squad", ROWS), ("squad_v2", UNANSWERABLE)])
def test_from_the_hub(tmp_path, monkeypatch, name, rows):
    """A directory laid out like the repository on the hub, and in its place."""
    repository = tmp_path / "hub" / name
    (repository / "plain_text").mkdir(parents=True)
    for split in ("train", "validation"):
        table = pa.Table.from_pylist([{"id": str(number), "title": "x", **row} for number, row in enumerate(rows)])
        pq.write_table(table, repository / "plain_text" / f"{split}-00000-of-00001.parquet")
    monkeypatch.setattr(squad, "OWNER", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    task = load(task=name)
    assert task.train.to_list() == [row | {"idx": number} for number, row in enumerate(rows)]
    files = tmp_path / "files"
    files.mkdir()
    for split in ("train", "validation"):
        write(files / f"{split}.jsonl", rows)
    assert load(task=name, data_dir=files).fingerprint == task.fingerprint


def test_offline(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    message = failure(task="squad_v2")
    assert message.startswith("--task squad_v2: cannot load rajpurkar/squad_v2 from the hub (no connection")
    assert message.endswith("; pass --data_dir with the files of squad_v2")
