import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertModel

from contraprune import modeling_contraprune
from contraprune.saving import load, save_model
from test_remote_code import config_of, logits, slimmed
from tiny_models import FAMILIES, batch

MECHANISMS = ("bert", "distilbert", "mpnet", "t5", "modernbert", "deberta-v2", "gpt2", "llama", "albert-2-groups")


@pytest.fixture(scope="module")
def elsewhere(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Pruned models of every mechanism, and what without_contraprune.py made of them in another process."""
    models, results = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("results")
    expected = {}
    for name in MECHANISMS:
        model = slimmed(FAMILIES[name])
        if name == "bert":
            model.resize_token_embeddings(30522)
        save_model(model, AutoTokenizer.from_pretrained(minilm) if name == "bert" else None, models / name)
        expected[name] = model
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path_factory.mktemp("home"))}
    environment |= {"OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("without_contraprune.py")
    done = subprocess.run(
        [sys.executable, str(script), str(models), str(results)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((results / "report.json").read_text())
    return {"models": models, "results": results, "expected": expected, "stderr": done.stderr, "report": report}


@pytest.mark.parametrize("name", MECHANISMS)
def test_the_modelling_file_gives_the_same_model(name: str, elsewhere: dict[str, Any]) -> None:
    model, results = elsewhere["expected"][name], elsewhere["results"] / name
    tensors = torch.load(results / "tensors.pt")
    assert torch.equal(tensors["logits"], logits(model))
    assert torch.equal(tensors["again"], logits(model))
    with torch.no_grad():
        if "base" in tensors:
            assert torch.equal(tensors["base"], model.base_model(**batch())[0])
            assert torch.equal(load(results / "base")(**batch())[0], tensors["base"])
    again = load(results / "again")
    assert torch.equal(logits(again), logits(model))
    assert config_of(results / "again") == config_of(elsewhere["models"] / name)


@pytest.mark.parametrize("name", MECHANISMS)
def test_stock_code_fails_loudly(name: str, elsewhere: dict[str, Any]) -> None:
    assert elsewhere["report"][name].startswith("RuntimeError")
    assert "ignore_mismatched_sizes" in elsewhere["report"][name]


def test_pipeline(elsewhere: dict[str, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(elsewhere["models"] / "bert")
    with torch.no_grad():
        expected = elsewhere["expected"]["bert"](**tokenizer("the film is good", return_tensors="pt")).logits.softmax(
            -1
        )
    found = {entry["label"]: entry["score"] for entry in elsewhere["report"]["pipeline"]}
    assert [found[f"LABEL_{i}"] for i in range(3)] == pytest.approx(expected[0].tolist(), abs=1e-6)
    assert "ValueError" in elsewhere["report"]["untrusted pipeline"]
    assert "not supported" not in elsewhere["stderr"]
    assert "contraprune" not in elsewhere["stderr"]


def test_a_plain_trainer(elsewhere: dict[str, Any]) -> None:
    whole, resumed = (load(elsewhere["results"] / name) for name in ("whole", "resumed"))
    assert torch.equal(logits(whole), logits(resumed))
    assert not torch.equal(logits(whole), logits(elsewhere["expected"]["bert"]))


def test_the_modelling_file_has_the_model_classes_of_transformers_and_nothing_else() -> None:
    assert issubclass(modeling_contraprune.BertModel, BertModel)
    assert modeling_contraprune.BertModel is modeling_contraprune.BertModel
    for name in ("Trainer", "AutoModel", "nonsense", "__path__"):
        with pytest.raises(AttributeError, match="no model class"):
            getattr(modeling_contraprune, name)
