"""Data whose labels are made by rule, for runs of kinds of task that have no data set at hand.

    python benchmarks/made_up_data.py ner --data_dir D --output_dir O [--rows 3000]
    python benchmarks/made_up_data.py multi_label --data_dir D --output_dir O [--rows 3000]

D holds the folders ``squad`` and ``glue/mnli`` with JSON lines. Writes O/train.jsonl (that many rows) and
O/validation.jsonl (a third of it), the first ones of different texts.

The texts are real, the labels are not: regular expressions make them. A score on them says how well a model learned
these rules and how much of that a pruned model keeps, and is no score of named-entity recognition or anything else.

- ner: sentences of SQuAD's paragraphs (training: the training subset; validation: the development set, which has
  other articles). YEAR: 1000 to 2099, also as in 1930s; NUMBER: other digits and the words two to million; NAME:
  words with a capital, joined by "of" and "the" in between, except a single one at the start of a sentence and words
  like "In" there. To a
  model that does not see capitals, names are words to know.
- multi_label: premises of MNLI (training: the training subset; validation: matched). Which of these hold:
  comparison, condition, first_person, long (25 words or more), negation, number.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

_NUMBER_WORDS = "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|hundred|thousand|million"
_WORD = re.compile(r"\w+(?:[-'’.,]\w+)*|[^\w\s]")
_SENTENCE_END = re.compile(r"(?<=[a-z0-9)\"][.!?])\s+(?=[A-Z\"])")
_YEAR = re.compile(r"(?:1\d|20)\d\d(?:s|'s)?")
_NUMBER = re.compile(rf"\d[\d.,]*\w*|{_NUMBER_WORDS}", re.IGNORECASE)
_CAPITAL = re.compile(r"[A-Z]\w*(?:[-.'’]\w+)*")
_OPENERS = {
    "a",
    "after",
    "although",
    "an",
    "as",
    "at",
    "by",
    "for",
    "from",
    "in",
    "it",
    "of",
    "on",
    "the",
    "this",
    "to",
}
_NAME_JOINTS = {"of", "the", "de", "von"}
RULES: dict[str, re.Pattern[str]] = {
    "comparison": re.compile(r"\b(more|less|most|least|than|better|worse|best|worst)\b"),
    "condition": re.compile(r"\b(if|unless|whether|because|although|though|while)\b"),
    "first_person": re.compile(r"\b(i|we|me|us|my|our|i'm|i've|we're|we've)\b"),
    "long": re.compile(r"(\S+\s+){24,}\S+"),
    "negation": re.compile(r"\b(not|no|never|none|nothing|nobody|neither|nor|cannot|without)\b|n't\b"),
    "number": re.compile(rf"\d|\b({_NUMBER_WORDS})\b"),
}


def tags(words: list[str]) -> list[str]:
    """The tag of each word of a sentence, IOB2."""
    kinds: list[str | None] = []
    for place, word in enumerate(words):
        if _YEAR.fullmatch(word):
            kinds.append("YEAR")
        elif _NUMBER.fullmatch(word):
            kinds.append("NUMBER")
        else:
            follows = place > 0 or (_CAPITAL.fullmatch(words[1]) and word.lower() not in _OPENERS)
            kinds.append("NAME" if follows and _CAPITAL.fullmatch(word) else None)
    for place in range(1, len(words) - 1):
        if words[place] in _NAME_JOINTS and kinds[place - 1] == "NAME" == kinds[place + 1]:
            kinds[place] = "NAME"
    return [
        "O" if kind is None else f"{'I' if place and kinds[place - 1] == kind == 'NAME' else 'B'}-{kind}"
        for place, kind in enumerate(kinds)
    ]


def ner_rows(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Sentences of 5 to 60 words of every different paragraph."""
    for paragraph in dict.fromkeys(row["context"] for row in rows):
        for sentence in _SENTENCE_END.split(paragraph):
            words = _WORD.findall(sentence)
            if 5 <= len(words) <= 60:
                yield {"tokens": words, "ner_tags": tags(words)}


def multi_label_rows(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every different premise with the rules that hold of it."""
    for text in dict.fromkeys(row["premise"].strip() for row in rows):
        if text:
            yield {"text": text, "labels": [name for name, rule in RULES.items() if rule.search(text.lower())]}


MAKERS: dict[str, tuple[str, str, Callable[..., Iterator[dict[str, Any]]]]] = {
    "ner": ("squad/train_subset_4k.jsonl", "squad/validation.jsonl", ner_rows),
    "multi_label": (
        "glue/mnli/train_subset_10k_noperiods.jsonl",
        "glue/mnli/validation_matched.jsonl",
        multi_label_rows,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=MAKERS)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=3000)
    arguments = parser.parse_args()
    *sources, make = MAKERS[arguments.kind]
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for split, source, count in zip(
        ("train", "validation"), sources, (arguments.rows, arguments.rows // 3), strict=True
    ):
        with (arguments.data_dir / source).open(encoding="utf-8") as file:
            rows = list(islice(make(map(json.loads, file)), count))
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (arguments.output_dir / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        counts = Counter(label for row in rows for label in row.get("labels", row.get("ner_tags")))
        print(f"{split}: {len(rows)} rows; {dict(sorted(counts.items()))}")


if __name__ == "__main__":
    main()
