"""The directory of a run: what it holds, and whether a new run may use it."""

import hashlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock, Timeout

from contraprune.errors import UserError
from contraprune.files import SUMS, as_json, check, sealed, write_sums, write_text

RECORD = "run"  # the key of config.yaml that records the run; all others are options
_OWN_FILES = (
    "config.yaml", "log.jsonl", "results.json", "README.md", "report.html", "representations.json", "bench.json",
    "seconds.json", SUMS,
)  # fmt: skip
_OWN_FOLDERS = ("model", "checkpoints", "banks", "stages", "tensorboard")
_LOCK = ".lock"
_PATIENCE = 2.0  # seconds: a process that was just killed holds its lock until the system has cleared it away
_LEFT_OVER = (".tmp", ".old")  # ends of names under which files are written, and folders replaced


class RunDirectory:
    """``config.yaml``, ``log.jsonl``, ``results.json``, ``report.html``, ``README.md``, ``model/``; until it is
    finished, what it resumes from."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.model = self.path / "model"
        self.checkpoints = self.path / "checkpoints"
        self.banks = self.path / "banks"
        self.stages = self.path / "stages"
        self.tensorboard = self.path / "tensorboard"
        self.config = self.path / "config.yaml"
        self.log = self.path / "log.jsonl"
        self.results = self.path / "results.json"
        self.representations = self.path / "representations.json"
        self.bench = self.path / "bench.json"  # written by contraprune bench --output
        self.card = self.path / "README.md"
        self.seconds = self.path / "seconds.json"
        self.report = self.path / "report.html"
        self._lock = FileLock(self.path / _LOCK)

    def claim(
        self,
        options: Mapping[str, Any],
        record: Mapping[str, Any],
        *,
        identity: Mapping[str, Any],
        overwrite: bool,
    ) -> Literal["new", "interrupted", "finished"]:
        """Takes the directory for a run, or finds that the same run was here before; :meth:`release` comes at last.

        Args:
            options: the resolved settings, written to config.yaml so that ``--config`` repeats the run.
            record: versions, data fingerprint and so on, written under the key ``run``.
            identity: the options that make it the same run, others may differ; each with its default, which it had in
                a run of a version that did not know it.
            overwrite: delete what an earlier run left.

        Raises:
            UserError: the directory is a file, holds something else, or a run with other settings; another process
                writes to it; or this one may not.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output_dir {self.path}: expected a directory, found a file")
        self._refuse_foreign()
        self._acquire()
        try:
            if overwrite:
                self._clear()
            return self._claim(options, record, identity)
        except BaseException:
            self.release()
            raise

    def _claim(
        self,
        options: Mapping[str, Any],
        record: Mapping[str, Any],
        identity: Mapping[str, Any],
    ) -> Literal["new", "interrupted", "finished"]:
        if self.config.is_file():
            try:
                self._compare(options, record, identity)
            except UserError:
                if self._begun():
                    raise
                self.seconds.unlink(missing_ok=True)
            else:
                if not self.results.is_file():
                    return "interrupted"
                self._tidy_up()
                return "finished"
        self._refuse_foreign()
        content = {**options, RECORD: dict(record)}
        write_text(self.config, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        return "new"

    def _refuse_foreign(self) -> None:
        """A directory is a run's if it has its config.yaml; before that, nothing but what is written to make it."""
        if self.config.is_file() or not self.path.is_dir():
            return
        if any(path.name != _LOCK and not self._is_left_over(path) for path in self.path.iterdir()):
            raise UserError(
                f"--output_dir {self.path}: not empty, and not a run of contraprune; name another directory"
            )

    def _begun(self) -> bool:
        """Whether there is more than a run leaves behind whose settings were refused at its start."""
        nothing = (_LOCK, self.config.name, self.seconds.name)
        files = [path for path in self.path.rglob("*") if path.is_file()]
        return any(path.name not in nothing and not self._is_left_over(path) for path in files)

    def _is_left_over(self, path: Path) -> bool:
        return path.suffix in _LEFT_OVER and path.stem in (*_OWN_FILES, *_OWN_FOLDERS)

    def _acquire(self) -> None:
        lock = self.path / _LOCK
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=_PATIENCE, poll_interval=0.1)
            lock.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        except Timeout:
            holder = " ".join(lock.read_text(encoding="utf-8", errors="replace").split()) or "another process"
            raise UserError(
                f"--output_dir {self.path}: {holder} is writing to it; wait for its end, or name another directory"
            ) from None
        except OSError as error:
            self.release()
            raise UserError(f"--output_dir {self.path}: cannot be written to ({error.strerror})") from error

    def release(self) -> None:
        """Lets other processes use the directory; one that is killed need not."""
        if self._lock.is_locked:
            (self.path / _LOCK).unlink(missing_ok=True)
            self._lock.release()

    def _compare(
        self,
        options: Mapping[str, Any],
        record: Mapping[str, Any],
        identity: Mapping[str, Any],
    ) -> None:
        try:
            earlier = yaml.safe_load(self.config.read_text(encoding="utf-8"))
            before = earlier[RECORD]
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{self.config}: not the settings of a run; use --overwrite to replace it") from error
        differing = [
            f"{key} was {earlier.get(key, identity[key])!r}, now {options.get(key)!r}"
            for key in sorted(identity)
            if earlier.get(key, identity[key]) != options.get(key)
        ]
        differing += [
            f"{key} was {before.get(key)!r}, now {record.get(key)!r}"
            for key in ("command", "data")
            if before.get(key) != record.get(key)
        ]
        if differing:
            raise UserError(
                f"--output_dir {self.path}: holds a run with other settings ({'; '.join(differing)}); name another "
                "directory, or use --overwrite"
            )

    def last_checkpoint(self, stage: str = "") -> str | None:
        """The newest checkpoint, of a stage if there are several, that is as it was written.

        Raises:
            UserError: there are some, but all were damaged since.
        """
        damage: list[UserError] = []
        for folder in reversed(checkpoints(self.checkpoints / stage)):
            try:
                check(folder, f"delete {folder} to train without it")
            except UserError as error:
                damage.append(error)
                continue
            for found in damage:
                logging.getLogger(__name__).warning("%s; going on from %s", found, folder.name)
            return str(folder)
        if damage:
            raise damage[0]
        return None

    def read_results(self) -> dict[str, Any]:
        """The results of the finished run that is here.

        Raises:
            UserError: the file was damaged.
        """
        again = "use --overwrite to run again"
        try:
            check(self.path, again)
            results: dict[str, Any] = json.loads(self.results.read_text(encoding="utf-8"))
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{self.results}: not JSON ({error}); {again}") from error
        return results

    def finish(self, results: Mapping[str, Any]) -> None:
        """Writes the results, which marks the run finished, and removes what only an unfinished run needs."""
        text = as_json(results)
        write_sums(self.path, {self.results.name: hashlib.sha256(text.encode()).hexdigest()})
        write_text(self.results, text)
        self._tidy_up()

    def _tidy_up(self) -> None:
        for folder in (self.checkpoints, self.banks, self.stages):
            shutil.rmtree(folder, ignore_errors=True)
        self.seconds.unlink(missing_ok=True)
        for path in filter(self._is_left_over, self.path.iterdir()):
            _remove(path)

    def _clear(self) -> None:
        """Results first, so that it is no finished run any more; config.yaml last, so that it is a run till then."""
        for name in (self.results.name, *_OWN_FOLDERS, *_OWN_FILES[1:], *_OWN_FILES[:1]):
            for end in ("", *_LEFT_OVER):
                _remove(self.path / (name + end))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder that were written to their end, the oldest first."""
    numbered = [(path.name.rpartition("-")[2], path) for path in folder.glob("checkpoint-*") if sealed(path)]
    return [path for _, path in sorted((int(number), path) for number, path in numbered if number.isdigit())]


class Stopwatch:
    """Seconds by what they went to, over all starts of a run: kept in a file, which a killed run leaves behind.

    Args:
        write: whether this process keeps the file.
    """

    def __init__(self, file: Path, *, write: bool) -> None:
        self._file = file
        self._write = write
        self._since = time.perf_counter()
        self.seconds: dict[str, float] = _numbers(file)

    def lap(self, name: str) -> None:
        """Books the seconds since the last lap under ``name``."""
        now = time.perf_counter()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self._since, 3)
        self._since = now
        if self._write:
            write_text(self._file, as_json(self.seconds))


def _numbers(file: Path) -> dict[str, float]:
    """The numbers of a JSON object; none where it cannot be read, which costs a run nothing but its seconds."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {str(name): float(value) for name, value in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
