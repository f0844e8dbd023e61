"""Rows of the user's data files, each with the place to point at when something is wrong with it.

JSON lines and csv are read with the standard library, not with `datasets`, because its readers drop line
numbers and guess types; a wrong row must be found by whoever reads the error.
"""

import csv
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from contraprune.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of one split, in order; at least one.

    Attributes:
        source: where they come from, as errors name it: a path or a data set of the hub.
        values: one mapping from column to value per row.
        numbers: the number of each row as the user counts, from 1.
        unit: what ``numbers`` counts: "line" of a text file, or "row".
        typed: whether numbers come as numbers; False for csv and tsv, where all is text.
    """

    source: str
    values: Sequence[Mapping[str, Any]]
    numbers: Sequence[int]
    unit: str = "row"
    typed: bool = True

    @property
    def columns(self) -> list[str]:
        return list(self.values[0])

    def first(self, count: int | None) -> "Rows":
        """The first ``count`` rows; all for None."""
        return Rows(
            source=self.source,
            values=self.values[:count],
            numbers=self.numbers[:count],
            unit=self.unit,
            typed=self.typed,
        )

    def error(self, index: int, message: str) -> UserError:
        return UserError(f"{self.source}, {self.unit} {self.numbers[index]}: {message}")

    def column(self, name: str) -> list[Any]:
        """All values of a column. Raises UserError at the first row that lacks it."""
        try:
            return [row[name] for row in self.values]
        except KeyError:
            index = next(i for i, row in enumerate(self.values) if name not in row)
            found = shown(self.values[index])
            raise self.error(index, f"expected a column '{name}', found columns {found}") from None

    def texts(self, name: str) -> list[str]:
        """All values of a text column. Raises UserError at the first that is not text."""
        values = self.column(name)
        for index, value in enumerate(values):
            if type(value) is not str:
                found = "null" if value is None else f"{value!r:.80}"
                raise self.error(index, f"expected text in column '{name}', found {found}")
        try:
            "".join(values).encode()
        except UnicodeEncodeError:
            index = next(i for i, text in enumerate(values) if not text.isascii() and not _encodable(text))
            problem = "expected valid Unicode, found half of a surrogate pair"
            raise self.error(index, f"{problem} in column '{name}'") from None
        return values


Reader = Callable[[Path], Rows]


def shown(names: Sequence[object] | Mapping[str, Any], limit: int = 12) -> str:
    """Names for an error message: in quotes, on one line, cut after ``limit``."""
    quoted = [repr(str(name)) for name in list(names)[:limit]]
    listed = ", ".join(name if len(name) <= 60 else f"{name[:60]}…" for name in quoted)
    return listed + (f" and {len(names) - limit} more" if len(names) > limit else "")


def read(path: Path, more: Mapping[str, Reader] | None = None) -> Rows:
    """All rows of a .jsonl, .json (a list of objects, or lines), .csv, .tsv or .parquet file.

    Args:
        more: readers of further endings.

    Raises:
        UserError: the file is missing, empty, not of a known kind or broken; with the line or row number.
    """
    readers = {**READERS, **(more or {})}
    reader = readers.get(path.suffix.lower())
    if os.path.isdir(path):
        raise UserError(f"{path}: expected a file, found a directory")
    if reader is None:
        raise UserError(f"{path}: expected a file ending in {', '.join(readers)}, found '{path.suffix}'")
    try:
        rows = reader(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        reason = str(error.strerror or error).splitlines()[0]
        raise UserError(f"{path}: cannot be read ({reason})") from error
    if not rows.values:
        raise UserError(f"{path}: expected at least one row of data, found none")
    return rows


def read_directory(directory: Path, *, train: bool, evaluation: Sequence[str]) -> dict[str, Rows]:
    """The split files of a data directory: ``train.*`` if asked for, and each ``evaluation`` split there is.

    Raises:
        UserError: the directory, the training file or every evaluation file is missing, or a file is broken.
    """
    if not os.path.isdir(directory):
        found = "a file" if os.path.exists(directory) else "nothing"
        raise UserError(f"--data_dir {directory}: expected a directory, found {found}")
    splits: dict[str, Rows] = {}
    for required in [("train",)] * train + [tuple(evaluation)] * bool(evaluation):
        paths = {split: path for split in required if (path := _split_file(directory, split))}
        if not paths:
            expected = " or ".join(f"{split}.*" for split in required)
            endings = ", ".join(READERS)
            found = shown(sorted(path.name for path in directory.iterdir())) or "an empty directory"
            raise UserError(f"--data_dir {directory}: expected {expected} ({endings}), found {found}")
        splits |= {split: read(path) for split, path in paths.items()}
    return splits


def _split_file(directory: Path, split: str) -> Path | None:
    paths = [path for ending in READERS if (path := directory / f"{split}{ending}").exists()]
    if len(paths) > 1:
        found = shown([path.name for path in paths])
        raise UserError(f"--data_dir {directory}: expected one {split} file, found {found}")
    return paths[0] if paths else None


def read_text(path: Path) -> str:
    """A text file in UTF-8. Raises UserError at the first line that is not."""
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{raw[error.start]:02x}"
        raise UserError(f"{path}, line {line}: expected UTF-8 text, found {found}") from None


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json_value(text: str, source: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{source}, line {line + error.lineno - 1}, column {error.colno}"
        raise UserError(f"{place}: expected valid JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise UserError(f"{source}, line {line}: expected valid JSON ({error})") from None


def _objects(values: Sequence[Any], numbers: Sequence[int], path: Path, unit: str) -> Rows:
    for number, value in zip(numbers, values, strict=True):
        if type(value) is not dict:
            expected = 'expected a JSON object such as {"text": "…", "label": 0}'
            raise UserError(f"{path}, {unit} {number}: {expected}, found {value!r:.80}")
    return Rows(source=str(path), values=values, numbers=numbers, unit=unit)


def _json_lines(path: Path) -> Rows:
    return _parse_lines(read_text(path), path)


def _parse_lines(text: str, path: Path) -> Rows:
    # Not splitlines(): JSON strings may hold U+2028 and other characters that it takes for line ends.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    values = [_json_value(line, str(path), number) for number, line in lines]
    return _objects(values, [number for number, _ in lines], path, "line")


def _json_file(path: Path) -> Rows:
    text = read_text(path)
    if not text.lstrip().startswith("["):
        return _parse_lines(text, path)
    values = _json_value(text, str(path), 1)
    return _objects(values, range(1, len(values) + 1), path, "row")


class _Unquoted(csv.excel_tab):
    """Tab-separated values in which a quote is a character like any other."""

    quoting = csv.QUOTE_NONE


def _delimited(text: str, path: Path, dialect: type[csv.Dialect]) -> Rows:
    limit = csv.field_size_limit(sys.maxsize)  # the default stops at texts of 131,072 characters
    try:
        return _parse_delimited(csv.reader(io.StringIO(text, newline=""), dialect, strict=True), path)
    finally:
        csv.field_size_limit(limit)


def _parse_delimited(reader: Any, path: Path) -> Rows:
    header: list[str] = []
    values: list[dict[str, str]] = []
    numbers: list[int] = []
    start = 1
    try:
        for fields in reader:
            if fields and not header:
                header = fields
                if len(set(header)) < len(header):
                    raise UserError(f"{path}, line {start}: expected different columns, found {shown(header)}")
            elif fields:
                if len(fields) != len(header):
                    expected = f"expected {len(header)} fields ({shown(header)})"
                    raise UserError(f"{path}, line {start}: {expected}, found {len(fields)}")
                values.append(dict(zip(header, fields, strict=True)))
                numbers.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        hint = 'a field with quotes or line ends stands in "…", and a quote inside it is doubled'
        raise UserError(f"{path}, line {start}: broken quotes ({error}); {hint}") from None
    return Rows(source=str(path), values=values, numbers=numbers, unit="line", typed=False)


def _csv(path: Path) -> Rows:
    return _delimited(read_text(path), path, csv.excel)


def _tsv(path: Path) -> Rows:
    """Quoted as csv is; a file that cannot be read so but has all its fields without quoting is read without."""
    text = read_text(path)
    try:
        return _delimited(text, path, csv.excel_tab)
    except UserError as error:
        try:
            rows = _delimited(text, path, _Unquoted)
        except UserError:
            raise error from None
        if any(column.startswith('"') for column in rows.columns):
            raise
        warnings.warn(f"{error}; so quotes in this file are read as text", stacklevel=2)
        return rows


def _parquet(path: Path) -> Rows:
    try:
        with pq.ParquetFile(path) as file:
            values = file.read().to_pylist()
    except (pa.ArrowException, ValueError, OverflowError) as error:  # the latter two: text, dates out of range
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: expected a parquet file that can be read ({reason})") from None
    return Rows(source=str(path), values=values, numbers=range(1, len(values) + 1))


READERS: Mapping[str, Reader] = {
    ".jsonl": _json_lines,
    ".json": _json_file,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
