"""The directory of a run: what it holds, and whether a new run may use it."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from contraprune.errors import UserError
from contraprune.saving import write_json, write_text

RECORD = "run"  # the key of config.yaml that records the run; all others are options
_OWN_FILES = (
    "config.yaml", "log.jsonl", "results.json", "README.md", "report.html", "representations.json", "bench.json",
)  # fmt: skip
_OWN_FOLDERS = ("model", "model.tmp", "checkpoints", "banks", "stages", "tensorboard")


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
        self.report = self.path / "report.html"

    def claim(
        self,
        options: Mapping[str, Any],
        record: Mapping[str, Any],
        *,
        identity: frozenset[str],
        overwrite: bool,
    ) -> Literal["new", "interrupted", "finished"]:
        """Takes the directory for a run, or finds that the same run was here before.

        Args:
            options: the resolved settings, written to config.yaml so that ``--config`` repeats the run.
            record: versions, data fingerprint and so on, written under the key ``run``.
            identity: the options that make it the same run; others may differ.
            overwrite: delete what an earlier run left.

        Raises:
            UserError: the directory is a file, holds something else, or a run with other settings.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output_dir {self.path}: expected a directory, found a file")
        if overwrite:
            self._clear()
        if self.config.is_file():
            self._compare(options, record, identity)
            return "finished" if self.results.is_file() else "interrupted"
        if self.path.is_dir() and any(self.path.iterdir()):
            raise UserError(
                f"--output_dir {self.path}: not empty, and not a run of contraprune; name another directory"
            )
        content = {**options, RECORD: dict(record)}
        write_text(self.config, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        return "new"

    def _compare(self, options: Mapping[str, Any], record: Mapping[str, Any], identity: frozenset[str]) -> None:
        try:
            earlier = yaml.safe_load(self.config.read_text(encoding="utf-8"))
            before = earlier[RECORD]
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{self.config}: not the settings of a run; use --overwrite to replace it") from error
        differing = [
            f"{key} was {earlier.get(key)!r}, now {options.get(key)!r}"
            for key in sorted(identity)
            if earlier.get(key) != options.get(key)
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
        """The newest checkpoint, of a stage if there are several, that was written to its end."""
        whole = [
            (int(folder.name.rpartition("-")[2]), folder)
            for folder in (self.checkpoints / stage).glob("checkpoint-*")
            if (folder / "trainer_state.json").is_file() and folder.name.rpartition("-")[2].isdigit()
        ]
        return str(max(whole)[1]) if whole else None

    def read_results(self) -> dict[str, Any]:
        """The results of the finished run that is here.

        Raises:
            UserError: the file was damaged.
        """
        try:
            results: dict[str, Any] = json.loads(self.results.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{self.results}: not JSON ({error}); use --overwrite to run again") from error
        return results

    def finish(self, results: Mapping[str, Any]) -> None:
        """Writes the results, which marks the run finished, and removes what only an unfinished run needs."""
        write_json(self.results, results)
        for folder in (self.checkpoints, self.banks, self.stages):
            shutil.rmtree(folder, ignore_errors=True)

    def _clear(self) -> None:
        for name in _OWN_FILES:
            (self.path / name).unlink(missing_ok=True)
        for name in _OWN_FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)
