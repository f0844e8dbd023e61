import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contraprune.tasks import TASKS, glue
from tasks.test_classification import UNLABELLED, failure, load
from tasks.test_files import write

# rows per label, as published
COUNTS = {
    ("sst2", "train"): {"negative": 29_780, "positive": 37_569},
    ("sst2", "validation"): {"negative": 428, "positive": 444},
    ("rte", "train"): {"entailment": 1_249, "not_entailment": 1_241},
    ("rte", "validation"): {"entailment": 146, "not_entailment": 131},
    ("cola", "train"): {"unacceptable": 2_528, "acceptable": 6_023},
    ("cola", "validation"): {"unacceptable": 322, "acceptable": 721},
    ("wnli", "train"): {"not_entailment": 323, "entailment": 312},
    ("wnli", "validation"): {"not_entailment": 40, "entailment": 31},
    ("qnli", "validation"): {"entailment": 2_702, "not_entailment": 2_761},
    ("mnli", "validation_matched"): {"entailment": 3_479, "neutral": 3_123, "contradiction": 3_213},
}
# one row of each whose label anyone can judge
KNOWN = {
    "sst2": ("unflinchingly bleak and desperate ", "negative"),
    "cola": ("As you eat the most, you want the least.", "unacceptable"),
    "rte": ("Christopher Reeve had an accident.", "not_entailment"),
    "wnli": ("The hair has to be cleaned.", "not_entailment"),
    "qnli": ("What came into force after the new constitution was herald?", "entailment"),
    "mnli": (
        "The Government Executive articles housed on the website are not able to be searched.",
        "contradiction",
    ),
}


def test_the_tasks_we_know():
    assert TASKS == ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "squad", "squad_v2", "sst2", "stsb", "toy", "wnli")


@pytest.mark.parametrize("name", KNOWN)
def test_real_data(data, name):
    has_train = (name, "train") in COUNTS
    task = load(task=name, data_dir=data / "glue" / name, need_train=has_train)
    assert task.name == name
    splits = {**task.evaluation, **({"train": task.train} if has_train else {})}
    assert {(name, split) for split in splits} == {key for key in COUNTS if key[0] == name}
    for split, dataset in splits.items():
        found = Counter(task.label_names[label] for label in dataset["label"])
        assert found == COUNTS[name, split]
        assert dataset["idx"][:] == list(range(len(dataset)))
    text, label = KNOWN[name]
    rows = [row for dataset in task.evaluation.values() for row in dataset]
    matching = [row for row in rows if text in (row[column] for column in task.text_columns)]
    assert [task.label_names[row["label"]] for row in matching] == [label]


def test_missing_train_file_of_real_data(data):
    message = failure(task="qnli", data_dir=data / "glue" / "qnli")
    assert "expected train.*" in message
    assert message.endswith("found 'validation.jsonl'")


def test_labels_by_name_and_by_id_are_the_same(tmp_path):
    names = glue.LAYOUTS["mnli"].label_names
    assert names == ("entailment", "neutral", "contradiction")
    for folder, labels in (("ids", range(3)), ("names", names)):
        for split in ("train", "validation_mismatched"):
            rows = [{"premise": "p", "hypothesis": "h", "label": label} for label in labels]
            (tmp_path / folder).mkdir(exist_ok=True)
            write(tmp_path / folder / f"{split}.tsv", rows)
    by_id, by_name = (load(task="mnli", data_dir=tmp_path / folder) for folder in ("ids", "names"))
    assert by_id.train["label"][:] == [0, 1, 2]
    assert list(by_id.evaluation) == ["validation_mismatched"]
    assert by_id.fingerprint == by_name.fingerprint


def test_labels_may_be_whole_floats(tmp_path):
    write(tmp_path / "validation.jsonl", [{"sentence": "x", "label": label} for label in (1.0, 0.0)])
    task = load(task="sst2", data_dir=tmp_path, need_train=False)
    assert task.evaluation["validation"]["label"][:] == [1, 0]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (-1, UNLABELLED),
        (2, "expected a label of sst2 ('0', 'negative', '1', 'positive'), found 2"),
        ("Positive", "expected a label of sst2 ('0', 'negative', '1', 'positive'), found 'Positive'"),
        (True, "expected a label of sst2 ('0', 'negative', '1', 'positive'), found True"),
        (0.5, "expected a name or a whole number, found 0.5; for real numbers pass --task_type regression"),
    ],
)
def test_wrong_labels(tmp_path, label, message):
    rows = [{"sentence": "x", "label": 0}, {"sentence": "y", "label": label}]
    file = write(tmp_path / "validation.jsonl", rows)
    found = failure(task="sst2", data_dir=tmp_path, need_train=False)
    assert found == f"{file}, line 2: column 'label': {message}"


CARD = """---
configs:
- config_name: rte
  data_files:
  - split: train
    path: rte/train-*
  - split: validation
    path: rte/validation-*
  - split: test
    path: rte/test-*
dataset_info:
- config_name: rte
  features:
  - name: sentence1
    dtype: string
  - name: sentence2
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': entailment
          '1': not_entailment
  - name: idx
    dtype: int32
---
# A stand-in with the layout of the real one
"""


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A directory laid out like the repository on the hub, and in its place."""
    repository = tmp_path / "repository" / "glue"
    (repository / "rte").mkdir(parents=True)
    (repository / "README.md").write_text(CARD)
    for split, labels in {"train": [1, 0, 1], "validation": [0, 1], "test": [-1]}.items():
        table = pa.table(
            {
                "sentence1": [f"first {i} of {split}" for i in range(len(labels))],
                "sentence2": [f"second {i}" for i in range(len(labels))],
                "label": pa.array(labels, pa.int64()),
                "idx": pa.array([10 + i for i in range(len(labels))], pa.int32()),
            }
        )
        pq.write_table(table, repository / "rte" / f"{split}-00000-of-00001.parquet")
    monkeypatch.setattr(glue, "REPOSITORY", str(repository))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return repository


def test_from_the_hub(hub, tmp_path):
    task = load(task="rte")
    assert task.train[:] == {
        "sentence1": [f"first {i} of train" for i in range(3)],
        "sentence2": ["second 0", "second 1", "second 2"],
        "label": [1, 0, 1],
        "idx": [0, 1, 2],
    }
    assert {split: len(dataset) for split, dataset in task.evaluation.items()} == {"validation": 2}

    directory = tmp_path / "files"
    directory.mkdir()
    for split, dataset in {"train": task.train, **task.evaluation}.items():
        write(directory / f"{split}.csv", dataset.remove_columns("idx").to_list())
    assert load(task="rte", data_dir=directory).fingerprint == task.fingerprint


def test_hub_with_broken_files(hub):
    (hub / "rte" / "train-00000-of-00001.parquet").write_bytes(b"cut off")
    message = failure(task="rte")
    assert message.startswith(f"--task rte: cannot load {hub} from the hub (")
    assert message.endswith("); pass --data_dir with the files of rte")


def test_offline(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    before = datasets.config.HF_HUB_OFFLINE
    reason = "no connection to https://huggingface.co, and no copy in the cache"
    advice = "pass --data_dir with the files of rte"
    message = f"--task rte: cannot load nyu-mll/glue from the hub ({reason}); {advice}"
    assert failure(task="rte") == message
    assert before == datasets.config.HF_HUB_OFFLINE


def test_offline_with_an_earlier_download(hub, monkeypatch, tmp_path):
    online = load(task="rte")
    (tmp_path / "cache" / "glue").rename(tmp_path / "cache" / "nyu-mll___glue")
    monkeypatch.setattr(glue, "REPOSITORY", "nyu-mll/glue")
    assert load(task="rte").fingerprint == online.fingerprint


def test_no_retries_when_the_hub_does_not_answer(tmp_path):
    """In a fresh process that is not told to be offline, with a hub where nobody listens."""
    script = (
        "from time import monotonic\n"
        "from contraprune.errors import UserError\nfrom contraprune.tasks import glue\n"
        "start = monotonic()\n"
        "try:\n"
        "    glue.load('rte', None, train=True, evaluation=True)\n"
        "except UserError as error:\n"
        "    print(round(monotonic() - start), error)\n"
    )
    offline = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **offline, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    seconds, message = result.stdout.split(maxsplit=1)
    assert int(seconds) <= 10
    assert message.startswith("--task rte: cannot load nyu-mll/glue from the hub (")
    assert "Retry" not in result.stderr
