"""A training and a validation set for question answering where SQuAD's own training set is not at hand.

    python benchmarks/squad_split.py --data_dir D --output_dir O

D holds SQuAD's ``validation.jsonl`` and, if there is one, ``train_subset_4k.jsonl``. O gets ``validation.jsonl``, the
questions of 10 of the 48 articles, and ``train.jsonl``, those of the other 38 and of the subset. Numbers on this split
are not SQuAD's. Articles and rows are in the order of a hash of their names, so that the split is the same everywhere
and its first N rows are a fair sample.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

EVALUATION_ARTICLES = 10
Rows = list[dict[str, Any]]


def split(validation: Rows, subset: Rows) -> tuple[Rows, Rows]:
    """(training rows, evaluation rows); no article has rows in both."""
    titles = sorted({row["title"] for row in validation}, key=_hash)
    held_out = set(titles[:EVALUATION_ARTICLES])
    evaluation = [row for row in validation if row["title"] in held_out]
    train = [row for row in validation if row["title"] not in held_out] + subset
    return sorted(train, key=_of_row), sorted(evaluation, key=_of_row)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _of_row(row: dict[str, Any]) -> str:
    return _hash(row["id"])


def _read(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("data_dir", "output_dir"):
        parser.add_argument(f"--{flag}", required=True, type=Path)
    arguments = parser.parse_args()
    subset = arguments.data_dir / "train_subset_4k.jsonl"
    parts = split(_read(arguments.data_dir / "validation.jsonl"), _read(subset) if subset.exists() else [])
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("train", "validation"), parts, strict=True):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (arguments.output_dir / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{name}: {len(rows)} questions of {len({row['title'] for row in rows if row['title']})} named articles")


if __name__ == "__main__":
    main()
