"""Tags of words: files, alignment with sub-words, scores, and whole runs of a tiny model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForTokenClassification,
    ByT5Tokenizer,
    DataCollatorForTokenClassification,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
    pipeline,
)

import contraprune
import reference
from contraprune.callbacks import GradualPruning
from contraprune.cli import main
from contraprune.config import DataConfig, EvaluationConfig
from contraprune.errors import UserError
from contraprune.evaluation import evaluate_path
from contraprune.objectives import TokenLabels
from contraprune.tasks.token_classification import TokenClassification, are_entities, main_metric
from tasks.test_classification import failure, load
from tasks.test_files import write

TRAIN = [
    {"tokens": ["Ada", "Lovelace", "met", "Babbage", "."], "ner_tags": ["B-PER", "I-PER", "O", "B-PER", "O"]},
    {"tokens": ["London", "calling"], "ner_tags": ["B-LOC", "O"]},
]
VALIDATION = [{"tokens": ["Paris"], "ner_tags": ["B-LOC"]}, {"tokens": ["hm"], "ner_tags": ["O"]}]
NAMES = ("O", "B-LOC", "B-PER", "I-PER")
CONLL = """-DOCSTART- -X- O O

Ada NNP I-NP B-PER
Lovelace NNP I-NP I-PER
met VBD I-VP O
Babbage NNP I-NP B-PER
. . O O


-DOCSTART- -X- O O

London NNP I-NP B-LOC
calling VBG I-VP O
"""


def written(path: Path, rows: list[dict]) -> Path:
    """Rows in the format of the path's ending, CoNLL included."""
    if path.suffix in (".conll", ".txt"):
        sentences = [zip(*row.values(), strict=True) for row in rows]
        path.write_text("\n".join("".join(f"{word} {tag}\n" for word, tag in sentence) for sentence in sentences))
    elif path.suffix in (".csv", ".tsv"):
        write(path, [{key: " ".join(map(str, value)) for key, value in row.items()} for row in rows])
    else:
        write(path, rows)
    return path


def own(tmp_path: Path, train=TRAIN, validation=VALIDATION, ending=".jsonl", **changes) -> TokenClassification:
    return load(
        task_type="token_classification",
        train_file=written(tmp_path / f"train{ending}", train),
        validation_file=written(tmp_path / f"validation{ending}", validation),
        **changes,
    )


# ---- files ----


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".conll", ".txt"])
def test_every_format_gives_the_same_task(tmp_path, ending):
    task = own(tmp_path, ending=ending)
    assert (task.name, task.label_names, task.main_metric) == ("train", NAMES, "f1")
    assert task.auto_class is AutoModelForTokenClassification
    assert isinstance(task.objective, TokenLabels)
    assert task.train[:] == {
        "tokens": [row["tokens"] for row in TRAIN],
        "tags": [[2, 3, 0, 2, 0], [1, 0]],
        "idx": [0, 1],
    }
    assert task.evaluation["validation"]["tags"][:] == [[1], [0]]
    assert task.fingerprint == own(tmp_path).fingerprint


@pytest.mark.parametrize("content", [CONLL, CONLL.replace(" ", "\t"), CONLL.replace("\n", "\r\n"), "\ufeff" + CONLL])
def test_conll_files_with_more_columns_and_documents(tmp_path, content):
    (tmp_path / "train.conll").write_bytes(content.encode())
    task = load(task_type="token_classification", train_file=tmp_path / "train.conll", need_evaluation=False)
    assert task.train["tokens"][:] == [row["tokens"] for row in TRAIN]
    assert [[task.label_names[tag] for tag in row] for row in task.train["tags"]] == [r["ner_tags"] for r in TRAIN]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("EU\n", ", line 1: expected a token and its tag, found 1 column(s): 'EU'"),
        ("EU O\n\nid 5 x\nx O\n", ", line 3: expected 2 columns as in line 1, found 3 column(s): 'id 5 x'"),
        ("# id\nEU O\n# id 5\nx O\n", ", line 3: expected 2 columns as in line 2, found 3 column(s): '# id 5'"),
        ("# id 5\n\n# id 6\n", ": expected at least one row of data, found none"),
        ("EU O\ncall -100\n", ", line 1: column 'tags': expected a tag for every word, found -100"),
        ("-DOCSTART- O\n\n", ": expected at least one row of data, found none"),
        (b"EU O\n\xff\xff O\n", ", line 2: expected UTF-8 text, found byte 0xff"),
    ],
)
def test_broken_conll_files(tmp_path, content, message):
    path = tmp_path / "train.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert failure(task_type="token_classification", train_file=path, need_evaluation=False) == f"{path}{message}"


COMMENTS = """# newdoc
# text = Ada met Babbage
#
Ada B-PER
met O

# sent 2
# 1 a long comment
# O
5 O
# B-PER
"""


@pytest.mark.parametrize("content", [COMMENTS, COMMENTS.replace(" O", "\tO").replace(" B-PER", "\tB-PER")])
def test_conll_comments_are_told_from_the_token_of_a_number_sign(tmp_path, content):
    (tmp_path / "train.conll").write_text(content)
    task = load(task_type="token_classification", train_file=tmp_path / "train.conll", need_evaluation=False)
    assert task.label_names == ("O", "B-PER")
    assert task.train["tokens"][:] == [["Ada", "met"], ["#", "5", "#"]]
    assert task.train["tags"][:] == [[1, 0], [0, 0, 1]]


def test_conll_comments_before_lines_of_more_columns(tmp_path):
    path = tmp_path / "train.conll"
    path.write_text("# id 5 a\n\n# id 6\n" + CONLL.replace("\n\n", "\n\n# text = a, b\n", 1))
    task = load(task_type="token_classification", train_file=path, need_evaluation=False)
    assert task.train["tokens"][:] == [row["tokens"] for row in TRAIN]
    path.write_text("# # B-NP\n5 CD I-NP\n\nover IN B-PP\n# # B-NP\n5 CD I-NP\n\nx NN B-NP\n")
    task = load(task_type="token_classification", train_file=path, need_evaluation=False)
    assert task.train["tokens"][:] == [["#", "5"], ["over", "#", "5"], ["x"]]
    path.write_text("# #\n5 CD\n")
    task = load(task_type="token_classification", train_file=path, need_evaluation=False)
    assert task.train["tokens"][:] == [["#", "5"]]


def test_text_files_are_for_tokens_only(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("EU O\n")
    assert "expected a file ending in .jsonl, .json, .csv, .tsv, .parquet, found '.txt'" in failure(
        train_file=path, validation_file=path
    )


@pytest.mark.parametrize("tags", ["ner_tags", "tags", "labels", "label"])
@pytest.mark.parametrize("tokens", ["tokens", "words"])
def test_columns_found_by_their_usual_names(tmp_path, tokens, tags):
    rows = [
        {"id": "7", tokens: row["tokens"], "pos_tags": [0] * len(row["tokens"]), tags: row["ner_tags"]} for row in TRAIN
    ]
    assert own(tmp_path, rows, rows).train[:] == own(tmp_path).train[:]


def test_columns_named_by_flags(tmp_path):
    rows = [{"tokens": ["?"], "w": row["tokens"], "ner_tags": ["?"], "t": row["ner_tags"]} for row in TRAIN]
    assert own(tmp_path, rows, rows, text_columns=["w"], label_column="t").train[:] == own(tmp_path).train[:]


def test_a_row_may_be_empty(tmp_path, bert):
    task = own(tmp_path, [{"tokens": [], "ner_tags": []}, *TRAIN])
    assert task.train["tags"][0] == []
    assert task.encode(task.train, bert, max_length=8)[0]["labels"] == [-100, -100]


NUMBERED = [{"tokens": row["tokens"], "ner_tags": [NAMES.index(tag) for tag in row["ner_tags"]]} for row in TRAIN]


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".conll"])
def test_numbered_tags_get_their_names_from_the_user(tmp_path, ending):
    names = "O,B-LOC,B-PER,I-PER,I-LOC"
    task = own(tmp_path, NUMBERED, NUMBERED[1:], ending, labels=[names])
    assert task.label_names == tuple(names.split(","))
    assert task.main_metric == "f1"
    assert task.train["tags"][:] == [row["ner_tags"] for row in NUMBERED]
    numbered = [{"tokens": ["Paris"], "ner_tags": [1]}, {"tokens": ["hm"], "ner_tags": [0]}]
    by_number = own(tmp_path, NUMBERED, numbered, ending, labels=[names])
    assert by_number.fingerprint == own(tmp_path, labels=names.split(",")).fingerprint


def test_numbered_tags_in_text_mean_the_same_in_every_format(tmp_path):
    rows = [{key: " ".join(map(str, value)) for key, value in row.items()} for row in NUMBERED]
    files = [write(tmp_path / name, rows) for name in ("t.jsonl", "v.csv")]
    flags = {"task_type": "token_classification", "labels": [",".join(NAMES)]}
    task = load(train_file=files[0], validation_file=files[1], **flags)
    assert task.train["tags"][:] == task.evaluation["validation"]["tags"][:] == [row["ner_tags"] for row in NUMBERED]


def test_tags_may_be_whole_floats(tmp_path):
    rows = [{**row, "ner_tags": [*map(float, row["ner_tags"])]} for row in NUMBERED]
    task = own(tmp_path, rows, rows, labels=[",".join(NAMES)])
    assert task.train["tags"][:] == [row["ner_tags"] for row in NUMBERED]


def test_numbered_tags_without_names_are_numbers_until_a_model_names_them(tmp_path):
    task = own(tmp_path, NUMBERED, NUMBERED)
    assert task.label_names == ("0", "1", "2", "3")
    assert task.main_metric == "accuracy"
    with pytest.warns(UserWarning, match="matched by position"):
        named = task.for_model(config_of(NAMES), "m")
    assert (named.label_names, named.main_metric, named.label_order) == (NAMES, "f1", (0, 1, 2, 3))


@pytest.mark.parametrize("rows", [VALIDATION, [{"tokens": ["Paris"], "ner_tags": [1]}]])
def test_a_file_to_evaluate_on_may_lack_tags_that_the_model_has(tmp_path, rows):
    file = write(tmp_path / "validation.jsonl", rows)
    task = load(task_type="token_classification", validation_file=file, need_train=False, known_labels=NAMES)
    assert task.label_names == NAMES
    assert task.evaluation["validation"]["tags"][0] == [1]


def test_numbers_that_are_the_models_names_are_no_positions(tmp_path):
    file = write(tmp_path / "validation.jsonl", [{"tokens": ["a", "b"], "ner_tags": [1, 2]}])
    task = load(task_type="token_classification", validation_file=file, need_train=False, known_labels=("1", "2", "3"))
    assert task.evaluation["validation"]["tags"][:] == [[0, 1]]


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (
            [*TRAIN, {"tokens": ["a", "b"], "ner_tags": ["O"]}],
            None,
            "train.jsonl, line 3: expected a tag for every token, found 2 tokens, 1 tags",
        ),
        (
            [*TRAIN, {"tokens": ["a", "b"], "ner_tags": ["O", None]}],
            None,
            "train.jsonl, line 3: column 'ner_tags': expected a label, found none",
        ),
        (
            [*TRAIN, {"tokens": ["a", 7], "ner_tags": ["O", "O"]}],
            None,
            "train.jsonl, line 3: expected text in column 'tokens', found 7",
        ),
        (
            [*TRAIN, {"tokens": ["a"], "ner_tags": [1]}],
            None,
            "train.jsonl, line 3: column 'ner_tags': expected all labels to be names or all to be whole numbers, "
            "found 'B-PER' before 1",
        ),
        (
            [*TRAIN, {"tokens": None, "ner_tags": ["O"]}],
            None,
            "train.jsonl, line 3: expected a list or words with spaces in column 'tokens', found null",
        ),
        (
            [{"tokens": ["a", "b"], "ner_tags": [0, -100]}],
            None,
            "train.jsonl, line 1: column 'ner_tags': expected a tag for every word, found -100",
        ),
        (
            [{"tokens": ["a"], "ner_tags": ["O"]}],
            None,
            "train.jsonl: expected at least two different labels in column 'ner_tags', found only 'O'",
        ),
        (
            TRAIN,
            [*VALIDATION, {"tokens": ["ein", "Ort"], "ner_tags": ["O", "B-ORG"]}],
            "validation.jsonl, line 3: column 'ner_tags': expected a label of {dir}/train.jsonl "
            "('O', 'B-LOC', 'B-PER', 'I-PER'), found 'B-ORG'",
        ),
        (
            TRAIN,
            [{"tokens": [], "ner_tags": []}],
            "validation.jsonl: expected at least one token in column 'tokens', found none",
        ),
        (
            [{"text": "a b", "tags": "O O"}],
            None,
            "train.jsonl: expected a column tokens or words (else --text_columns), found columns 'text', 'tags'",
        ),
        (
            [{"tokens": "a b", "tags": "O O", "ner_tags": "O O"}],
            None,
            "train.jsonl: expected a column ner_tags or tags or labels or label (else --label_column), "
            "found 'ner_tags', 'tags'; choose with --label_column",
        ),
    ],
)
def test_own_files_that_cannot_be_used(tmp_path, train, validation, message):
    files = {
        "train_file": write(tmp_path / "train.jsonl", train),
        "validation_file": write(tmp_path / "validation.jsonl", validation or VALIDATION),
    }
    found = failure(task_type="token_classification", **files)
    assert found == f"{tmp_path}/{message.replace('{dir}', str(tmp_path))}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["O,B-PER,B-LOC"]}, "line 1: column 'ner_tags': expected a label of --labels ("),
        ({"labels": ["O,O"]}, "--labels: expected at least two different names, found 'O', 'O'"),
        ({"labels": ["O"]}, "--labels: expected at least two different names, found 'O'"),
        ({"text_columns": ["a", "b"]}, "--text_columns: expected one column of tokens, found 'a', 'b'"),
        ({"label_columns": ["a,b"]}, "--label_columns: only for --task_type multi_label, found token_classification"),
        ({"label_separator": ","}, "--label_separator: only for --task_type multi_label, found token_classification"),
    ],
)
def test_flags_that_cannot_be_used(tmp_path, changes, message):
    file = write(tmp_path / "train.jsonl", TRAIN)
    assert message in failure(task_type="token_classification", train_file=file, need_evaluation=False, **changes)


# ---- words and their pieces ----


@pytest.fixture(scope="module")
def bert(minilm):
    return AutoTokenizer.from_pretrained(minilm)


@pytest.fixture(scope="module")
def byte_level():
    """A byte-level tokenizer like RoBERTa's, which tells a word in a text from one at its start by the space."""
    texts = ["the quick brown fox jumps over the lazy dog and the unbelievable hedgehog"] * 4
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return RobertaTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])


WORDS = [
    ["The", "unbelievably", "quick", "fox", "jumps"],
    ["A", "", "word", "\u200d", "of", "nothing"],
    ["a b", "two", "words", "in-one"],
    ["x"] * 40,
]


def tagged(words):
    return Dataset.from_dict(
        {
            "tokens": words,
            "tags": [[(3 * i + len(word)) % 4 for i, word in enumerate(row)] for row in words],
            "idx": list(range(len(words))),
        }
    )


def task_of(names=NAMES, **changes) -> TokenClassification:
    common = {"name": "t", "train": None, "evaluation": {}, "fingerprint": ""}
    return TokenClassification(**common, label_names=tuple(names), main_metric=main_metric(names), **changes)


@pytest.mark.parametrize("max_length", [4, 9, 64])
def test_first_pieces_carry_the_tags_of_their_words(bert, max_length):
    dataset = tagged(WORDS)
    encoded = task_of().encode(dataset, bert, max_length=max_length)
    for row, source in zip(encoded, dataset, strict=True):
        ids, labels, words = [], [], []
        for number, (word, tag) in enumerate(zip(source["tokens"], source["tags"], strict=True)):
            pieces = bert(word, add_special_tokens=False)["input_ids"]
            for place, piece in enumerate(pieces):
                if len(ids) < max_length - 2:
                    ids.append(piece)
                    labels.append(tag if place == 0 else -100)
                    words += [number] if place == 0 else []
        assert row["input_ids"] == [bert.cls_token_id, *ids, bert.sep_token_id]
        assert row["labels"] == [-100, *labels, -100]
        assert row["words"] == words
        assert row["length"] == len(row["input_ids"]) == len(row["attention_mask"])
    assert max(encoded["length"]) == min(max_length, 42)


@pytest.mark.parametrize("prefix_space", [False, True])
def test_byte_level_tokenizers_read_words_as_in_running_text(byte_level, prefix_space, tmp_path):
    byte_level.save_pretrained(tmp_path)
    tokenizer = RobertaTokenizer.from_pretrained(tmp_path, add_prefix_space=prefix_space)
    words = [["the", "unbelievable", "fox", "over"], ["dog"], ["the"] * 30]
    encoded = task_of().encode(tagged(words), tokenizer, max_length=24)
    for row, own_words in zip(encoded, words, strict=True):
        text = tokenizer(" ".join(own_words), truncation=True, max_length=24, return_offsets_mapping=True)
        assert row["input_ids"] == text["input_ids"]
        # A new word begins where the text up to the token's end has one word more than up to the token before.
        seen, firsts = 0, []
        for _, end in text["offset_mapping"]:
            count = len(" ".join(own_words)[:end].split())
            firsts.append(count > seen)
            seen = max(seen, count)
        assert [label != -100 for label in row["labels"]] == firsts
    assert encoded["words"][:2] == [[0, 1, 2, 3], [0]]


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(UserError, match=r"expected a fast tokenizer .*, found ByT5Tokenizer"):
        task_of().encode(tagged(WORDS), ByT5Tokenizer(), max_length=16)


def test_batches_are_padded_with_labels_that_count_nowhere(bert):
    task = task_of()
    encoded = task.encode(tagged(WORDS), bert, max_length=16).remove_columns("words")
    collator = task.collator(bert)
    assert isinstance(collator, DataCollatorForTokenClassification)
    batch = collator(list(encoded))
    assert batch["labels"].shape == batch["input_ids"].shape == (4, 16)
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    assert batch["idx"].tolist() == [0, 1, 2, 3]


def test_rows_have_no_class(bert):
    assert task_of().classes(task_of().encode(tagged(WORDS), bert, max_length=16)) is None


# ---- scores ----

SCHEMES = {
    "iob2": ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"),
    "iob1": ("O", "I-PER", "I-a-b", "B-PER"),
    "iobes": ("O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("PER", "LOC"))),
    "bilou": ("O", *(f"{prefix}-{kind}" for prefix in "BILU" for kind in ("PER", "LOC"))),
    "bare": ("O", "B", "I"),
}


def answered(names, right, predicted, missing):
    """Outputs, encoded rows and data set of predicted tag ids; words in ``missing`` (row, word) were never seen."""
    outputs, labels, words = [], [], []
    for row, (one, other) in enumerate(zip(right, predicted, strict=True)):
        seen = [word for word in range(len(one)) if (row, word) not in missing]
        # special tokens and a second piece of every word, with outputs that count nowhere
        labels.append([-100, *(value for word in seen for value in (one[word], -100)), -100])
        words.append(seen)
        logits = np.zeros((len(labels[-1]), len(names)), dtype=np.float32)
        for place, word in enumerate(seen):
            logits[1 + 2 * place, other[word]] = 1.0
            logits[2 + 2 * place, (other[word] + 1) % len(names)] = 9.0
        outputs.append(logits)
    encoded = Dataset.from_dict({"labels": labels, "words": words})
    return outputs, encoded, Dataset.from_dict({"tags": right})


@st.composite
def tagging(draw, names):
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    rows = [st.lists(st.integers(0, len(names) - 1), min_size=n, max_size=n) for n in lengths]
    right, predicted = ([draw(row) for row in rows] for _ in range(2))
    keep = draw(st.booleans())  # most tags right, else most entities are missed
    if keep:
        predicted = [
            [a if i % 3 else b for i, (a, b) in enumerate(zip(r, p, strict=True))]
            for r, p in zip(right, predicted, strict=True)
        ]
    missing = draw(st.sets(st.tuples(st.integers(0, len(lengths) - 1), st.integers(0, 8)), max_size=4))
    return right, predicted, missing


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_entities_are_counted_as_in_conll(scheme, data):
    names = SCHEMES[scheme]
    right, predicted, missing = data.draw(tagging(names))
    found = task_of(names).metrics(*answered(names, right, predicted, missing))
    as_read = [
        [0 if (row, word) in missing else tag for word, tag in enumerate(tags)] for row, tags in enumerate(predicted)
    ]
    named = [[[names[tag] for tag in row] for row in rows] for rows in (right, as_read)]
    assert found == pytest.approx(reference.entity_scores(*named))


def test_hand_counted_entities():
    names = SCHEMES["iob2"]
    right = [[1, 2, 0, 3, 0], [3, 4, 4], [1]]  # PER PER - LOC - / LOC LOC LOC / PER: 4 entities
    predicted = [[1, 2, 0, 1, 0], [3, 4, 0], [1]]  # of 4 found, the first and the last are right
    scores = task_of(names).metrics(*answered(names, right, predicted, set()))
    assert scores == {"f1": 0.5, "precision": 0.5, "recall": 0.5, "accuracy": 7 / 9}
    # The last sentence was cut before its entity, which is then missed: 1 of 3 found, 1 of 4 to find.
    scores = task_of(names).metrics(*answered(names, right, predicted, {(2, 0)}))
    assert scores == pytest.approx({"f1": 2 / 7, "precision": 1 / 3, "recall": 1 / 4, "accuracy": 6 / 9})


def test_nothing_to_find_and_nothing_found(recwarn):
    scores = task_of().metrics(*answered(NAMES, [[0, 0]], [[0, 0]], set()))
    assert scores == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 1.0}
    assert not recwarn.list


@pytest.mark.parametrize(
    ("names", "expected"),
    [(names, True) for names in SCHEMES.values()]
    + [
        (("o", "b-per"), True),
        (("NN", "VB", "."), False),
        (("O", "PER"), False),
        (("O", "B-PER", "x"), False),
        (("0", "1"), False),
    ],
)
def test_what_tags_of_entities_look_like(names, expected):
    assert are_entities(names) == expected
    assert task_of(names).main_metric == ("f1" if expected else "accuracy")


@settings(max_examples=60, deadline=None)
@given(case=tagging(("NN", "VB", ".", "X")))
def test_other_tags_are_scored_one_by_one_and_unseen_words_are_wrong(case):
    names = ("NN", "VB", ".", "X")
    right, predicted, missing = case
    found = task_of(names).metrics(*answered(names, right, predicted, missing))
    pairs = [
        (tag, None if (row, word) in missing else predicted[row][word])
        for row, tags in enumerate(right)
        for word, tag in enumerate(tags)
    ]
    seen = {tag for pair in pairs for tag in pair} - {None}
    macro = [reference.f1([(one == tag, other == tag) for one, other in pairs]) for tag in seen]
    expected = {"accuracy": sum(one == other for one, other in pairs) / len(pairs), "f1_macro": np.mean(macro)}
    assert found == pytest.approx(expected)


# ---- models ----


def config_of(names):
    return BertConfig(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})


def test_models_are_matched_by_the_names_of_their_labels():
    task = task_of().for_model(config_of(["i-per", "B_LOC", "O", "b-PER"]), "m")
    assert task.label_order == (2, 1, 3, 0)
    assert task.label_names == NAMES
    with pytest.raises(UserError, match=r"^m: expected a model with the 4 labels 'O', 'B-LOC', .* found 3: 'O', 'B'"):
        task_of().for_model(config_of(["O", "B", "I"]), "m")


FIRST = ["ada", "grace", "alan", "emmy", "paul", "sofia"]
LAST = ["lovelace", "hopper", "turing", "noether", "erdos", "kowalewska"]
CITIES = ["london", "paris", "göttingen", "stockholm"]


def sentences(count: int, seed: int) -> list[dict]:
    """People who went to cities."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        person = [str(rng.choice(FIRST)), str(rng.choice(LAST))][: rng.integers(1, 3)]
        words = [*person, "travelled", "unbelievably", "often", "to", str(rng.choice(CITIES)), "."]
        tags = ["B-PER", "I-PER"][: len(person)] + ["O"] * 4 + ["B-LOC", "O"]
        cut = int(rng.integers(1, len(words) + 1))
        rows.append({"tokens": words[:cut], "ner_tags": tags[:cut]})
    return rows


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    return {
        "task_type": "token_classification",
        "train_file": str(write(tmp_path / "train.jsonl", sentences(48, 0))),
        "validation_file": str(write(tmp_path / "validation.jsonl", sentences(30, 1))),
    }


@pytest.fixture(scope="module")
def tagger(minilm, tmp_path_factory) -> Path:
    """A random tiny BERT for the four tags: ``teacher``, and ``turned``, the same with its labels in another order."""
    folder = tmp_path_factory.mktemp("tagger")
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(tokenizer), **sizes, initializer_range=0.2)
    config.id2label, config.label2id = config_of(NAMES).id2label, config_of(NAMES).label2id
    torch.manual_seed(0)
    model = BertForTokenClassification(config)
    model.save_pretrained(folder / "teacher")
    order = [3, 0, 2, 1]
    with torch.no_grad():
        for parameter in (model.classifier.weight, model.classifier.bias):
            parameter.copy_(parameter[order])
    turned = config_of([NAMES[i].lower() for i in order])
    model.config.id2label, model.config.label2id = turned.id2label, turned.label2id
    model.save_pretrained(folder / "turned")
    for name in ("teacher", "turned"):
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("max_length", [6, 32])
@pytest.mark.parametrize("name", ["teacher", "turned"])
def test_evaluation_equals_one_sentence_at_a_time(tagger, files, max_length, name):
    model = AutoModelForTokenClassification.from_pretrained(tagger / name).eval()
    tokenizer = AutoTokenizer.from_pretrained(tagger / name)
    right, predicted = [], []
    for row in sentences(30, 1):
        ids, firsts = [], []
        for word in row["tokens"]:
            firsts.append(1 + len(ids))
            ids += tokenizer(word, add_special_tokens=False)["input_ids"]
        ids = [tokenizer.cls_token_id, *ids[: max_length - 2], tokenizer.sep_token_id]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        tags = [model.config.id2label[int(logits[i].argmax())].upper() if i < len(ids) - 1 else "O" for i in firsts]
        right.append(row["ner_tags"])
        predicted.append(tags)
    data = DataConfig(task_type=files["task_type"], validation_file=files["validation_file"], max_length=max_length)
    found = evaluate_path(str(tagger / name), data, EvaluationConfig(batch_size=7, quiet=True))
    assert found.metrics == pytest.approx(reference.entity_scores(right, predicted))
    assert 0 < found.metrics["recall"] < 1


def options_of(tiny_options, files, **changes):
    return {k: v for k, v in tiny_options.items() if k not in ("task", "teacher")} | files | changes


@pytest.fixture(scope="module")
def fine_tuned(tiny, tmp_path_factory) -> Path:
    """The run directory of a tiny model that has learned who went where."""
    folder = tmp_path_factory.mktemp("fine_tuned")
    results = contraprune.finetune(
        model=str(tiny / "pretrained"),
        task_type="token_classification",
        train_file=str(write(folder / "train.jsonl", sentences(48, 0))),
        validation_file=str(write(folder / "validation.jsonl", sentences(30, 1))),
        output_dir=str(folder / "run"),
        num_train_epochs=14,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        max_length=24,
        save_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    assert next(iter(results["metrics"])) == "f1"
    assert results["metrics"]["f1"] > 0.95
    return folder / "run"


@pytest.fixture
def learned(tiny_options, fine_tuned, files) -> dict[str, object]:
    """The options to prune it."""
    return options_of(tiny_options, files, teacher=str(fine_tuned / "model"), max_train_samples=48)


def test_finetune_prune_and_evaluate(learned, files, tmp_path, capsys):
    config = AutoModelForTokenClassification.from_pretrained(learned["teacher"]).config
    assert config.id2label == dict(enumerate(NAMES))
    run = tmp_path / "run"
    flags = [f"--{name}={value}" for name, value in learned.items()]
    assert main(["prune", *flags, "--density", "0.3", "--num_train_epochs", "6"]) == 0
    results = json.loads((run / "results.json").read_text())
    assert results["teacher_metrics"]["f1"] > 0.95
    assert results["metrics"].keys() == {"f1", "precision", "recall", "accuracy"}
    assert results["density"]["encoder"] == pytest.approx(0.3, abs=1e-3)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    parts = {key for entry in log for key in entry if key.startswith("loss_")}
    assert parts == {
        "loss_ce",
        "loss_kd",
        *(f"loss_{s}_unsupervised" for s in ("pretrained", "snapshots", "finetuned")),
    }
    capsys.readouterr()
    data = ["--task_type", "token_classification", "--validation_file", files["validation_file"], "--max_length", "24"]
    assert main(["evaluate", str(run / "model"), *data, "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == results["metrics"]


def test_heads_and_neurons(learned, tmp_path):
    results = contraprune.prune(**(learned | {"num_train_epochs": 2}), method="taylor", density=0.5, num_stages=2)
    assert results["stages"][-1]["heads"] != [4, 4]
    model = contraprune.load(tmp_path / "run")
    assert type(model).__name__ == "BertForTokenClassification"
    assert model.config.id2label == dict(enumerate(NAMES))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    found = pipeline("token-classification", model=model, tokenizer=tokenizer)(
        "ada lovelace travelled often to paris ."
    )
    assert {answer["entity"] for answer in found} <= {*NAMES}


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    tiny_options, tagger, files, tmp_path, monkeypatch
):
    options = options_of(tiny_options, files, teacher=str(tagger / "teacher"), save_strategy="steps", save_steps=1)
    contraprune.prune(**(options | {"output_dir": str(tmp_path / "whole")}))
    step_end = GradualPruning.on_step_end

    def interrupted(self, args, state, control, **kwargs):
        step_end(self, args, state, control, **kwargs)
        if state.global_step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(GradualPruning, "on_step_end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        contraprune.prune(**options)
    monkeypatch.undo()
    contraprune.prune(**options)
    whole, resumed = (contraprune.load(tmp_path / name).state_dict() for name in ("whole", "run"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_teacher_whose_labels_are_ordered_otherwise_gives_the_same_run(tiny_options, tagger, files, tmp_path):
    results = [
        contraprune.prune(
            **options_of(tiny_options, files, teacher=str(tagger / name), output_dir=str(tmp_path / name))
        )
        for name in ("teacher", "turned")
    ]
    assert results[0]["teacher_metrics"] == results[1]["teacher_metrics"]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert contraprune.load(tmp_path / "turned").config.id2label[0] == "i-per"


def distilbert(folder: Path, tokenizer) -> None:
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 64}
    DistilBertModel(DistilBertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def roberta(folder: Path, tokenizer) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = RobertaConfig(vocab_size=len(tokenizer), **sizes, max_position_embeddings=64, pad_token_id=1)
    RobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("family", ["distilbert", "roberta"])
def test_other_families(tiny_options, files, tmp_path, bert, byte_level, family):
    # MiniLM's tokenizer makes token_type_ids, which DistilBERT does not take
    if family == "distilbert":
        distilbert(tmp_path / "pretrained", bert)
    else:
        roberta(tmp_path / "pretrained", byte_level)
    options = options_of(tiny_options, files, model=str(tmp_path / "pretrained"), max_length=40, num_train_epochs=1)
    training = {name: value for name, value in options.items() if name not in ("extra_examples", "cache_dir")}
    contraprune.finetune(**(training | {"output_dir": str(tmp_path / "teacher")}))
    results = contraprune.prune(**options, teacher=str(tmp_path / "teacher" / "model"), density=0.5)
    data = DataConfig(task_type=files["task_type"], validation_file=files["validation_file"], max_length=40)
    again = evaluate_path(str(tmp_path / "run" / "model"), data, EvaluationConfig(quiet=True))
    assert again.metrics == results["metrics"]
