"""The directory of a study: what belongs to it, what was found, and the tables."""

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from contraprune.errors import UserError
from contraprune.files import write_json, write_text
from contraprune.report import Effect
from contraprune.runs import RunDirectory
from contraprune.study.grid import KINDS, Trial
from contraprune.study.table import Row, comma_separated, markdown, rows_of

FORMAT = 1
RECORD = "study.json"
_OWN = {"runs", "logs", "study.lock", "study.db", RECORD, "table.md", "table.csv", "report.html"}
_LOST = "ended without results; the same command tries it again"


class StudyDirectory:
    """``runs/NAME/``, ``logs/NAME.log``, ``study.json``, ``table.md``, ``table.csv``, ``report.html``;
    shared by all workers."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.runs = self.path / "runs"
        self.logs = self.path / "logs"
        self.database = self.path / "study.db"
        self.record = self.path / RECORD
        self.report = self.path / "report.html"
        self._lock = FileLock(self.path / "study.lock")

    @contextmanager
    def claim(self, kind: str, settings: Mapping[str, Any], asked: Sequence[Trial]) -> Iterator[str]:
        """Takes the directory for a study, or finds that this study is here, and adds the trials that are new to it.

        Meanwhile no other worker reads or writes here.

        Args:
            settings: those that all runs share.

        Yields:
            What names this study, and no other.

        Raises:
            UserError: the directory is a file, or holds something else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output_dir {self.path}: expected a directory, found a file")
        if self.path.is_dir() and {file.name for file in self.path.iterdir()} - _OWN:
            raise UserError(f"--output_dir {self.path}: not empty, and not a study; name another directory")
        for folder in (self.runs, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        wanted = {"kind": kind, "settings": json.loads(json.dumps(settings))}
        with self._lock:
            record = self._read()
            if record is None:
                record = {"format": FORMAT, "id": uuid.uuid4().hex, **wanted, "trials": []}
            self._compare(record, wanted)
            known = {trial.name for trial in _trials(record)}
            record["trials"] += [asdict(trial) for trial in asked if trial.name not in known]
            write_json(self.record, record)
            yield record["id"]

    def _read(self) -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = json.loads(self.record.read_text(encoding="utf-8"))
            if record["format"] != FORMAT:
                raise ValueError(f"format {record['format']}")
            _trials(record)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{self.record}: not the record of a study ({reason}); delete it to rebuild") from error
        return record

    def _compare(self, record: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        before, now = ({"kind": found["kind"], **found["settings"]} for found in (record, wanted))
        differing = [
            f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        ]
        if differing:
            raise UserError(
                f"--output_dir {self.path}: holds a study with other settings ({'; '.join(differing)}); name another "
                "directory"
            )

    def trials(self) -> list[Trial]:
        """Every trial that was ever asked for."""
        record = self._read()
        assert record is not None, "claim() comes first"
        return _trials(record)

    def results(self) -> dict[str, dict[str, Any]]:
        """The results of every finished trial, by its name."""
        directories = {trial.name: RunDirectory(self.runs / trial.name) for trial in self.trials()}
        return {name: run.read_results() for name, run in directories.items() if run.results.is_file()}

    def rows(self) -> list[Row]:
        """The rows of the table."""
        return rows_of(self.trials(), self.results())

    def members(self) -> list[tuple[Path, str]]:
        """The directory of every finished run, and what it is called beside its density and seed."""
        trials = self.trials()
        several = {name: len({getattr(trial, name) for trial in trials}) > 1 for name in ("method", "variant")}
        shown = [name for name in several if several[name]] or ["method"]
        return [
            (self.runs / trial.name, ", ".join(getattr(trial, name) for name in shown))
            for trial in trials
            if RunDirectory(self.runs / trial.name).results.is_file()
        ]

    def effects(self) -> list[Effect]:
        """What taking each part away changed; nothing where that was not studied."""
        rows = [row for row in self.rows() if row.difference is not None]
        densities = {row.target for row in rows}
        return [
            Effect(part=row.variant + (f" at {row.target:g}" if len(densities) > 1 else ""), difference=row.difference)
            for row in rows
            if row.difference is not None
        ]

    def update(self, ends: Mapping[str, str | None]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Writes ``study.json`` and the tables.

        Args:
            ends: the trials whose last attempt is over, with its error if one is known.

        Returns:
            The results of every finished trial, and the errors of failed ones, by name.
        """
        with self._lock:
            record = self._read()
            assert record is not None, "claim() comes first"
            results = self.results()
            errors = {name: error or _LOST for name, error in ends.items() if name not in results}
            rows = rows_of(_trials(record), results)
            record |= {"results": results, "errors": errors, "rows": [asdict(row) for row in rows]}
            write_json(self.record, record)
            title = f"{record['settings']['task'] or 'own data'}: {KINDS[record['kind']]}"
            write_text(self.path / "table.md", markdown(title, rows, errors))
            write_text(self.path / "table.csv", comma_separated(rows))
        return results, errors


def _trials(record: Mapping[str, Any]) -> list[Trial]:
    return [Trial(**trial) for trial in record["trials"]]
