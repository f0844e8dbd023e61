"""What inspect counts, against counting by hand."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from contraprune.inspection import Units, summarise, unit_densities, weight_bytes
from contraprune.remote_code import declare_shapes
from contraprune.shrinking import shrink
from contraprune.structure import find_layers
from contraprune.tables import _bar, show_summary
from tiny_models import FAMILIES


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
    assert [(layer.heads.living, layer.heads.before) for layer in summary.layers] == [(4, 4)] * 2
    assert [(layer.neurons.living, layer.neurons.before) for layer in summary.layers] == [(64, 64), (48, 64)]
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
    assert [(layer.heads.living, layer.neurons.living) for layer in summary.layers] == [(12, 1536)] * 6


def loop_over_units(weights, unit, size, producers, consumer):
    """Non-zero fraction of a unit's rows in some matrices and its columns in another; whether any column is left."""
    of_unit = slice(unit * size, (unit + 1) * size)
    values = [weights[name][of_unit].flatten().tolist() for name in producers]
    handed_on = weights[consumer][:, of_unit].flatten().tolist()
    everything = [value for part in (*values, handed_on) for value in part]
    return sum(value != 0 for value in everything) / len(everything), any(handed_on)


def test_densities_and_life_of_every_unit(tiny):
    model = AutoModelForSequenceClassification.from_pretrained(tiny / "teacher")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".layer." in name and weight.dim() == 2:
                weight.mul_(torch.rand(weight.shape, generator=generator) < 0.3)
        model.bert.encoder.layer[0].attention.output.dense.weight[:, 8:16] = 0  # head 1 of 4
        model.bert.encoder.layer[1].output.dense.weight[:, 5] = 0
    for layer, module in zip(summarise(model).layers, model.bert.encoder.layer, strict=True):
        weights = {name: p.detach() for name, p in module.named_parameters()}
        projections = [f"attention.self.{name}.weight" for name in ("query", "key", "value")]
        for units, size, names in (
            (layer.heads, 8, (projections, "attention.output.dense.weight")),
            (layer.neurons, 1, (["intermediate.dense.weight"], "output.dense.weight")),
        ):
            expected = [loop_over_units(weights, unit, size, *names) for unit in range(units.before)]
            assert units.densities == pytest.approx([density for density, _ in expected])
            assert units.living == sum(alive for _, alive in expected)
    assert summarise(model).layers[0].heads.living == 3


def test_fused_and_grouped_matrices_count_once():
    for family in FAMILIES.values():
        model = family.build()
        layers = find_layers(model)
        for summary, layer in zip(summarise(model).layers, layers, strict=True):
            assert summary.heads.densities == (1.0,) * layer.heads.num_heads
            assert summary.neurons.densities == (1.0,) * layer.neurons.num_neurons


@pytest.fixture
def shrunk(tiny):
    model = AutoModelForSequenceClassification.from_pretrained(tiny / "teacher")
    heads = [torch.tensor([True, False, True, True]), torch.tensor([False, False, True, False])]
    neurons = [torch.arange(64) < 40, torch.arange(64) < 7]
    shrink(model, find_layers(model), heads, neurons)
    declare_shapes(model)
    return summarise(model)


def test_a_shrunk_model_tells_what_it_had_before(shrunk, capsys):
    assert [(layer.heads.living, layer.heads.before) for layer in shrunk.layers] == [(3, 4), (1, 4)]
    assert [(layer.neurons.living, layer.neurons.before) for layer in shrunk.layers] == [(40, 64), (7, 64)]
    show_summary(shrunk, "x")
    bars = [line.split() for line in capsys.readouterr().out.splitlines() if "/64" in line]
    assert [line[2] for line in bars] == ["3/4", "1/4"]
    assert [line[1].count("█") for line in bars] == [18, 6]
    assert [line[3].count("█") for line in bars] == [15, 3]
    assert all(len(line[1]) == len(line[3]) == 24 for line in bars)


@pytest.mark.parametrize(("fraction", "filled"), [(0, 0), (0.001, 1), (0.5, 12), (0.999, 23), (1, 24)])
def test_bars_end_where_units_do(fraction, filled):
    assert _bar(fraction, ("#", ".")) == "#" * filled + "." * (24 - filled)


def test_a_unit_is_a_cell_and_removed_ones_are_blank():
    groups = [Units(before=4, densities=(0.5, 1.0), living=2), Units(before=4, densities=(0.1,) * 4, living=4)]
    cells = unit_densities(groups, 96)
    np.testing.assert_allclose(cells, [[0.5, 1.0, np.nan, np.nan], [0.1] * 4])


def test_many_units_share_cells():
    densities = tuple(np.linspace(0, 1, 500))
    cells = unit_densities([Units(before=960, densities=densities, living=500)], 96)
    assert cells.shape == (1, 96)
    np.testing.assert_allclose(cells[0, :50], np.reshape(densities, (50, 10)).mean(axis=1))
    assert np.isnan(cells[0, 50:]).all()
