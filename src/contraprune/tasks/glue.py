"""The classification tasks of GLUE (Wang et al., 2019, arXiv 1804.07461)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import datasets
from huggingface_hub import constants, get_session

from contraprune.errors import UserError
from contraprune.tasks.classification import Layout, named_layout
from contraprune.tasks.files import Rows, read_directory

REPOSITORY = "nyu-mll/glue"
_NLI = ("entailment", "neutral", "contradiction")
_SENTENCES = ("sentence1", "sentence2")

# Columns, label names and their order are those of the data set on the hub.
LAYOUTS: Mapping[str, Layout] = {
    "cola": named_layout(
        "cola",
        text_columns=("sentence",),
        label_names=("unacceptable", "acceptable"),
        main_metric="matthews_correlation",
    ),
    "mnli": named_layout(
        "mnli",
        text_columns=("premise", "hypothesis"),
        label_names=_NLI,
        splits=("validation_matched", "validation_mismatched"),
    ),
    "mrpc": named_layout(
        "mrpc", text_columns=_SENTENCES, label_names=("not_equivalent", "equivalent"), main_metric="f1"
    ),
    "qnli": named_layout("qnli", text_columns=("question", "sentence"), label_names=("entailment", "not_entailment")),
    "qqp": named_layout(
        "qqp",
        text_columns=("question1", "question2"),
        label_names=("not_duplicate", "duplicate"),
        main_metric="f1",
    ),
    "rte": named_layout("rte", text_columns=_SENTENCES, label_names=("entailment", "not_entailment")),
    "sst2": named_layout("sst2", text_columns=("sentence",), label_names=("negative", "positive")),
    "wnli": named_layout("wnli", text_columns=_SENTENCES, label_names=("not_entailment", "entailment")),
}


def load(name: str, data_dir: str | None, *, train: bool, evaluation: bool) -> dict[str, Rows]:
    """The asked splits of a GLUE task, from a directory of files or, without one, from the hub.

    Raises:
        UserError: files are missing or broken, or the hub cannot be reached and has not been before.
    """
    wanted = LAYOUTS[name].splits if evaluation else ()
    if data_dir is not None:
        return read_directory(Path(data_dir), train=train, evaluation=wanted)
    found = _from_hub(name)
    return {split: _rows(name, split, found[split]) for split in (*["train"] * train, *wanted)}


def _rows(name: str, split: str, dataset: datasets.Dataset) -> Rows:
    values = dataset.data.to_pylist()
    return Rows(source=f"{REPOSITORY} {name} {split}", values=values, numbers=range(1, len(values) + 1))


def _from_hub(name: str) -> datasets.DatasetDict:
    try:
        with _no_retries_offline():
            return datasets.load_dataset(REPOSITORY, name)
    except Exception as error:  # of many classes: http, proxies, broken downloads, a full disk
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if isinstance(error, ConnectionError):
            reason = f"no connection to {constants.ENDPOINT}, and no copy in the cache"
        advice = f"pass --data_dir with the files of {name}"
        raise UserError(f"--task {name}: cannot load {REPOSITORY} from the hub ({reason}); {advice}") from error


@contextmanager
def _no_retries_offline() -> Iterator[None]:
    """Let `datasets` look only at its cache if the hub does not answer; else it retries for 25 seconds."""
    online = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = online or not _hub_answers()
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = online


def _hub_answers() -> bool:
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # its classes differ between versions of huggingface_hub
        return False
    return True
