"""The command line as a user meets it: exit codes, one-line errors, help, YAML."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from contraprune.cli import main

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
    assert main(["evaluate", model, *flags]) == 0
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
