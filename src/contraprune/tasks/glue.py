"""The tasks of GLUE (Wang et al., 2019, arXiv 1804.07461)."""

from collections.abc import Mapping
from pathlib import Path

from contraprune.tasks import hub
from contraprune.tasks.base import Layout
from contraprune.tasks.classification import named_layout
from contraprune.tasks.files import Rows, read_directory
from contraprune.tasks.regression import NumberLayout

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
    "stsb": NumberLayout(text_columns=_SENTENCES, limits=(0, 5)),
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
    return hub.load(name, REPOSITORY, name, [*["train"] * train, *wanted])
