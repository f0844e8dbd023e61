"""Files in the manner of CoNLL-2003: a token per line, its tag in the last column, a blank line between sentences."""

import re
from collections.abc import Mapping
from pathlib import Path

from contraprune.errors import UserError
from contraprune.tasks.files import Reader, Rows, read_text

TOKENS, TAGS = "tokens", "tags"
_DOCUMENT = "-DOCSTART-"  # the first column of a line that separates documents


def read_conll(path: Path) -> Rows:
    """The sentences of a file, each a row of ``tokens`` (first column) and ``tags`` (last column).

    Columns are separated by tabs, or by spaces in a line without tabs. Rows are numbered by their first line. A line
    "# …" before a sentence is a comment, unless it has a token's columns and a tag that other tokens have too.

    Raises:
        UserError: a line has one column only, or not as many as the lines before.
    """
    lines = [(number, raw.strip(" \r")) for number, raw in enumerate(read_text(path).split("\n"), start=1)]
    rows = [(number, line, _fields(line)) for number, line in lines]
    tokens = [(number, fields) for number, line, fields in rows if not (_ends(line, fields) or _hashed(line))]
    first, columns = (tokens[0][0], len(tokens[0][1])) if tokens else (0, 0)
    tags = {"#"} | {fields[-1] for _, fields in tokens}  # the Penn Treebank tags "#" as "#"
    values: list[dict[str, list[str]]] = []
    numbers: list[int] = []
    inside = False
    for number, line, fields in rows:
        if _ends(line, fields):
            inside = False
            continue
        if not inside and _hashed(line) and (len(fields) != columns or fields[-1] not in tags):
            continue
        if len(fields) < 2 or len(fields) != columns:
            expected = "a token and its tag" if columns < 2 else f"{columns} columns as in line {first}"
            raise UserError(f"{path}, line {number}: expected {expected}, found {len(fields)} column(s): {line!r:.80}")
        if not inside:
            values.append({TOKENS: [], TAGS: []})
            numbers.append(number)
            inside = True
        values[-1][TOKENS].append(fields[0])
        values[-1][TAGS].append(fields[-1])
    return Rows(source=str(path), values=values, numbers=numbers, unit="line", typed=False)


def _fields(line: str) -> list[str]:
    return line.split("\t") if "\t" in line else re.split(" +", line)


def _ends(line: str, fields: list[str]) -> bool:
    """Whether a line stands between sentences."""
    return not line.strip() or fields[0] == _DOCUMENT


def _hashed(line: str) -> bool:
    """Whether a line may be a comment; it may also be the token "#"."""
    return line == "#" or line.startswith("# ")


READERS: Mapping[str, Reader] = {".conll": read_conll, ".txt": read_conll}
