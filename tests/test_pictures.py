"""Heat maps: what is drawn where, and files that are what their names say."""

import sys

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from contraprune.cli import main
from contraprune.errors import UserError
from contraprune.inspection import summarise
from contraprune.pictures import check_picture, draw_summary
from contraprune.shrinking import shrink
from contraprune.structure import find_layers


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("deep/b.svg", b"<?xml")])
def test_inspect_draws_to_a_file(tiny, tmp_path, capsys, name, start):
    path = tmp_path / name
    assert main(["inspect", str(tiny / "teacher"), "--picture", str(path)]) == 0
    content = path.read_bytes()
    assert content.startswith(start)
    assert len(content) > 5000
    assert f"drawn to {path}" in capsys.readouterr().out


def test_other_endings_and_no_matplotlib_are_refused_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    assert main(["inspect", str(tmp_path), "--picture", "heads.jpg"]) == 2
    assert capsys.readouterr().err == ("contraprune: --picture heads.jpg: expected a name that ends in .png or .svg\n")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"needs matplotlib; pip install 'contraprune\[pictures\]'"):
        check_picture("heads.png")


@pytest.mark.filterwarnings("error")
def test_a_model_whose_ffns_are_all_gone_is_drawn(tiny, tmp_path):
    pytest.importorskip("matplotlib")
    model = AutoModelForSequenceClassification.from_pretrained(tiny / "teacher")
    layers = find_layers(model)
    heads = [torch.ones(layer.heads.num_units, dtype=torch.bool) for layer in layers]
    shrink(model, layers, heads, [torch.zeros(layer.neurons.num_units, dtype=torch.bool) for layer in layers])
    draw_summary(summarise(model), tmp_path / "empty.png", title="empty")
    assert (tmp_path / "empty.png").stat().st_size > 1000
