"""A finished run as its files tell it, without anything that only means something on the machine it ran on."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from contraprune.errors import UserError
from contraprune.inspection import Summary, summarise, weight_bytes
from contraprune.runs import RECORD, RunDirectory
from contraprune.saving import load

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_PLACES = re.compile(r"(?:[A-Za-z]:)?[\\/]|~")  # how an absolute path begins


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One model in one runtime, with inputs of one shape.

    Attributes:
        shape: texts x tokens.
        speedup: over the dense model in its fastest runtime, whatever that runtime's precision; None where no dense
            model was measured beside it.
    """

    model: str
    runtime: str
    dense: bool
    shape: str
    p50: float  # milliseconds
    p95: float
    speedup: float | None


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Latencies, and the machine they were measured on."""

    machine: str
    timings: list[Timing]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a report or a card is made of.

    Attributes:
        name: of its directory.
        results: the content of ``results.json``.
        options: of ``config.yaml``, absolute paths cut to their last part.
        environment: versions and date.
        log: the entries of ``log.jsonl``, in order.
        map: the content of ``representations.json``; with ``skipped`` where there is none.
        bench: what ``contraprune bench`` measured, if it was written to ``bench.json`` of the run.
        hub_models: names on the hub of ``model`` and ``teacher``, where they are such.
    """

    name: str
    path: Path
    results: dict[str, Any]
    options: dict[str, Any]
    environment: dict[str, Any]
    log: list[dict[str, Any]]
    map: dict[str, Any]
    bench: Bench | None
    hub_models: dict[str, str]

    @property
    def pruned(self) -> bool:
        """Whether it is a pruning run; else a fine-tuning run."""
        return "teacher_metrics" in self.results

    @property
    def structured(self) -> bool:
        return "stages" in self.results

    @property
    def metric(self) -> tuple[str, float]:
        """The task's main metric."""
        name, value = next(iter(self.results["metrics"].items()))
        return name, float(value)

    @property
    def model(self) -> Path:
        return self.path / "model"

    def standard_error(self) -> float | None:
        """Of the main metric where that is an accuracy and the number of examples is known: √(p (1 − p) / n)."""
        name, value = self.metric
        split = name.removeprefix("accuracy").lstrip("_")
        examples = {
            key.removeprefix("validation").lstrip("_"): n for key, n in self.results.get("examples", {}).items()
        }
        if not name.startswith("accuracy") or split not in examples:
            return None
        return float((value * (1 - value) / examples[split]) ** 0.5)

    def summary(self) -> Summary | None:
        """What the saved model is made of; None where it is gone or of an unknown architecture."""
        try:
            return summarise(load(self.model, engine="torch"))
        except UserError:
            return None

    def bytes_on_disk(self) -> int:
        """Size of the model's weight files."""
        return weight_bytes(self.model)


def read_run(path: Path) -> Run:
    """Reads the directory of a finished run.

    Raises:
        UserError: there is none, or a file of it is damaged.
    """
    directory = RunDirectory(path)
    if not directory.results.is_file():
        raise UserError(f"{path}: expected the directory of a finished run or of a study, found no results.json")
    results = directory.read_results()
    if lacking := _lacking(results):
        raise UserError(f"{directory.results}: expected the results of a run, found no {lacking}")
    options, environment = _settings(directory.config)
    models = {key: str(options[key]) for key in ("model", "teacher") if options.get(key)}
    return Run(
        name=path.resolve().name,
        path=path,
        results=results,
        options={name: without_places(value) for name, value in options.items()},
        environment=environment,
        log=_entries(directory.log),
        map=_map(directory.representations),
        bench=_bench(directory.bench),
        hub_models={key: name for key, name in models.items() if _HUB_NAME.fullmatch(name) and not Path(name).exists()},
    )


def _lacking(results: Any) -> str:
    """What is missing in results, or is of another kind than a run writes; nothing where all is there."""
    kinds = {"metrics": dict, "task": str, "method": str, "parameters": dict, "seconds": dict}
    if isinstance(results, dict) and "teacher_metrics" in results:
        kinds |= {"teacher_metrics": dict, "density": dict}
    for key, kind in kinds.items():
        if not isinstance(results, dict) or not isinstance(results.get(key), kind) or not results[key]:
            return key
    numbers = [*results["metrics"].values(), *results["seconds"].values()]
    return "" if all(isinstance(value, int | float) for value in numbers) else "numbers in metrics and seconds"


def without_places(value: Any) -> Any:
    """A setting as it may be published: of an absolute path only the last part."""
    if isinstance(value, list):
        return [without_places(part) for part in value]
    if isinstance(value, str) and _PLACES.match(value):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1] or value
    return value


def _settings(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    if not file.is_file():
        return {}, {}
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        environment = dict(content.pop(RECORD, {}))
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{file}: not the settings of a run ({type(error).__name__})") from error
    return content, environment


def _entries(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    entries = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            entry["step"] = int(entry["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}, line {number}: expected what a run logs, found {line[:60]!r}") from error
        entries.append(entry)
    return entries


def _map(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {"skipped": "the run left no representations.json"}
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if "skipped" not in found:
            assert len(found["labels"]) == found["examples"]
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"{file}: not a map of representations ({type(error).__name__})") from error
    return found


def _bench(file: Path) -> Bench | None:
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        timings = [
            Timing(
                model=without_places(row["model"]),
                runtime=row["runtime"],
                dense=row["dense"],
                shape=shape,
                p50=float(row["latency"][shape]["p50_ms"]),
                p95=float(row["latency"][shape]["p95_ms"]),
                speedup=float(over["any"]) if (over := row["latency"][shape]["speedup_over_dense"]) else None,
            )
            for shape in found["shapes"]
            for row in found["models"]
        ]
        machine = f"{found['machine']['cpu']}, {found['machine']['threads']} thread(s)"
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not what contraprune bench --output writes ({type(error).__name__})") from error
    return Bench(machine=machine, timings=timings)


def shown_settings(options: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Names and values of settings that say something: not those that are empty."""
    for name, value in options.items():
        if value is None or value == []:
            continue
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)
