"""The command line as a user meets it: exit codes, one-line errors, help, YAML."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from contraprune.cli import main
from contraprune.disk import readable

COMMANDS = ("demo", "finetune", "prune", "evaluate", "inspect", "export", "bench", "study", "probe")


def command(name, options, *extra):
    flags = [f"--{key}={value}" for key, value in options.items()]
    return [name, *flags, *extra]


def error_of(arguments, capsys):
    """Runs a command that must fail as the user's mistake; returns its only line."""
    code = main(arguments)
    captured = capsys.readouterr()
    assert code == 2
    lines = [line for line in captured.err.splitlines() if line.startswith("contraprune: ")]
    assert len(lines) == 1
    assert "Traceback" not in captured.err
    return lines[0]


def test_the_installed_command_fails_with_code_2_and_one_line():
    found = subprocess.run(
        [sys.executable, "-m", "contraprune", "prune", "--density", "2"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 2
    assert found.stderr.splitlines() == ["contraprune: prune: the following arguments are required: --model, --teacher"]
    assert found.stdout == ""


def test_help_is_quick_and_names_every_command():
    found = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "contraprune", "--help"], capture_output=True, text=True, check=True
    )
    assert all(name in found.stdout for name in COMMANDS)
    assert " torch\n" not in found.stderr


@pytest.mark.parametrize(
    "name", ["demo", "finetune", "prune", "evaluate", "inspect", "export", "bench", "study", "probe"]
)
def test_every_command_explains_its_options_with_defaults(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: contraprune {name} ")
    assert "==SUPPRESS==" not in text
    if name == "prune":
        assert "--density X" in text
        assert "[0.1]" in text
        assert "--adam_beta1" not in text  # accepted, not listed


def test_prune_evaluate_and_inspect_agree(tiny_options, capsys):
    assert main(command("prune", tiny_options, "--density", "0.25", "--adam_beta1", "0.8")) == 0
    shown = capsys.readouterr().out
    results = json.loads((Path(tiny_options["output_dir"]) / "results.json").read_text())
    assert f"{results['metrics']['accuracy']:.4f}" in shown
    config = yaml.safe_load((Path(tiny_options["output_dir"]) / "config.yaml").read_text())
    assert config["adam_beta1"] == 0.8
    model = str(Path(tiny_options["output_dir"]) / "model")
    flags = ["--task", "toy", "--max_eval_samples", "48", "--max_length", "24", "--quiet", "--json"]
    for path in (model, tiny_options["output_dir"]):  # of the model, or of the run
        assert main(["evaluate", path, *flags]) == 0
        assert json.loads(capsys.readouterr().out)["metrics"] == results["metrics"]
    assert main(["inspect", tiny_options["output_dir"]]) == 0
    shown = capsys.readouterr().out
    assert "0.2500" in shown
    assert f"{results['parameters']['after']:,}" in shown


def test_the_stages_of_a_structured_run_are_shown(tiny_options, capsys):
    assert main(command("prune", tiny_options, "--method", "taylor", "--density", "0.5", "--num_stages", "2")) == 0
    shown = capsys.readouterr().out
    stages = json.loads((Path(tiny_options["output_dir"]) / "results.json").read_text())["stages"]
    for stage in stages:
        assert f"{stage['parameters']:,}" in shown
    assert "25 %" in shown
    assert "50 %" in shown


def test_config_yaml_repeats_a_run_and_flags_override_it(tiny_options, tmp_path, capsys):
    assert main(command("prune", tiny_options, "--method", "magnitude")) == 0
    config = Path(tiny_options["output_dir"]) / "config.yaml"
    again = tmp_path / "again"
    assert main(["prune", "--config", str(config), "--output_dir", str(again)]) == 0
    first, second = (json.loads((path / "results.json").read_text()) for path in (config.parent, again))
    assert second["metrics"] == first["metrics"]
    assert second["method"] == "magnitude"
    other = tmp_path / "other"
    assert main(["prune", "--config", str(config), "--output_dir", str(other), "--density", "0.5"]) == 0
    assert json.loads((other / "results.json").read_text())["density"]["target"] == 0.5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--density", "0"], r"--density: expected a fraction in (0, 1], found 0.0"),
        (["--density", "1.5"], r"--density: expected a fraction in (0, 1], found 1.5"),
        (["--density", "ten"], "argument --density: invalid float value: 'ten'"),
        (["--denisty", "0.1"], "--denisty: no such flag (did you mean density?)"),
        (
            ["--method", "magic"],
            "--method: expected one of movement, soft_movement, magnitude, fisher, smp, l0, taylor, found magic",
        ),
        (["--contrast", "pretrained,teacher"], "--contrast: expected none or some of pretrained,snapshots,finetuned"),
        (["--freeze_masks", "0.5"], "--freeze_masks: expected at most prune_cooldown (0.3)"),
        (["--temperature", "0"], "--temperature: expected a positive number, found 0.0"),
        (["--task", "sst3"], "--task: expected one of"),
        (["--data_dir", "nowhere"], "nowhere"),
        (["--train_file", "x.jsonl"], "--train_file: expected without --task, found with --task toy"),
        (["--teacher", "./nowhere"], "./nowhere: no such model directory"),
        (["--model", "nobody/nothing"], "nobody/nothing: no such directory, and it could not be had from the hub"),
        (["--load_best_model_at_end"], "--load_best_model_at_end True: not supported"),
        (["--bf16_full_eval"], "--bf16_full_eval True: not supported"),
        (["--length_column_name", "n"], "--length_column_name n: not supported"),
        (["--gradient_accumulation_steps", "0"], "--gradient_accumulation_steps: expected a positive number, found 0"),
        (["--dataloader_num_workers", "-1"], "--dataloader_num_workers: expected a number from 0, found -1"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml: cannot be read"),
        (["--learning_rate", "-1"], "--learning_rate: expected a positive number, found -1.0"),
    ],
)
def test_bad_flags_are_one_line_and_write_nothing(tiny_options, capsys, flags, message):
    line = error_of(command("prune", tiny_options, *flags), capsys)
    assert message in line
    run = Path(tiny_options["output_dir"])
    assert not run.exists() or sorted(path.name for path in run.iterdir()) == ["config.yaml"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("density: [0.1", "not YAML"),
        ("- density", "expected lines of 'option: value', found list"),
        ("denisty: 0.1", "denisty: no such option (did you mean density?)"),
        ("density: {a: 1}", "density: expected a value, found a mapping"),
        ("density: many", "invalid float value: 'many'"),
    ],
)
def test_bad_yaml_is_one_line(tiny_options, tmp_path, capsys, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    assert message in error_of(command("prune", tiny_options, "--config", str(tmp_path / "bad.yaml")), capsys)


def test_yaml_lists_become_flags_of_several_values(tiny, tmp_path, capsys):
    rows = [{"a": f"text {n}", "b": "and more", "label": ["negative", "positive"][n % 2]} for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"validation_file": str(tmp_path / "pairs.jsonl"), "text_columns": ["a", "b"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert main(["evaluate", "--config", str(tmp_path / "config.yaml"), str(tiny / "teacher"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["accuracy"] >= 0


@pytest.mark.parametrize("labels", [["positive", "positive"], [1, 1], ["Negative", "positive"]])
def test_a_file_to_evaluate_on_may_lack_classes_and_spell_them_otherwise(tiny, tmp_path, capsys, labels):
    rows = [{"text": "the film was good", "label": label} for label in labels]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["evaluate", str(tiny / "teacher"), "--validation_file", str(tmp_path / "rows.jsonl"), "--json"]) == 0
    accuracy = json.loads(capsys.readouterr().out)["metrics"]["accuracy"]
    assert accuracy in ((0.0, 1.0) if len(set(labels)) == 1 else (0.5,))


def test_a_model_whose_labels_are_numbers_is_scored_by_their_names(tiny, tmp_path, capsys):
    """Also where the file lacks the last of them, so that all that it has could be positions."""
    shutil.copytree(tiny / "teacher", tmp_path / "numbered")
    config = json.loads((tmp_path / "numbered" / "config.json").read_text())
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    config |= {"id2label": {"0": "1", "1": "2"}, "label2id": {"1": 0, "2": 1}}
    (tmp_path / "numbered" / "config.json").write_text(json.dumps(config))
    found = []
    for model, label in ((tiny / "teacher", "negative"), (tmp_path / "numbered", 1)):
        (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "the film was good", "label": label}) + "\n")
        assert main(["evaluate", str(model), "--validation_file", str(tmp_path / "rows.jsonl"), "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["metrics"]["accuracy"])
    assert found[0] == found[1]


def test_unknown_command(capsys):
    assert "prun: no such command (did you mean prune?)" in error_of(["prun"], capsys)


def test_a_damaged_or_foreign_model_is_named(tiny, tmp_path, capsys):
    flags = ["--task", "toy", "--max_eval_samples", "8", "--quiet"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{empty}: expected a model directory" in error_of(["inspect", str(empty)], capsys)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in (tiny / "teacher").iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert f"{damaged}: " in error_of(["evaluate", str(damaged), *flags], capsys)
    headless = error_of(["evaluate", str(tiny / "pretrained"), *flags], capsys)
    assert "its weights lack 2 parameters of the model, first classifier.bias" in headless


def test_a_teacher_with_other_labels_is_refused(tiny_options, tmp_path, capsys):
    rows = [{"text": f"text {n}", "label": ["cat", "dog"][n % 2]} for n in range(8)]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {key: value for key, value in tiny_options.items() if key != "task"}
    options |= {f"{split}_file": tmp_path / f"{split}.jsonl" for split in ("train", "validation")}
    line = error_of(command("prune", options), capsys)
    assert "cat" in line
    assert "negative" in line


GOOD = [{"text": f"text {n}", "label": ["negative", "positive"][n % 2]} for n in range(8)]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (None, "train.jsonl: no such file"),
        ([], "train.jsonl: expected at least one row of data, found none"),
        ([*GOOD, {"label": "positive"}], "train.jsonl, line 9: expected a column 'text', found columns 'label'"),
        ([*GOOD, {"text": "text"}], "train.jsonl, line 9: expected a column 'label', found columns 'text'"),
        (
            [*GOOD, {"text": "text", "label": "good"}],
            "expected a model with the 3 labels 'good', 'negative', 'positive'",
        ),
        (
            [{"text": f"text {n}", "label": n % 2 - 1} for n in range(4)],
            "train.jsonl, line 1: column 'label': expected a label, found -1",
        ),
        (
            [{"text": None, "label": "positive"}, *GOOD],
            "train.jsonl, line 1: expected text in column 'text', found null",
        ),
    ],
)
def test_bad_data_are_one_line_and_write_nothing(tiny_options, tmp_path, capsys, train, message):
    for name, rows in (("train", train), ("validation", GOOD)):
        if rows is not None:
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {key: value for key, value in tiny_options.items() if key != "task"}
    options |= {f"{name}_file": tmp_path / f"{name}.jsonl" for name in ("train", "validation")}
    assert message in error_of(command("prune", options), capsys)
    run = Path(tiny_options["output_dir"])
    assert not run.exists() or sorted(path.name for path in run.iterdir()) == ["config.yaml"]


def test_models_that_do_not_fit_are_one_line(tiny_options, tiny, tmp_path, capsys):
    tokenizer = json.loads((tiny / "teacher" / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["the"], vocabulary["film"] = vocabulary["film"], vocabulary["the"]
    shutil.copytree(tiny / "teacher", tmp_path / "swapped")
    (tmp_path / "swapped" / "tokenizer.json").write_text(json.dumps(tokenizer))
    line = error_of(command("prune", tiny_options | {"teacher": tmp_path / "swapped"}), capsys)
    assert f"--teacher {tmp_path / 'swapped'}: its tokenizer differs from that of --model" in line
    names = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    config = AutoConfig.for_model("roformer", vocab_size=len(vocabulary), **_TINY, **names)
    foreign = AutoModelForSequenceClassification.from_config(config)
    shutil.copytree(tiny / "teacher", tmp_path / "foreign", ignore=shutil.ignore_patterns("config.json", "model*"))
    foreign.save_pretrained(tmp_path / "foreign")
    paths = {"teacher": tmp_path / "foreign", "model": tmp_path / "foreign"}
    assert "roformer" in error_of(command("prune", tiny_options | paths), capsys)
    pickled = shutil.copytree(tiny / "teacher", tmp_path / "pickled", ignore=shutil.ignore_patterns("model*"))
    torch.save({}, pickled / "pytorch_model.bin")
    line = error_of(command("prune", tiny_options | {"teacher": pickled}), capsys)
    assert f"{pickled}: expected weights in safetensors, found a pickle" in line


_TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def test_a_directory_with_another_run_or_a_damaged_bank_is_left_as_it_is(tiny_options, tmp_path, capsys):
    assert main(command("prune", tiny_options, "--num_train_epochs", "1")) == 0
    run = Path(tiny_options["output_dir"])
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    line = error_of(command("prune", tiny_options, "--num_train_epochs", "1", "--density", "0.5"), capsys)
    assert "holds a run with other settings (density was 0.1, now 0.5); name another directory, or use --over" in line
    config = (run / "config.yaml").read_bytes()
    (run / "config.yaml").write_bytes(b"\xff" + config)
    line = error_of(command("prune", tiny_options, "--num_train_epochs", "1"), capsys)
    assert f"{run / 'config.yaml'}: not the settings of a run" in line
    (run / "config.yaml").write_bytes(config)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    bank = next((tmp_path / "cache").rglob("representations.rows"))
    content = bank.read_bytes()
    again = command("prune", tiny_options | {"output_dir": tmp_path / "again"}, "--num_train_epochs", "1")
    for damaged, message in (
        (content[:-2], "expected"),
        (bytes([content[0] ^ 4]) + content[1:], "its checksum differs"),
    ):
        bank.write_bytes(damaged)
        line = error_of(again, capsys)
        assert f"{bank}: {message}" in line
    bank.unlink()  # as the message says
    assert main(again) == 0
    assert bank.read_bytes() == content


@pytest.mark.parametrize(
    ("place", "advice"),
    [
        ("contraprune.trainer.TaskTrainer.training_step", "lower --per_device_train_batch_size (and raise --grad"),
        ("contraprune.sources.encode", "lower --per_device_eval_batch_size or --bank_memory_gb"),
    ],
)
@pytest.mark.parametrize("allocate", [lambda: torch.empty(10**15), lambda: np.empty(10**15)])
def test_out_of_memory_says_what_to_lower(tiny_options, capsys, monkeypatch, place, advice, allocate):
    monkeypatch.setattr(place, lambda *_, **__: allocate())
    line = error_of(command("prune", tiny_options), capsys)
    assert line.startswith("contraprune: out of memory (")
    assert advice in line


def test_a_checkpoint_to_resume_from_has_to_be_one(tiny_options, tiny, capsys):
    line = error_of(command("prune", tiny_options, "--resume_from_checkpoint", str(tiny / "teacher")), capsys)
    assert f"--resume_from_checkpoint {tiny / 'teacher'}: expected a whole checkpoint, found another folder" in line
    line = error_of(command("prune", tiny_options, "--method=taylor", "--resume_from_checkpoint=x"), capsys)
    assert "--resume_from_checkpoint x: not with --method taylor" in line


def test_a_run_says_first_how_much_disk_it_needs(tiny_options, tmp_path, capsys):
    run = tmp_path / "run"
    teacher = sum(t.nbytes for t in load_file(Path(tiny_options["teacher"]) / "model.safetensors").values())
    assert main(command("prune", tiny_options, "--num_train_epochs=2")) == 0
    said = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("disk: "))
    scored = 2 * (4 * 32 * 32 + 2 * 32 * 64)  # weights in the matrices of both layers
    checkpoint = teacher * 3 + scored * 13  # weights and Adam's two; a mask, a score and its two
    expected = f"checkpoints {readable(2 * checkpoint)}, model {readable(teacher)}, snapshots {readable(64 * 32 * 2)}"
    assert f" in {run} ({expected}), where " in said
    cached = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.rows"))
    assert f"up to {readable(cached)} in {tmp_path / 'cache'} (banks {readable(cached)})" in said
    assert "NOT ENOUGH" not in said
