import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
)

from contraprune.cli import main
from contraprune.errors import UserError
from contraprune.masking import mask_linears, masked_linears
from contraprune.saving import (
    load,
    load_config,
    load_for_finetuning,
    load_pretrained,
    load_tokenizer,
    parameter_counts,
    save_model,
)
from contraprune.shrinking import shrink
from contraprune.structure import find_layers
from test_shrinking import random_masks
from tiny_models import batch


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(**batch()).logits


@pytest.fixture
def teacher(tiny: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny / "teacher", tmp_path / "teacher"))


@pytest.fixture
def model(tiny: Path) -> PreTrainedModel:
    return BertForSequenceClassification.from_pretrained(tiny / "teacher").eval()


# ---- saving ----


def test_masks_are_folded_into_stock_weights(model: PreTrainedModel, tmp_path: Path) -> None:
    linears = {name: linear for layer in find_layers(model) for name, linear in layer.linears.items()}
    names = set(model.state_dict())
    for index, masked in enumerate(mask_linears(linears, learn_scores=True).values()):
        masked.set_mask(torch.rand(masked.weight.shape, generator=torch.Generator().manual_seed(index)) < 0.3)
    expected = logits(model)
    save_model(model, None, tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "SHA256SUMS",
        "config.json",
        "model.safetensors",
    ]
    assert set(load_file(tmp_path / "model" / "model.safetensors")) == names
    assert not masked_linears(model)
    for other in (
        model,
        load(tmp_path / "model"),
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "model"),
    ):
        assert torch.equal(logits(other), expected)


def test_a_directory_is_the_old_or_the_new(
    model: PreTrainedModel, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in teacher.iterdir()}
    with torch.no_grad():
        model.classifier.bias += 1

    def disk_full(folder: Path, **options: object) -> None:
        (Path(folder)).mkdir(parents=True)
        (Path(folder) / "config.json").write_text("{")
        raise OSError("no space left on device")

    monkeypatch.setattr(model, "save_pretrained", disk_full)
    with pytest.raises(OSError, match="no space left"):
        save_model(model, None, teacher)
    assert {path.name: path.read_bytes() for path in teacher.iterdir()} == before
    monkeypatch.undo()
    save_model(model, None, teacher)
    assert sorted(path.name for path in teacher.iterdir()) == ["SHA256SUMS", "config.json", "model.safetensors"]
    assert sorted(path.name for path in teacher.parent.iterdir()) == ["teacher"]
    assert torch.equal(logits(load(teacher)), logits(model))


def test_the_tokenizer_is_saved_with_it(model: PreTrainedModel, tiny: Path, tmp_path: Path) -> None:
    save_model(model, load_tokenizer(str(tiny / "teacher")), tmp_path / "model")
    text = "an unremarkable film"
    assert AutoTokenizer.from_pretrained(tmp_path / "model")(text) == AutoTokenizer.from_pretrained(tiny / "teacher")(
        text
    )


def test_a_shrunk_model_in_a_fresh_process(model: PreTrainedModel, tmp_path: Path) -> None:
    layers = find_layers(model)
    shrink(model, layers, *random_masks(layers))
    save_model(model, None, tmp_path / "run" / "model")
    torch.save(batch(), tmp_path / "batch.pt")
    code = (
        "import contraprune, torch\n"
        "model = contraprune.load('run')\n"
        "with torch.no_grad():\n"
        "    torch.save(model(**torch.load('batch.pt')).logits, 'logits.pt')\n"
        "model.save_pretrained('again')\n"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    again = {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    (tmp_path / "run" / "model" / "SHA256SUMS").unlink()
    assert again == {path.name: path.read_bytes() for path in (tmp_path / "run" / "model").iterdir()}
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), logits(model), rtol=1e-6, atol=1e-6)
    assert not list((tmp_path / "home").rglob("modeling_contraprune*"))  # where transformers puts code that it runs


def test_commands_on_a_shrunk_model(
    model: PreTrainedModel, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = find_layers(model)
    shrink(model, layers, [torch.arange(4) < 3, torch.arange(4) < 1], [torch.arange(64) < n for n in (13, 64)])
    save_model(model, load_tokenizer(str(tiny / "teacher")), tmp_path / "model")
    assert main(["inspect", str(tmp_path / "model")]) == 0
    assert "13" in capsys.readouterr().out
    options = ["--task", "toy", "--max_eval_samples", "32", "--max_length", "24", "--quiet", "--json"]
    assert main(["evaluate", str(tmp_path / "model"), *options]) == 0
    assert "accuracy" in json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]


# ---- loading ----


def test_loads_a_model_or_the_run_that_holds_it(teacher: Path, model: PreTrainedModel) -> None:
    run = teacher.parent / "run"
    shutil.copytree(teacher, run / "model")
    for path in (teacher, str(teacher), run):
        loaded = load(path)
        assert type(loaded) is BertForSequenceClassification
        assert not loaded.training
        assert torch.equal(logits(loaded), logits(model))


def test_half_precision_weights_are_loaded_in_single(model: PreTrainedModel, tmp_path: Path) -> None:
    model.half().save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in load(tmp_path).parameters()} == {torch.float32}


def _truncate(name: str, size: int) -> Callable[[Path], object]:
    return lambda path: os.truncate(path / name, size)


def _config(**changes: object) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        content = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(content | changes))

    return change


def _without(name: str) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        weights = load_file(path / "model.safetensors")
        del weights[name]
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "found no config.json"),
        (lambda path: (path / "config.json").unlink(), "found no config.json"),
        (lambda path: (path / "model.safetensors").unlink(), "not a model that transformers can load"),
        (_truncate("model.safetensors", 1000), "not a model that transformers can load"),
        (_truncate("model.safetensors", 0), "not a model that transformers can load"),
        (_truncate("config.json", 100), "not a model that transformers can load"),
        (lambda path: (path / "config.json").write_text("[]"), "not a model that transformers can load"),
        (lambda path: (path / "config.json").write_bytes(b"\xff\xfe\x00"), "not a model that transformers can load"),
        (_without("classifier.weight"), "lack 1 parameters of the model, first classifier.weight"),
        (_config(architectures=["Trainer"]), "architectures names 'Trainer', no model class of transformers"),
        (_config(architectures=["os.system"]), "architectures names 'os.system'"),
        (_config(architectures=[]), "architectures names"),
        (_config(architectures=[["BertModel"]]), "architectures"),
        (_config(architectures=None), "architectures names None"),
        (_config(model_type="unheard-of"), "not a model that transformers can load"),
        (_config(model_type=5), "not a model that transformers can load"),
        (_config(hidden_size="x"), "not a model that transformers can load"),
        (_config(hidden_size=48), r"bert.embeddings.LayerNorm.bias: expected the shape \[48\] .*, found \[32\]"),
        (_config(intermediate_size=32), r"intermediate.dense.bias: expected the shape \[32\] .*, found \[64\]"),
    ],
)
def test_damage_is_reported_in_one_line(damage: Callable[[Path], object], message: str, teacher: Path) -> None:
    damage(teacher)
    with pytest.raises(UserError, match=message) as caught:
        load(teacher)
    assert str(teacher) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_cut_anywhere(teacher: Path) -> None:
    whole = (teacher / "config.json").read_bytes().rstrip()
    for size in range(0, len(whole), 83):
        (teacher / "config.json").write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"config.json|not a model that transformers can load"):
            load(teacher)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("somebody/no-such-model", "could not be had from the hub"),
        ("no-such-model", "could not be had from the hub"),
        ("./runs/nothing", "no such model directory"),
        ("/nowhere/at/all", "no such model directory"),
    ],
)
def test_a_name_that_leads_nowhere(name: str, message: str) -> None:
    for read in (load_config, load_tokenizer, lambda path: load_pretrained(AutoModel, path)):
        with pytest.raises(UserError, match=message) as caught:
            read(name)
        assert str(caught.value).startswith(name)
        assert "\n" not in str(caught.value)


def test_what_may_be_new_when_finetuning_starts(tiny: Path, teacher: Path) -> None:
    loaded, new = load_for_finetuning(AutoModelForSequenceClassification, str(tiny / "pretrained"), num_labels=3)
    assert sorted(new) == ["classifier.bias", "classifier.weight"]
    assert loaded.config.num_labels == 3
    with pytest.raises(UserError, match=r"lack 2 parameters of the model, first classifier.bias"):
        load_pretrained(AutoModelForSequenceClassification, str(tiny / "pretrained"))
    _without("bert.pooler.dense.weight")(teacher)
    assert load_for_finetuning(AutoModelForSequenceClassification, str(teacher))[1] == ["bert.pooler.dense.weight"]
    _without("bert.encoder.layer.1.output.dense.bias")(teacher)
    with pytest.raises(
        UserError, match=r"lack 1 parameters of the encoder, first bert.encoder.layer.1.output.dense.bias"
    ):
        load_for_finetuning(AutoModelForSequenceClassification, str(teacher))


def test_the_config_as_it_was_saved(tiny: Path) -> None:
    config = load_config(str(tiny / "teacher"))
    assert (config.model_type, config.intermediate_size, config.id2label) == (
        "bert",
        64,
        {0: "negative", 1: "positive"},
    )


def test_counts_of_parameters() -> None:
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 1, 2], [0, 0, -0.0]]))
        model.bias.copy_(torch.tensor([0.0, 5]))
    assert parameter_counts(model) == {"all": 8, "nonzero": 3}


def test_verbosity_is_given_back(tiny: Path) -> None:
    import transformers  # noqa: PLC0415

    before = transformers.logging.get_verbosity()
    load_pretrained(BertModel, str(tiny / "pretrained"))
    with pytest.raises(UserError):
        load_pretrained(BertModel, str(tiny))
    assert transformers.logging.get_verbosity() == before
