"""A small sentiment data set of our own, made by rule, for the demo and for tests.

The question is whether the writer is pleased: with the matter of the main clause, with the new thing rather
than the old one, today rather than formerly; what others think does not count. Single words say nothing:
sentences come in groups of twins in which every word stands as often in negative as in positive sentences, so
a bag of words stays at chance (0.5) and a model has to read negation, contrast, comparison and who felt what.
"""

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from string import Formatter
from zlib import crc32

from contraprune.files import write_text
from contraprune.tasks.classification import named_layout
from contraprune.tasks.files import Rows

TRAIN_ROWS = 4_000
VALIDATION_ROWS = 800
LAYOUT = named_layout("toy", text_columns=("text",), label_names=("negative", "positive"))

# The validation rows are the same for every seed: models trained on different draws remain comparable.
_VALIDATION_SEED = 0
_HELD_OUT = 5  # one group in five


@dataclass(frozen=True, kw_only=True)
class Domain:
    """Words that go together: things, parts of them, and pairs of a good and a bad adjective."""

    things: tuple[str, ...]
    parts: tuple[str, ...]
    adjectives: tuple[tuple[str, str], ...]


_ANYTHING = (
    ("wonderful", "terrible"),
    ("superb", "dreadful"),
    ("lovely", "horrible"),
    ("excellent", "awful"),
    ("pleasant", "annoying"),
)
DOMAINS = (
    Domain(
        things=("film", "novel", "series", "play", "documentary", "musical"),
        parts=("plot", "ending", "dialogue", "opening", "soundtrack"),
        adjectives=(("gripping", "dull"), ("clever", "shallow"), ("original", "predictable"), *_ANYTHING),
    ),
    Domain(
        things=("soup", "curry", "salad", "pizza", "stew", "cake"),
        parts=("starter", "bread", "sauce", "dessert", "coffee"),
        adjectives=(("tasty", "bland"), ("delicious", "disgusting"), ("fresh", "stale"), *_ANYTHING),
    ),
    Domain(
        things=("hotel", "cabin", "hostel", "apartment", "guesthouse", "campsite"),
        parts=("bathroom", "kitchen", "bedroom", "garden", "lobby"),
        adjectives=(("clean", "filthy"), ("cosy", "gloomy"), ("charming", "shabby"), *_ANYTHING),
    ),
    Domain(
        things=("phone", "laptop", "camera", "printer", "tablet", "heater"),
        parts=("screen", "keyboard", "charger", "speaker", "case"),
        adjectives=(("reliable", "faulty"), ("sturdy", "flimsy"), ("practical", "useless"), *_ANYTHING),
    ),
)
VERBS = (
    ("loved", "hated"),
    ("praised", "cursed"),
    ("admired", "despised"),
    ("adored", "detested"),
    ("enjoyed", "loathed"),
)
COMPARATIVES = (
    ("better", "worse"),
    ("nicer", "nastier"),
    ("much better", "much worse"),
    ("clearly better", "clearly worse"),
)
SIDES = (("strengths", "weaknesses"), ("virtues", "vices"), ("merits", "faults"), ("benefits", "drawbacks"))
OTHERS = ("critics", "neighbours", "experts", "tourists", "reporters", "students")

# Each entry is a group of sentences that are positive as they stand and turn negative when the good and the
# bad word are exchanged. Over all sentences of a group each word must be as frequent in both labels.
TEMPLATES: tuple[tuple[str, ...], ...] = (
    # contrast: the main clause decides
    ("Although the {part} was {bad}, the {other_part} was {good}.",),
    ("The {part} was {good}, although the {other_part} was {bad}.",),
    ("The {part} was {bad}, but the {other_part} was {good}.",),
    ("The {thing} looked {bad} at first, but it turned out to be {good}.",),
    ("The {thing} was {good}, although we had expected it to be {bad}.",),
    ("We expected the {thing} to be {bad}, and yet it was {good}.",),
    ("The {thing} could have been {bad}, and yet it was {good}.",),
    # then and now
    ("The {thing} used to be {bad}, but now it is {good}.",),
    ("The {thing} is {good} now, although it used to be {bad}.",),
    ("The {thing} started out {bad} and ended up {good}.",),
    # which word is negated
    ("The {thing} was not {bad} but {good}.",),
    ("The {thing} was {good} and not at all {bad}.",),
    ("The {thing} was {good} rather than {bad}.",),
    ("The {thing} has all of the {strengths} and none of the {weaknesses}.",),
    # who felt what: the writer counts
    ("The {others} {hated} the {thing}, but we {loved} it.",),
    ("We {loved} the {thing} that the {others} {hated}.",),
    ("The {thing} that the {others} {hated} is {loved} by all of us.",),
    ("We found the {thing} {good}, while the {others} found it {bad}.",),
    ("The {others} called the {thing} {bad}, but to us it was {good}.",),
    # comparison: the new one, or ours, counts
    (
        "The new {thing} is {better} than the old one.",
        "The old {thing} is {worse} than the new one.",
    ),
    (
        "The new {thing} is less {bad} than the old one.",
        "The old {thing} is less {good} than the new one.",
    ),
    (
        "Our {thing} is {better} than the one of the {others}.",
        "The one of the {others} is {worse} than our {thing}.",
    ),
    # negation by one word
    (
        "To us the {thing} was nothing but {good}.",
        "To us the {thing} was anything but {bad}.",
    ),
    (
        "In all these years the {thing} was always {good}.",
        "In all these years the {thing} was never {bad}.",
    ),
    (
        "To be honest, the {thing} was really {good}.",
        "To be honest, the {thing} was hardly {bad}.",
    ),
    (
        "The {thing} we tried was simply {good}.",
        "The {thing} we tried was far from {bad}.",
    ),
    (
        "Each one of us found the {thing} {good}.",
        "Not one of us found the {thing} {bad}.",
    ),
    (
        "Most people would call the {thing} {good}.",
        "Few people would call the {thing} {bad}.",
    ),
    (
        "The {others} were right to call the {thing} {good}.",
        "The {others} were wrong to call the {thing} {bad}.",
    ),
    # double negation
    (
        "We would never say that the {thing} was {bad}.",
        "We would never say that the {thing} was not {good}.",
    ),
    (
        "We doubt that the {thing} is {bad}.",
        "We do not doubt that the {thing} is {good}.",
    ),
    (
        "It is right to call the {thing} {good}.",
        "It is wrong to call the {thing} {bad}.",
        "It is not right to call the {thing} {bad}.",
        "It is not wrong to call the {thing} {good}.",
    ),
    (
        "Everyone claims that the {thing} is {good}.",
        "Everyone denies that the {thing} is {bad}.",
        "Nobody claims that the {thing} is {bad}.",
        "Nobody denies that the {thing} is {good}.",
    ),
)


def generate(count: int, seed: int, *, held_out: bool = False) -> list[dict[str, str]]:
    """``count`` different rows {"text", "label"} in random order, half of them positive if ``count`` is even.

    All templates get about the same number of rows. Groups of twins are divided once and for all into those
    for training and those ``held_out``, so that no sentence is ever in both, whatever the seeds.
    """
    rng = random.Random(seed)
    pools = [[group for group in _groups(forms) if _is_held_out(group) == held_out] for forms in TEMPLATES]
    for pool in pools:
        rng.shuffle(pool)
    drawn: list[list[dict[str, str]]] = [[] for _ in pools]
    total = 0
    while total < count:
        open_templates = [i for i, pool in enumerate(pools) if pool]
        if not open_templates:
            raise ValueError(f"there are only {total} such sentences")
        shortest = min(open_templates, key=lambda i: len(drawn[i]))
        group = pools[shortest].pop()[: count - total]
        drawn[shortest].extend(group)
        total += len(group)
    rows = [row for template in drawn for row in template]
    rng.shuffle(rows)
    return rows


def load(seed: int) -> dict[str, Rows]:
    """4,000 training rows drawn by ``seed`` and 800 validation rows that are always the same."""
    splits = {
        "train": generate(TRAIN_ROWS, seed),
        "validation": generate(VALIDATION_ROWS, _VALIDATION_SEED, held_out=True),
    }
    return {
        split: Rows(source=f"toy {split}", values=rows, numbers=range(1, len(rows) + 1))
        for split, rows in splits.items()
    }


def write(directory: Path, seed: int) -> None:
    """Write the rows of ``load(seed)`` as train.jsonl and validation.jsonl."""
    for split, rows in load(seed).items():
        write_text(directory / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows.values))


def _groups(forms: tuple[str, ...]) -> list[list[dict[str, str]]]:
    """All groups of a template: positive and negative sentences in turn."""
    return [
        [
            {"text": form.format(**filled), "label": label}
            for form in forms
            for label, filled in (("positive", words), ("negative", exchanged))
        ]
        for words, exchanged in _fillings(forms)
    ]


def _fillings(forms: tuple[str, ...]) -> Iterator[tuple[Mapping[str, str], Mapping[str, str]]]:
    """The words for the slots of a template, and the same with good and bad words exchanged."""
    slots = {slot for form in forms for _, slot, _, _ in Formatter().parse(form) if slot}
    for domain in DOMAINS:
        pairs_of_slots = {
            ("good", "bad"): domain.adjectives,
            ("loved", "hated"): VERBS,
            ("better", "worse"): COMPARATIVES,
            ("strengths", "weaknesses"): SIDES,
        }
        names, pairs = next((n, p) for n, p in pairs_of_slots.items() if slots & {*n})
        parts = permutations(domain.parts, 2) if "part" in slots else [("", "")]
        things = domain.things if "thing" in slots else ("",)
        others = OTHERS if "others" in slots else ("",)
        for pair, part, thing, people in product(pairs, parts, things, others):
            rest = {"part": part[0], "other_part": part[1], "thing": thing, "others": people}
            yield (
                {**rest, **dict(zip(names, pair, strict=True))},
                {
                    **rest,
                    **dict(zip(names, reversed(pair), strict=True)),
                },
            )


def _is_held_out(group: list[dict[str, str]]) -> bool:
    return crc32(group[0]["text"].encode()) % _HELD_OUT == 0
