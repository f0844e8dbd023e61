"""SQuAD 1.1 (Rajpurkar et al. 2016, arXiv 1606.05250) and 2.0 (Rajpurkar et al. 2018, arXiv 1806.03822)."""

from collections.abc import Mapping
from pathlib import Path

from contraprune.tasks import hub
from contraprune.tasks.files import Rows, read_directory
from contraprune.tasks.question_answering import QuestionLayout

OWNER = "rajpurkar"

LAYOUTS: Mapping[str, QuestionLayout] = {
    "squad": QuestionLayout(unanswerable=False, published=True),
    "squad_v2": QuestionLayout(unanswerable=True, published=True),
}


def load(name: str, data_dir: str | None, *, train: bool, evaluation: bool) -> dict[str, Rows]:
    """The asked splits, from a directory of files or, without one, from the hub.

    Raises:
        UserError: files are missing or broken, or the hub cannot be reached and has not been before.
    """
    wanted = LAYOUTS[name].splits if evaluation else ()
    if data_dir is not None:
        return read_directory(Path(data_dir), train=train, evaluation=wanted)
    return hub.load(name, f"{OWNER}/{name}", None, [*["train"] * train, *wanted])
