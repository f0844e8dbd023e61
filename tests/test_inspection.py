"""What inspect counts, against counting by hand."""

import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from contraprune.inspection import summarise, weight_bytes
from contraprune.tables import show_summary


def test_counts_are_those_of_the_tensors(tiny, capsys):
    model = AutoModelForSequenceClassification.from_pretrained(tiny / "teacher")
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[:, :16] = 0
    summary = summarise(model, tiny / "teacher")
    matrices = {name: p for name, p in model.named_parameters() if ".layer." in name and name.endswith("weight")}
    matrices = {name: p for name, p in matrices.items() if p.dim() == 2}
    assert summary.encoder_weights == sum(p.numel() for p in matrices.values()) == 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert summary.encoder_nonzero == sum(int((p != 0).sum()) for p in matrices.values())
    assert summary.parameters == sum(p.numel() for p in model.parameters())
    assert summary.nonzero == sum(int((p != 0).sum()) for p in model.parameters())
    assert [layer.heads for layer in summary.layers] == [4, 4]
    assert [layer.neurons for layer in summary.layers] == [64, 64]
    pruned = {matrix.name: matrix for matrix in summary.layers[1].matrices}["output.dense"]
    assert (pruned.shape, pruned.nonzero) == ((32, 64), 32 * 48)
    assert summary.bytes_on_disk == weight_bytes(tiny / "teacher") > 4 * summary.parameters
    show_summary(summary, "x")
    shown = capsys.readouterr().out
    assert "0.750" in shown
    assert f"{summary.encoder_nonzero:,}" in shown


def test_the_real_model_has_its_published_sizes(minilm):
    summary = summarise(AutoModel.from_pretrained(minilm))
    assert summary.encoder_weights == 10_616_832
    assert summary.encoder_density == 1.0
    assert [(layer.heads, layer.neurons) for layer in summary.layers] == [(12, 1536)] * 6
