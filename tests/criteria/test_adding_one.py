"""The example of docs/add-a-criterion.md, run as it is written."""

import re
from pathlib import Path

import pytest
import torch

import contraprune
from contraprune.criteria import CRITERIA
from contraprune.structure import find_layers

DOCUMENT = Path(__file__).parents[2] / "docs" / "add-a-criterion.md"


@pytest.fixture
def example(tiny_options, monkeypatch):
    """The code of the document, whose call meets the tiny model and task."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL)
    calls, prune = [], contraprune.prune

    def tiny_prune(**options):
        calls.append(options)
        return prune(**(options | tiny_options))

    monkeypatch.setattr(contraprune, "prune", tiny_prune)
    yield code, calls
    CRITERIA.pop("wanda", None)


def test_the_example_of_the_document_prunes(example, tiny_options):
    code, calls = example
    assert len(code.splitlines()) < 40
    namespace = {}
    exec(code, namespace)
    assert [call["method"] for call in calls] == ["wanda"]
    assert CRITERIA["wanda"] is namespace["Wanda"]
    model = contraprune.load(tiny_options["output_dir"])
    for layer in find_layers(model):
        for linear in layer.linears.values():
            assert int(torch.count_nonzero(linear.weight)) == int(0.5 * linear.weight.numel())


def test_its_importance_is_the_weight_times_the_mean_size_of_its_input(example):
    namespace = {}
    exec(example[0].split("register(")[0], namespace)
    linear = torch.nn.Linear(3, 2)
    linears = contraprune.masking.mask_linears({"a": linear}, learn_scores=False)
    criterion = namespace["Wanda"](linears, contraprune.pruning_config.PruningConfig(density=0.5))
    average = torch.zeros(3)
    for x in torch.randn(3, 4, 5, 3):
        linear.train()(x)
        linear.eval()(100 * x)  # evaluation is not watched
        average = 0.9 * average + 0.1 * x.reshape(20, 3).square().mean(0)
    for out in range(2):
        for column in range(3):
            expected = abs(linear.weight[out, column].item()) * average[column].item() ** 0.5
            assert criterion.importance("a")[out, column].item() == pytest.approx(expected, rel=1e-5)
