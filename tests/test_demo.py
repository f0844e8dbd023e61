"""The demo, on few sentences, with the real model."""

import json
import re

import torch

import contraprune
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
    sizes = next(line for line in shown.splitlines() if "on disk" in line).replace("│", " ").split()
    dense, small = (float(size) for size in sizes if size.replace(".", "").isdigit())
    assert small < 0.4 * dense
    logits = [
        contraprune.load(tmp_path / name)(input_ids=torch.arange(1000, 1016).unsqueeze(0)).logits
        for name in ("pruned", "exported")
    ]
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=0.02)  # weights in 16 bits
    assert re.search(r"sparse engine\s+│\s+[\d.]+ ms\s+│\s+[\d.]+ ms", shown)
