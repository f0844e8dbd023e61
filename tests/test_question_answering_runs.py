"""Whole runs of question answering with a tiny model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

import contraprune
import reference
from contraprune import UserError
from contraprune.callbacks import GradualPruning
from contraprune.cli import main
from contraprune.config import ContrastConfig, DataConfig, EvaluationConfig
from contraprune.encoding import features_of, unpack_tokens
from contraprune.evaluation import evaluate_path
from contraprune.preparation import Sources
from contraprune.sources import SourceBuilder
from contraprune.tasks import load_task
from contraprune.trainer import Knowledge

NAMES = ["Anna", "Boris", "Clara", "Dora", "Emil", "Frida"]
PLACES = ["Oslo", "New York", "Rome", "Lima"]


def question(number: int, *, answerable: bool = True) -> dict[str, object]:
    """A question about one of several people; contexts of quite different lengths."""
    people = NAMES[: 2 + number % 5]
    context = " ".join(f"{name} lives in {PLACES[(number + at) % 4]}, not far away." for at, name in enumerate(people))
    of, place = people[number % len(people)], PLACES[(number + number % len(people)) % 4]
    start = context.index(f"{of} lives in ") + len(f"{of} lives in ")
    answers = {"text": [place], "answer_start": [start]} if answerable else {"text": [], "answer_start": []}
    return {
        "id": str(number),
        "title": "",
        "context": context,
        "question": f"Where does {of} live?",
        "answers": answers,
    }


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``squad/`` and ``squad_v2/`` with train and validation files."""
    path = tmp_path_factory.mktemp("questions")
    for name in ("squad", "squad_v2"):
        (path / name).mkdir()
        for split, first, count in (("train", 0, 24), ("validation", 24, 10)):
            rows = [
                question(number, answerable=name == "squad" or number % 3 != 1)
                for number in range(first, first + count)
            ]
            write(path / name / f"{split}.jsonl", rows)
    return path


def options(tiny: Path, folder: Path, output: Path, task: str = "squad") -> dict[str, object]:
    return {
        "model": str(tiny / "pretrained"),
        "task": task,
        "data_dir": str(folder / task),
        "max_length": 32,
        "doc_stride": 8,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "output_dir": str(output),
    }


@pytest.fixture(scope="module")
def teachers(tiny: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    output = tmp_path_factory.mktemp("teachers")
    for task in ("squad", "squad_v2"):
        contraprune.finetune(**options(tiny, folder, output / task, task), num_train_epochs=2, learning_rate=1e-3)
    return {task: output / task for task in ("squad", "squad_v2")}


@pytest.fixture
def pruning(tiny: Path, folder: Path, teachers: dict[str, Path], tmp_path: Path) -> dict[str, object]:
    return options(tiny, folder, tmp_path / "run") | {
        "teacher": str(teachers["squad"] / "model"),
        "num_train_epochs": 2,
        "density": 0.5,
        "extra_examples": 16,
        "cache_dir": str(tmp_path / "cache"),
    }


def evaluated(model: Path | str, folder: Path, task: str, **more):
    data = DataConfig(task=task, data_dir=str(folder / task), max_length=32, doc_stride=8, **more)
    return evaluate_path(str(model), data, EvaluationConfig(batch_size=3, quiet=True))


def one_by_one(model: Path, folder: Path, task: str):
    """(answer, null margin) of each question, window by window, with stock transformers and plain loops."""
    network, tokenizer = AutoModelForQuestionAnswering.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    rows = [json.loads(line) for line in (folder / task / "validation.jsonl").read_text().splitlines()]
    for row in rows:
        windows = tokenizer(
            row["question"], row["context"], truncation="only_second", max_length=32, stride=8,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        best, null = (0, 0, -np.inf), np.inf
        for number, ids in enumerate(windows["input_ids"]):
            with torch.no_grad():
                types = torch.tensor([windows["token_type_ids"][number]])
                logits = network(input_ids=torch.tensor([ids]), token_type_ids=types)
            start, end = logits.start_logits[0].numpy(), logits.end_logits[0].numpy()
            context = [at for at, sequence in enumerate(windows.sequence_ids(number)) if sequence == 1]
            span = reference.best_span(start, end, context, n_best=20, max_answer_length=30)
            null = min(null, float(start[0]) + float(end[0]))
            if span[2] > best[2]:
                offsets = windows["offset_mapping"][number]
                best = (offsets[span[0]][0], offsets[span[1]][1], span[2])
        yield row["context"][best[0] : best[1]], row["answers"]["text"], null - best[2]


def test_metrics_are_those_of_one_window_at_a_time(teachers, folder):
    model = teachers["squad"] / "model"
    found = evaluated(model, folder, "squad").metrics
    answers, truths, _ = zip(*one_by_one(model, folder, "squad"), strict=True)
    expected = np.mean(reference.squad_scores(answers, truths, version=1), axis=0)
    assert (found["exact_match"], found["f1"]) == pytest.approx(tuple(expected))
    assert found == json.loads((teachers["squad"] / "results.json").read_text())["metrics"]


@pytest.mark.parametrize("threshold", [0.0, -0.05, -1.0])
def test_metrics_of_questions_without_answers(teachers, folder, threshold):
    model = teachers["squad_v2"] / "model"
    answers, truths, margins = zip(*one_by_one(model, folder, "squad_v2"), strict=True)
    raw = reference.squad_scores(answers, truths, version=2)
    scores = [
        score if margin <= threshold else (float(not truth),) * 2
        for score, margin, truth in zip(raw, margins, truths, strict=True)
    ]
    found = evaluated(model, folder, "squad_v2", null_threshold=threshold).metrics
    assert next(iter(found)) == "f1"
    assert (found["exact_match"], found["f1"]) == pytest.approx(tuple(np.mean(scores, axis=0)))
    assert "NoAns_f1" in found


@pytest.mark.parametrize(
    ("method", "more"), [("movement", {}), ("magnitude", {}), ("taylor", {"num_stages": 2, "num_train_epochs": 1})]
)
def test_every_method_prunes(pruning, folder, tmp_path, caplog, capsys, method, more):
    results = contraprune.prune(**(pruning | {"method": method} | more))
    assert "squad has no classes: supervised contrast is off" in caplog.text
    assert list(results["metrics"]) == ["f1", "exact_match"]
    assert results["density"]["encoder"] == pytest.approx(0.5, abs=0.02)
    log = (tmp_path / "run" / "log.jsonl").read_text()
    for part in ("loss_ce", "loss_kd", *(f"loss_{s}_unsupervised" for s in ("pretrained", "snapshots", "finetuned"))):
        assert part in log
    assert "_supervised" not in log.replace("_unsupervised", "")
    model = tmp_path / "run" / "model"
    assert evaluated(model, folder, "squad").metrics == results["metrics"]
    stock = AutoModelForQuestionAnswering.from_pretrained(model, trust_remote_code=method == "taylor")
    batch = AutoTokenizer.from_pretrained(model)("Where is he?", "He is in Rome.", return_tensors="pt")
    with torch.no_grad():
        expected = contraprune.load(tmp_path / "run")(**batch)
        torch.testing.assert_close(stock(**batch).start_logits, expected.start_logits)
    assert main(["inspect", str(tmp_path / "run")]) == 0
    assert "ForQuestionAnswering" in capsys.readouterr().out


def test_the_task_decides_length_and_representation_and_both_are_recorded(pruning, tmp_path):
    pruning.pop("max_length")
    contraprune.prune(**pruning, max_steps=2)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["max_length"], config["pooling"], config["doc_stride"], config["n_best"]) == (384, "cls", 8, 20)
    contraprune.prune(**pruning, max_steps=2, pooling="mean", overwrite=True)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["pooling"] == "mean"


def test_classification_keeps_its_own(tiny_options, tmp_path):
    tiny_options.pop("max_length")
    contraprune.prune(**tiny_options, max_steps=2)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["max_length"], config["pooling"]) == (128, "mean")


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(pruning, tmp_path, monkeypatch):
    pruning |= {"save_strategy": "steps", "save_steps": 4}
    contraprune.prune(**(pruning | {"output_dir": str(tmp_path / "whole")}))
    step_end = GradualPruning.on_step_end

    def interrupted(self, args, state, control, **kwargs):
        step_end(self, args, state, control, **kwargs)
        if state.global_step == 9:
            raise KeyboardInterrupt

    monkeypatch.setattr(GradualPruning, "on_step_end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        contraprune.prune(**pruning)
    monkeypatch.undo()
    contraprune.prune(**pruning)
    expected, found = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_cached_teacher_outputs_fit_every_padding(teachers, folder, tmp_path):
    """Rows of the cache, unpacked for a batch of mixed lengths, are the teacher's answers to that batch."""
    path = teachers["squad"] / "model"
    teacher, tokenizer = AutoModelForQuestionAnswering.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    flags = dict.fromkeys(
        ("task_type", "train_file", "validation_file", "text_columns", "label_column", "max_train_samples",
         "max_eval_samples")
    )  # fmt: skip
    task = load_task(task="squad", data_dir=str(folder / "squad"), seed=0, **flags)
    encoded, collator = task.encode(task.train, tokenizer, max_length=32), task.collator(tokenizer)
    assert len(set(encoded["length"])) > 5
    builder = SourceBuilder(
        task=task, dataset=encoded, config=ContrastConfig(), pooling="cls", use_pooler=True, in_memory=frozenset(),
        collator=collator, batch_size=4, accelerator=Accelerator(cpu=True), writes=True, on_each_node=False,
        progress=False,
    )  # fmt: skip
    representations, outputs = builder.cached(teacher, tmp_path, "", with_outputs=True)
    order = np.random.default_rng(0).permutation(len(encoded))
    for ids in np.array_split(order, 7):
        batch = collator([encoded.remove_columns("length")[int(number)] for number in ids])
        features = features_of(batch, task.objective)
        with torch.no_grad():
            expected = task.outputs(teacher(**features), features)
            first = teacher.base_model(**features).last_hidden_state[:, 0]
        real = features["attention_mask"].bool()
        found = unpack_tokens(outputs[ids], features["attention_mask"], width=2)
        torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-5)
        unit = torch.nn.functional.normalize(first, dim=-1)
        torch.testing.assert_close(representations[ids].float(), unit, rtol=0, atol=1e-3)


@pytest.fixture
def knowledge(monkeypatch: pytest.MonkeyPatch) -> list[Knowledge]:
    """The banks and outputs of every run that prunes."""
    found, fill = [], Sources.fill
    monkeypatch.setattr(Sources, "fill", lambda self, known, *models: found.append(known) or fill(self, known, *models))
    return found


def test_what_exceeds_the_memory_for_banks_is_mapped_from_disk_and_changes_nothing(pruning, knowledge, tmp_path):
    quick = {"save_strategy": "no", "eval_strategy": "no"}

    def prune(name: str, limit: float) -> dict[str, list[bool]]:
        folders = {"output_dir": str(tmp_path / name), "cache_dir": str(tmp_path / f"{name}-cache")}
        contraprune.prune(**(pruning | quick | folders), bank_memory_gb=limit)
        known = knowledge[-1]
        files = {source: bank.files for source, bank in known.banks.items()} | {"outputs": [known.teacher_outputs]}
        assert [len(files[name]) for name in ("pretrained", "finetuned", "snapshots", "outputs")] == [1, 1, 1, 1]
        assert len([*(tmp_path / f"{name}-cache").glob("*/*.rows")]) == 3
        return {name: [file.in_memory for file in own] for name, own in files.items()}

    banks = {name: [True] for name in ("pretrained", "finetuned", "snapshots")}
    nothing = {name: [False] for name in (*banks, "outputs")}
    assert prune("all", 1.0) == banks | {"outputs": [True]}
    sizes = [bank.files[0].spec.nbytes for bank in knowledge[0].banks.values()]
    outputs = knowledge[0].teacher_outputs.spec.nbytes
    assert outputs > max(sizes)  # per token
    weights = load_file(tmp_path / "all" / "model" / "model.safetensors")
    for limit, held in ((0, nothing), (sum(sizes) + outputs - 1, banks | {"outputs": [False]})):
        assert prune(f"limit{limit}", limit / 1e9) == held
        found = load_file(tmp_path / f"limit{limit}" / "model" / "model.safetensors")
        assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_own_files_and_evaluate(teachers, folder, capsys):
    flags = ["--task_type", "question_answering", "--validation_file", str(folder / "squad" / "validation.jsonl")]
    flags += ["--max_length", "32", "--doc_stride", "8", "--json", "--quiet"]
    assert main(["evaluate", str(teachers["squad"] / "model"), *flags]) == 0
    found = json.loads(capsys.readouterr().out)["metrics"]
    assert found == json.loads((teachers["squad"] / "results.json").read_text())["metrics"]


@pytest.mark.parametrize("percent", [50, 10, 3])
def test_the_papers_recipes_run(pruning, tmp_path, percent):
    """A few steps over a tiny model and tiny data; all else is the recipe's."""
    path = Path(__file__).parents[1] / "recipes" / "paper" / f"cap-m-squad-{percent}.yaml"
    of_tests = ("model", "teacher", "data_dir", "cache_dir", "output_dir", "disable_tqdm", "use_cpu")
    run = yaml.safe_load(path.read_text()) | {name: pruning[name] for name in of_tests}
    results = contraprune.prune(**run, max_steps=5, logging_steps=1)
    assert results["density"]["encoder"] == pytest.approx(percent / 100, abs=0.001)
    assert "loss_pretrained_unsupervised" in (tmp_path / "run" / "log.jsonl").read_text()


def test_settings_without_effect_are_refused(tiny_options, pruning, tiny):
    with pytest.raises(UserError, match="--doc_stride 5: only for question answering, not for toy"):
        contraprune.prune(**tiny_options, doc_stride=5)
    with pytest.raises(UserError, match=r"--label_smoothing_factor 0\.1: only for tasks with classes, not for squad"):
        contraprune.prune(**pruning, label_smoothing_factor=0.1)
    with pytest.raises(UserError, match="--supervised_bins 3: only for regression, not for squad"):
        contraprune.prune(**pruning, supervised_bins=3)
    with pytest.raises(UserError, match=r"its weights lack 2 parameters of the model, first qa_outputs\.bias"):
        contraprune.prune(**(pruning | {"teacher": str(tiny / "teacher"), "output_dir": pruning["output_dir"] + "2"}))
