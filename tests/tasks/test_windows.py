"""Windows and answer positions against a loop over the characters of the context."""

import json
from itertools import pairwise

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from contraprune.errors import UserError
from contraprune.tasks.windows import OF_METRICS, WindowMaker

CONTEXT = "  Anna was born in 1963 in Łódź, Poland.  Her brother Kazimierz, 12 years older, left for New York. "
ANSWERS = ["Anna", "1963", "Łódź, Poland", "Kazimierz", "left for New York.", "New York", "zim", " 12 ", ".  Her"]


def rows(answers=ANSWERS, question="Who, where, when?", context=CONTEXT):
    return [
        {
            "question": question,
            "context": context,
            "answers": {"text": [text], "answer_start": [context.index(text)]} if text is not None else
            {"text": [], "answer_start": []},
            "idx": number,
        }
        for number, text in enumerate(answers)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def bert(minilm):
    return AutoTokenizer.from_pretrained(minilm)


@pytest.fixture(scope="module")
def roberta_like():
    """Words and punctuation as tokens, two separators between the texts, no token types, padding on the left."""
    words = {
        word
        for text in (CONTEXT, "Who, where, when?")
        for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text)
    }
    vocabulary = {word: number for number, word in enumerate(["<s>", "</s>", "<pad>", "<unk>", *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


@pytest.fixture(params=["bert", "roberta_like"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def windows(tokenizer, given, *, max_length=24, overlap=None, of_metrics=True):
    maker = WindowMaker(tokenizer, max_length=max_length, overlap=overlap, of_metrics=of_metrics)
    dataset = Dataset.from_list(given)
    return dataset.map(maker, batched=True, remove_columns=dataset.column_names, keep_in_memory=True)


def expected_positions(row, window):
    """First and last token that has a character of the answer, if the window has all that are in some token."""
    if not row["answers"]["text"]:
        return 0, 0
    start = row["answers"]["answer_start"][0]
    characters = [at for at in range(start, start + len(row["answers"]["text"][0])) if not row["context"][at].isspace()]
    tokens = []
    for at in characters:
        holding = [
            number
            for number, span in enumerate(zip(window["char_starts"], window["char_ends"], strict=True))
            if span[0] <= at < span[1]
        ]
        if not holding:
            return 0, 0
        tokens += holding
    return window["first"] + min(tokens), window["first"] + max(tokens)


@pytest.mark.parametrize(("max_length", "overlap"), [(24, None), (24, 0), (24, 15), (384, 128)])
def test_positions_against_characters(tokenizer, max_length, overlap):
    given = rows()
    made = windows(tokenizer, given, max_length=max_length, overlap=overlap)
    answered = set()
    for window in made:
        row = given[window["question"]]
        found = window["start_positions"], window["end_positions"]
        assert found == expected_positions(row, window)
        if found != (0, 0):
            answered.add(window["question"])
            start, end = (at - window["first"] for at in found)
            text = row["context"][window["char_starts"][start] : window["char_ends"][end]]
            wanted = row["answers"]["text"][0].strip()
            assert wanted in text
            assert wanted in (text, "zim")  # which lies within a word
    if max_length == 384:
        assert answered == set(range(len(given)))


def test_windows_cover_the_context_and_overlap_as_asked(tokenizer):
    made = windows(tokenizer, rows(["Anna"]), max_length=24, overlap=5)
    alone = tokenizer(CONTEXT, add_special_tokens=False, return_offsets_mapping=True)
    spans = [list(zip(window["char_starts"], window["char_ends"], strict=True)) for window in made]
    assert len(spans) > 1
    joined = spans[0]
    for before, after in pairwise(spans):
        assert after[:5] == before[-5:]
        joined = joined + after[5:]
    assert joined == alone["offset_mapping"]
    for window in made:
        context = window["input_ids"][window["first"] : window["first"] + len(window["char_starts"])]
        at = alone["offset_mapping"].index((window["char_starts"][0], window["char_ends"][0]))
        assert context == alone["input_ids"][at : at + len(context)]
        assert window["length"] == len(window["input_ids"]) == len(window["attention_mask"]) <= 24


def test_only_what_the_model_has(bert, roberta_like):
    ours = {"start_positions", "end_positions", "length", "input_ids", "attention_mask"}
    assert set(windows(roberta_like, rows(), of_metrics=False).column_names) == ours
    assert set(windows(bert, rows(), of_metrics=False).column_names) == ours | {"token_type_ids"}
    assert set(windows(bert, rows()).column_names) == ours | {"token_type_ids", *OF_METRICS}


def test_questions_without_an_answer_and_contexts_without_words(tokenizer):
    empty = [row | {"context": context} for row, context in zip(rows([None, None]), ["", " \n"], strict=True)]
    made = windows(tokenizer, rows([None]) + [row | {"idx": row["idx"] + 1} for row in empty], max_length=384)
    assert made["start_positions"][:] == made["end_positions"][:] == [0, 0, 0]
    assert made["question"][:] == [0, 1, 2]
    assert made["char_starts"][:][1:] == [[], []]


def test_a_question_longer_than_the_window_is_cut(tokenizer):
    long, short = "when " * 50, "when " * 5
    limit = 24 // 3 - tokenizer.num_special_tokens_to_add(pair=True)
    made = windows(tokenizer, rows(["1963"], question=long))
    same = windows(tokenizer, rows(["1963"], question=short[: 5 * limit]))
    assert made["input_ids"][:] == same["input_ids"][:]
    assert max(made["start_positions"][:]) > 0


def test_a_question_of_tokens_that_share_a_character_is_cut_too(bert):
    maker = WindowMaker(bert, max_length=24, overlap=None, of_metrics=False)
    assert maker._cut("x" * 4) == "x" * 4
    cut = maker._cut("!?" * 40)
    assert len(bert(cut, add_special_tokens=False)["input_ids"]) == 5


def test_settings_that_cannot_be(bert):
    def failure(**settings):
        with pytest.raises(UserError) as caught:
            WindowMaker(bert, **({"max_length": 24, "overlap": None, "of_metrics": False} | settings))
        return str(caught.value)

    assert failure(overlap=16) == "--doc_stride 16: expected less than 16 (two thirds of --max_length 24)"
    assert failure(max_length=10).startswith("--max_length 10: expected room for a question")
    slow = type("Slow", (), {"is_fast": False, "name_or_path": "some/model"})()
    with pytest.raises(UserError, match="some/model: question answering needs a fast tokenizer"):
        WindowMaker(slow, max_length=24, overlap=None, of_metrics=False)


def test_real_data(data, bert):
    """Only answers that begin or end within a word (8 of 18) cannot be spelt by tokens."""
    path = data / "squad" / "validation.jsonl"
    with path.open(encoding="utf-8") as file:
        given = [json.loads(next(file)) | {"idx": number} for number in range(300)]
    found = set()
    for window in windows(bert, given, max_length=128, overlap=40):
        row, at = given[window["question"]], given[window["question"]]["answers"]["answer_start"][0]
        assert (window["start_positions"], window["end_positions"]) == expected_positions(row, window)
        if window["start_positions"]:
            found.add(window["question"])
            start, end = (window[f"{side}_positions"] - window["first"] for side in ("start", "end"))
            text, answer = (
                row["context"][window["char_starts"][start] : window["char_ends"][end]],
                row["answers"]["text"][0],
            )
            beside = row["context"][max(0, at - 1) : at] + row["context"][at + len(answer) :][:1]
            assert text == answer or (answer in text and any(map(str.isalnum, beside)))
    assert found == set(range(300))
