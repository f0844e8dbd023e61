"""The demo, on few sentences, with the real model."""

import json

from contraprune.cli import main


def test_the_demo_makes_a_teacher_and_a_pruned_model_and_says_where(tmp_path, capsys, minilm):
    flags = [
        "--output_dir",
        str(tmp_path),
        "--max_train_samples",
        "32",
        "--max_eval_samples",
        "32",
        "--density",
        "0.2",
        "--quiet",
    ]
    assert main(["demo", *flags]) == 0
    shown = capsys.readouterr().out
    pruned = json.loads((tmp_path / "pruned" / "results.json").read_text())
    assert pruned["task"] == "toy"
    assert abs(pruned["density"]["encoder"] - 0.2) < 1e-4
    for text in (f"{pruned['metrics']['accuracy']:.4f}", f"{pruned['parameters']['after']:,}", "contraprune inspect"):
        assert text in shown
    page = tmp_path / "pruned" / "report.html"
    assert f"To look at: {page}" in shown
    assert f"{pruned['metrics']['accuracy']:.4f}" in page.read_text(encoding="utf-8")
    sizes = next(line for line in shown.splitlines() if "zipped" in line).replace("│", " ").split()
    dense, small = (float(size) for size in sizes if size.replace(".", "").isdigit())
    assert small < 0.8 * dense
