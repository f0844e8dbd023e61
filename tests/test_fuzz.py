"""Whatever is in a file that the tool is given, the answer is a result or one line: no traceback, no hang."""

import json
import shutil
import string
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

from contraprune.cli import main, parse
from contraprune.config import DataConfig
from contraprune.errors import UserError
from contraprune.pipeline import PRUNE_SETTINGS
from contraprune.saving import load_tokenizer
from contraprune.tasks import load_task

SECONDS = 20  # of one example, on a machine that does other things too
fuzz = settings(
    max_examples=30,
    deadline=SECONDS * 1000,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.floats() | st.text(max_size=8) | st.just("0"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def one_line(action):
    """Runs what may be refused, and looks at how."""
    message = "fine"
    try:
        action()
    except UserError as error:
        message = str(error)
    assert message
    assert "\n" not in message.strip()


@st.composite
def damaged(draw, whole):
    """Bytes that began as ``whole``: cut, with some of them changed, or with others put in."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(("cut", "change", "insert"))):
            case "cut":
                del content[place:]
            case "change" if place < len(content):
                content[place] ^= draw(st.integers(1, 255))
            case _:
                content[place:place] = draw(
                    st.binary(max_size=4) | st.sampled_from((b"[" * 3000, b"\0", b'"', b"9" * 5000))
                )
    return bytes(content)


# ---- data files ----

ROWS = {
    "classification": [{"text": f"text {n}", "label": ["no", "yes"][n % 2]} for n in range(4)],
    "regression": [{"text1": "one", "text2": "two", "label": n / 2} for n in range(4)],
    "multi_label": [{"text": "one", "labels": ["a", "b"][: n % 3]} for n in range(4)],
    "token_classification": [{"tokens": ["Mr", "X"], "ner_tags": ["O", "B-PER"]} for n in range(4)],
    "question_answering": [
        {"id": str(n), "context": "a b c", "question": "which?", "answers": {"text": ["b"], "answer_start": [2]}}
        for n in range(4)
    ],
    "embedding": [{"text1": "one", "text2": "two", "label": n / 2} for n in range(4)],
}


def load(kind, path):
    task = load_task(**DataConfig(task_type=kind, train_file=str(path), validation_file=str(path)).source(), seed=0)
    assert task.train is not None
    assert len(task.train) > 0


@pytest.mark.parametrize("kind", ROWS)
@fuzz
@given(data=st.data())
def test_rows_of_any_values(tmp_path, kind, data):
    rows = [dict(row) for row in ROWS[kind]]
    for _ in range(data.draw(st.integers(1, 2))):
        row = data.draw(st.sampled_from(rows))
        row[data.draw(st.sampled_from(sorted(row)))] = data.draw(values)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    one_line(lambda: load(kind, path))


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet", "conll"])
@fuzz
@given(data=st.data())
def test_damaged_data_files(tmp_path, ending, data):
    path = tmp_path / f"rows.{ending}"
    rows, kind = ROWS["classification"], "classification"
    match ending:
        case "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case "csv":
            path.write_text("text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in rows))
        case "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case _:
            path.write_text("Mr B-PER\nX I-PER\n\nso O\n\n" * 2)
            kind = "token_classification"
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    one_line(lambda: load(kind, path))


# ---- YAML configs ----

FLAGS = ["--model=m", "--teacher=t", "--task=toy"]
OPTIONS = (
    *("density", "stages", "contrast", "labels", "text_columns", "seed", "num_train_epochs", "warmup_steps", "optim"),
    *("save_steps", "report_to", "bf16", "lr_scheduler_kwargs", "accelerator_config", "fsdp_config", "max_length"),
)
LAUGHS = "labels: &a0 [x, x]\n" + "".join(f"labels: &a{n + 1} [*a{n}, *a{n}]\n" for n in range(60))


def parsed(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    parse("prune", PRUNE_SETTINGS, [*FLAGS, "--output_dir=o", "--config", str(path)])


@fuzz
@given(options=st.dictionaries(st.sampled_from(OPTIONS), values, max_size=3))
@example(options={"seed": 2**70})
@example(options={"num_train_epochs": float("inf")})
@example(options={"fsdp_config": "nowhere.json"})
def test_configs_of_any_values(tmp_path, options):
    one_line(lambda: parsed(tmp_path, yaml.safe_dump(options)))


@fuzz
@given(
    text=st.text(alphabet="ab: -[]{}&*!|>'\"%#\n\t0.9~?,@`", max_size=40).map(lambda text: f"density: {text}")
    | st.text(max_size=20).filter(lambda text: not any(0xD800 <= ord(letter) < 0xE000 for letter in text))
)
@example(text="labels: " + "[" * 5000)
@example(text="labels: " + "9" * 5000)
@example(text="labels: 0x" + "9" * 5000)
@example(text="labels: !!bool maybe")
@example(text="labels: !!python/object/apply:os.system [id]")
@example(text="labels: 2001-99-99")
@example(text=LAUGHS)
@example(text="labels: ['--overwrite']")
def test_configs_of_any_text(tmp_path, text):
    one_line(lambda: parsed(tmp_path, text))


# ---- model directories ----


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    """A model of a few kB with a small tokenizer."""
    folder = tmp_path_factory.mktemp("model") / "whole"
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertForSequenceClassification(BertConfig(vocab_size=40, **sizes)).save_pretrained(folder)
    tokenizer = json.loads((tiny / "teacher" / "tokenizer.json").read_text())
    special = [token["content"] for token in tokenizer["added_tokens"]]
    kept = [*special, *string.ascii_lowercase]
    tokenizer["model"]["vocab"] = {word: number for number, word in enumerate(kept)}
    for token in tokenizer["added_tokens"]:
        token["id"] = kept.index(token["content"])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    shutil.copy(tiny / "teacher" / "tokenizer_config.json", folder)
    return folder


def copied(model, tmp_path):
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model, folder)
    return folder


def inspected(folder, capsys):
    code = main(["inspect", str(folder)])
    captured = capsys.readouterr()
    assert code in (0, 2)
    if code:
        assert len([line for line in captured.err.splitlines() if line.startswith("contraprune: ")]) == 1


def test_the_model_to_be_damaged_is_sound(model, tmp_path, capsys):
    assert main(["inspect", str(copied(model, tmp_path))]) == 0
    assert load_tokenizer(str(model)).tokenize("a b") == ["a", "b"]


@fuzz
@given(data=st.data())
def test_model_configurations_of_any_values(model, tmp_path, capsys, data):
    folder = copied(model, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        config[data.draw(st.sampled_from([*sorted(config), "contraprune", "auto_map", "quantization_config"]))] = (
            data.draw(values)
        )
    (folder / "config.json").write_text(json.dumps(config))
    inspected(folder, capsys)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "SHA256SUMS"])
@fuzz
@given(data=st.data())
def test_damaged_models(model, tmp_path, capsys, name, data):
    folder = copied(model, tmp_path)
    content = (folder / name).read_bytes() if name != "SHA256SUMS" else f"{'0' * 64}  config.json\n".encode()
    (folder / name).write_bytes(data.draw(damaged(content)))
    inspected(folder, capsys)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@fuzz
@given(data=st.data())
def test_damaged_tokenizers(model, tmp_path, name, data):
    folder = copied(model, tmp_path)
    (folder / name).write_bytes(data.draw(damaged((folder / name).read_bytes())))
    one_line(lambda: load_tokenizer(str(folder)).save_pretrained(tmp_path / "saved"))
    assert sorted(path.name for path in Path(tmp_path).iterdir() if path.name != "saved") == ["model"]
