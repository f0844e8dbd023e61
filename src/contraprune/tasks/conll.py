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

    Columns are separated by tabs, or by spaces in a line without tabs. Rows are numbered by their first line.

    Raises:
        UserError: a line has one column only, or not as many as the lines before.
    """
    values: list[dict[str, list[str]]] = []
    numbers: list[int] = []
    columns, first = 0, 0
    inside = False
    for number, raw in enumerate(read_text(path).split("\n"), start=1):
        line = raw.strip(" \r")
        fields = line.split("\t") if "\t" in line else re.split(" +", line)
        if not line.strip() or fields[0] == _DOCUMENT:
            inside = False
            continue
        columns, first = columns or len(fields), first or number
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


READERS: Mapping[str, Reader] = {".conll": read_conll, ".txt": read_conll}
