"""Published data sets from the hub."""

from collections.abc import Iterator
from contextlib import contextmanager

import datasets
from huggingface_hub import constants, get_session

from contraprune.errors import UserError
from contraprune.tasks.files import Rows


def load(task: str, repository: str, configuration: str | None, splits: list[str]) -> dict[str, Rows]:
    """The asked splits of a data set, from the hub or from the cache of `datasets`.

    Raises:
        UserError: the hub cannot be reached and has not been before.
    """
    found = _load(task, repository, configuration)
    name = f"{repository} {configuration}" if configuration else repository
    return {split: _rows(f"{name} {split}", found[split]) for split in splits}


def _rows(source: str, dataset: datasets.Dataset) -> Rows:
    values = dataset.data.to_pylist()
    return Rows(source=source, values=values, numbers=range(1, len(values) + 1))


def _load(task: str, repository: str, configuration: str | None) -> datasets.DatasetDict:
    try:
        with _no_retries_offline():
            return datasets.load_dataset(repository, configuration)
    except Exception as error:  # of many classes: http, proxies, broken downloads, a full disk
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if isinstance(error, ConnectionError):
            reason = f"no connection to {constants.ENDPOINT}, and no copy in the cache"
        advice = f"pass --data_dir with the files of {task}"
        raise UserError(f"--task {task}: cannot load {repository} from the hub ({reason}); {advice}") from error


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
