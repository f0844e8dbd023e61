"""The task: files and flags, what a model reads and answers, metrics of stored predictions."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, BertConfig

from contraprune.errors import UserError
from contraprune.tasks.question_answering import QuestionAnswering
from contraprune.tasks.spans import AnswerOptions
from tasks.test_classification import failure, load
from tasks.test_files import write

CONTEXT = "Anna was born in 1963 in Poland. Her brother Jan lives in New York."


def row(question, *answers, context=CONTEXT):
    return {
        "question": question,
        "context": context,
        "answers": {"text": list(answers), "answer_start": [context.index(answer) for answer in answers]},
    }


ROWS = [row("When was Anna born?", "1963", "in 1963"), row("Where does he live now?", "New York")]
UNANSWERABLE = [*ROWS, row("Who is Mary?")]


def own(tmp_path, train=ROWS, validation=ROWS, ending=".jsonl", **changes) -> QuestionAnswering:
    return load(
        task_type="question_answering",
        train_file=write(tmp_path / f"train{ending}", train),
        validation_file=write(tmp_path / f"validation{ending}", validation),
        **changes,
    )


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet"])
def test_own_files(tmp_path, ending):
    task = own(tmp_path, UNANSWERABLE, ROWS, ending)
    assert (task.name, task.label_names, task.main_metric) == ("train", (), "f1")
    assert task.auto_class is AutoModelForQuestionAnswering
    assert task.train.to_list() == [row | {"idx": number} for number, row in enumerate(UNANSWERABLE)]
    assert task.evaluation["validation"].to_list() == task.train.to_list()[:2]


def test_other_columns_and_the_first_rows(tmp_path):
    def renamed(rows):
        return [{"q": row["question"], "text": row["context"], "a": row["answers"], "id": "7"} for row in rows]

    flags = {"text_columns": ["q", "text"], "label_column": "a"}
    task = own(tmp_path, renamed(ROWS), renamed(ROWS), max_train_samples=1, **flags)
    assert task.train.to_list() == [ROWS[0] | {"idx": 0}]


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_in_tables_of_texts_answers_are_json(tmp_path, ending):
    answers = {"text": ["Rome", "in Rome"], "answer_start": [10, 7]}
    row = {"question": "Where?", "context": "I live in Rome."}
    file = write(tmp_path / f"rows{ending}", [row | {"answers": json.dumps(answers)}])
    task = load(task_type="question_answering", train_file=file, validation_file=file)
    assert task.train["answers"][0] == answers
    for wrong in ("Rome", "{'text': ['Rome']}", "3"):
        file = write(tmp_path / f"rows{ending}", [row | {"answers": wrong}])
        message = failure(task_type="question_answering", train_file=file, validation_file=file)
        assert message.startswith(f"{file}, line 2: column 'answers': expected {{")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": None}, 'expected {"text": ["…"], "answer_start": [0]} with as many of both, found None'),
        ({"answers": {"text": ["1963"]}}, "with as many of both, found {'text': ['1963']}"),
        ({"answers": {"text": ["1963"], "answer_start": [17, 18]}}, "with as many of both"),
        ({"answers": {"text": ["1963"], "answer_start": ["17"]}}, "with as many of both"),
        ({"answers": {"text": [1963], "answer_start": [17]}}, "with as many of both"),
        ({"answers": [{"text": "1963", "answer_start": 17}]}, "with as many of both"),
        (
            {"answers": {"text": ["1963"], "answer_start": [16]}},
            "expected the answer '1963' at character 16 of the context, found ' 196'",
        ),
        ({"answers": {"text": ["1963"], "answer_start": [-50]}}, "at character -50 of the context, found ''"),
        ({"answers": {"text": ["1963"], "answer_start": [900]}}, "at character 900 of the context, found ''"),
        ({"answers": {"text": [" "], "answer_start": [4]}}, "expected the answer ' ' at character 4"),
    ],
)
def test_answers_that_cannot_be(tmp_path, changes, message):
    file = write(tmp_path / "rows.jsonl", [ROWS[1], ROWS[0] | changes])
    found = failure(task_type="question_answering", train_file=file, validation_file=file)
    assert found.startswith(f"{file}, line 2: column 'answers': expected")
    assert message in found


@pytest.mark.parametrize("missing", ["question", "context", "answers"])
def test_a_missing_column_is_named(tmp_path, missing):
    lacking = {name: value for name, value in ROWS[1].items() if name != missing}
    file = write(tmp_path / "rows.jsonl", [ROWS[0], lacking])
    message = failure(task_type="question_answering", train_file=file, validation_file=file)
    assert message.startswith(f"{file}, line 2: expected a column '{missing}'")


def test_flags_that_cannot_be(tmp_path):
    file = write(tmp_path / "rows.jsonl", ROWS)
    files = {"task_type": "question_answering", "train_file": file, "validation_file": file}
    expected = "--text_columns: expected the columns of question and context, found 'question'"
    assert failure(**files, text_columns=["question"]) == expected
    answering = AnswerOptions(n_best=5)
    assert failure(task="toy", answering=answering) == "--n_best 5: only for question answering, not for toy"
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "validation.jsonl", ROWS)
    message = failure(task="squad", data_dir=tmp_path, answering=AnswerOptions(null_threshold=1.0))
    assert message == "--null_threshold 1.0: every question of squad has an answer"
    assert load(task="squad_v2", data_dir=tmp_path, answering=AnswerOptions(null_threshold=1.0)).options.n_best == 20


def test_training_windows_carry_nothing_for_metrics(tmp_path, minilm):
    task, tokenizer = own(tmp_path), AutoTokenizer.from_pretrained(minilm)
    read = {"input_ids", "token_type_ids", "attention_mask", "start_positions", "end_positions", "idx", "length"}
    of_metrics = {"question", "first", "char_starts", "char_ends"}
    train = task.encode(task.train, tokenizer, max_length=20)
    assert set(train.column_names) == read
    assert train["idx"][:] == list(range(len(train)))
    assert len(train) > len(task.train)
    validation = task.encode(task.evaluation["validation"], tokenizer, max_length=20)
    assert set(validation.column_names) == read | of_metrics
    assert validation["question"][:] == sorted(validation["question"][:])


def test_doc_stride_is_the_overlap(tmp_path, minilm):
    tokenizer = AutoTokenizer.from_pretrained(minilm)

    def shared(stride):
        task = own(tmp_path, answering=AnswerOptions(doc_stride=stride))
        first, second = task.encode(task.evaluation["validation"], tokenizer, max_length=18)["char_starts"][:2]
        return len(set(first) & set(second))

    assert [shared(stride) for stride in (None, 0, 3, 7)] == [6, 0, 3, 7]
    with pytest.raises(UserError, match="--doc_stride 12: expected less than 12"):
        shared(12)


def test_padding_goes_right_for_every_tokenizer(tmp_path, minilm):
    tokenizer = AutoTokenizer.from_pretrained(minilm, padding_side="left")
    task = own(tmp_path)
    encoded = task.encode(task.train, tokenizer, max_length=64).remove_columns(["idx", "length"])
    batch = task.collator(tokenizer)([encoded[0], encoded[1]])
    assert tokenizer.padding_side == "left"
    assert batch["attention_mask"].shape[1] == max(map(len, encoded["input_ids"]))
    assert batch["attention_mask"].min() == 0
    for number in range(2):
        real = encoded[number]["input_ids"]
        assert batch["input_ids"][number, : len(real)].tolist() == real
        answer = batch["input_ids"][number, batch["start_positions"][number] : batch["end_positions"][number] + 1]
        assert tokenizer.decode(answer) == ["1963", "new york"][number]


def test_outputs_are_both_logits_in_float32():
    task = SimpleNamespace()
    answer = SimpleNamespace(start_logits=torch.ones(2, 3).bfloat16(), end_logits=torch.zeros(2, 3).bfloat16())
    outputs = QuestionAnswering.outputs(task, answer, {})
    assert outputs.dtype == torch.float32
    assert outputs[..., 0].eq(1).all()
    assert outputs[..., 1].eq(0).all()
    assert outputs.shape == (2, 3, 2)


def test_a_model_of_other_labels_is_refused(tmp_path):
    task = own(tmp_path)
    assert task.for_model(BertConfig(num_labels=2), "x") is task
    message = r"some/model: expected a model for question answering \(2: start and end\), found one of 3 labels"
    with pytest.raises(UserError, match=message):
        task.for_model(BertConfig(num_labels=3), "some/model")


# ---- metrics of stored logits ----


def logits_for(encoded, spans, null):
    """Logits of every window that prefer the characters ``spans[question]``, and nothing in windows without them."""
    outputs = []
    for window in encoded:
        logits = np.full((window["length"], 2), -5.0, dtype=np.float32)
        logits[0] = null[window["question"]] / 2
        start, end = spans[window["question"]]
        for side, (column, at) in enumerate((("char_starts", start), ("char_ends", end))):
            if at in window[column]:
                logits[window["first"] + window[column].index(at), side] = 4.0
        outputs.append(logits)
    return outputs


def metrics_of(task, minilm, spans, null):
    dataset = task.evaluation["validation"]
    encoded = task.encode(dataset, AutoTokenizer.from_pretrained(minilm), max_length=20)
    assert len(encoded) > len(dataset)
    return task.metrics(logits_for(encoded, spans, null), encoded, dataset)


def span(text):
    return CONTEXT.index(text), CONTEXT.index(text) + len(text)


def test_metrics_where_every_question_has_an_answer(tmp_path, minilm):
    """Giving no answer scores highest and is no choice."""
    found = metrics_of(own(tmp_path), minilm, [span("1963 in"), span("New York.")], null=[90, 90])
    # "1963 in" has both words of "in 1963", in another order
    assert found == {"exact_match": 1 / 2, "f1": 1.0}


def test_metrics_where_questions_may_lack_an_answer(tmp_path, minilm):
    """Null scores: 7 is below the 8 of the second question's answer, and 9 above that of the others."""
    spans = [span("1963"), span("Jan lives in New York"), span("Poland")]
    found = metrics_of(own(tmp_path, ROWS, UNANSWERABLE), minilm, spans, null=[9, 7, 9])
    assert found == {
        "exact_match": pytest.approx(1 / 3),
        "f1": pytest.approx((0 + 4 / 7 + 1) / 3),
        "HasAns_exact_match": 0.0,
        "HasAns_f1": pytest.approx(2 / 7),
        "NoAns_exact_match": 1.0,
        "NoAns_f1": 1.0,
        "best_exact_match": pytest.approx(2 / 3),
        "best_f1": pytest.approx((1 + 4 / 7 + 1) / 3),
    }
    assert list(found)[:2] == ["exact_match", "f1"]


def test_the_threshold_moves_the_choice(tmp_path, minilm):
    spans = [span("1963"), span("New York"), span("Poland")]
    files = (ROWS, UNANSWERABLE)
    answering = AnswerOptions(null_threshold=1.5)
    found = metrics_of(own(tmp_path, *files, answering=answering), minilm, spans, null=[9, 7, 9])
    assert (found["HasAns_f1"], found["NoAns_f1"]) == (1.0, 0.0)


def test_long_answers_are_no_candidates(tmp_path, minilm):
    spans = [span("1963"), span("Jan lives in New York")]
    limited = own(tmp_path, answering=AnswerOptions(max_answer_length=2))
    assert (
        metrics_of(limited, minilm, spans, null=[0, 0])["f1"] < metrics_of(own(tmp_path), minilm, spans, [0, 0])["f1"]
    )
