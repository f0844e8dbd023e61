"""The model card, as the hub's own library reads it."""

import json
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import pipeline

from contraprune.report import write_card


@pytest.mark.parametrize(
    ("kind", "tags"),
    [
        ("dense", ["contraprune"]),
        ("sparse", ["contraprune", "pruning", "contrastive-pruning", "sparse"]),
        ("slim", ["contraprune", "pruning", "contrastive-pruning"]),
    ],
)
def test_metadata_are_the_runs_own_numbers(runs, kind, tags):
    run = getattr(runs, kind)
    card, results = ModelCard.load(run / "README.md"), json.loads((run / "results.json").read_text())
    assert card.content == ModelCard.load(run / "model" / "README.md").content
    data = card.data
    assert (data.pipeline_tag, data.library_name, data.metrics) == ("text-classification", "transformers", ["accuracy"])
    assert data.tags == tags
    (result,) = data.eval_results
    assert result.metric_value == pytest.approx(results["metrics"]["accuracy"], abs=1e-6)
    assert (result.metric_type, result.dataset_name, result.dataset_split) == ("accuracy", "toy", "validation")
    assert data.base_model is None  # models of this machine have no name on the hub
    assert str(run.parent) not in card.content
    if kind != "dense":
        assert f"{results['teacher_metrics']['accuracy']:.4f}" in card.text
        assert f"{results['parameters']['after']:,}" in card.text


@pytest.mark.parametrize("kind", ["sparse", "slim"])
def test_the_example_runs(runs, kind, monkeypatch):
    card = ModelCard.load(getattr(runs, kind) / "README.md")
    code = card.text.split("```python\n")[1].split("```")[0]
    assert ("trust_remote_code=True" in code) == (kind == "slim")
    names: dict[str, object] = {}
    exec(code.replace("path/to/model", str(getattr(runs, kind) / "model")), names)
    assert isinstance(names["model"], type(pipeline("text-classification", model=str(runs.dense / "model"))))
    assert names["model"]("a lovely film")[0]["label"] in ("negative", "positive")


def test_published_data_and_models_are_named(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs.sparse, run)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings |= {"task": "sst2", "model": "bert-base-uncased", "teacher": "textattack/bert-base-uncased-SST-2"}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    write_card(run, repository="me/small-bert")
    card = ModelCard.load(run / "README.md")
    assert card.data.base_model == "textattack/bert-base-uncased-SST-2"
    assert card.data.datasets == ["nyu-mll/glue"]
    assert card.data.model_name == "small-bert"
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.dataset_config) == ("nyu-mll/glue", "sst2")
    assert 'pipeline("text-classification", model="me/small-bert")' in card.text
