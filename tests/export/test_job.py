import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, PreTrainedModel

import contraprune
from contraprune.cli import main
from contraprune.engine import FILE
from contraprune.saving import save_model
from contraprune.shrinking import shrink
from contraprune.structure import find_layers
from tiny_models import FAMILIES, batch


@pytest.fixture
def pruned(tiny: Path) -> PreTrainedModel:
    model = AutoModelForSequenceClassification.from_pretrained(tiny / "teacher")
    for layer in find_layers(model):
        for linear in layer.linears.values():
            linear.weight.data *= torch.rand_like(linear.weight) < 0.1  # type: ignore[operator]
    return model


@pytest.fixture
def source(pruned: PreTrainedModel, tiny: Path, tmp_path: Path) -> Path:
    """A run directory."""
    save_model(pruned, contraprune.saving.load_tokenizer(str(tiny / "teacher")), tmp_path / "run" / "model")
    return tmp_path / "run"


def same_parameters(a: Any, b: Any) -> bool:
    return all(torch.equal(parameter, b.get_parameter(name)) for name, parameter in a.named_parameters())


def test_sparse_and_back_to_dense_is_exact(source: Path, pruned: PreTrainedModel, tmp_path: Path) -> None:
    sparse, dense = tmp_path / "sparse", tmp_path / "dense"
    assert main(["export", str(source), "--format", "sparse", "--output_dir", str(sparse)]) == 0
    assert (sparse / FILE).stat().st_size < 0.85 * (source / "model" / "model.safetensors").stat().st_size
    assert (sparse / "tokenizer.json").is_file()
    assert not (sparse / "model.safetensors").exists(), "nothing that stock transformers would load half of"
    assert main(["export", str(sparse), "--format", "dense", "--output_dir", str(dense)]) == 0
    assert same_parameters(AutoModelForSequenceClassification.from_pretrained(dense), pruned)
    record = json.loads((dense / "export.json").read_text())
    assert record["bytes"] == {
        "before": (sparse / FILE).stat().st_size,
        "after": (dense / "model.safetensors").stat().st_size,
    }


def test_the_metric_is_measured_before_and_after(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    options = ["--values", "float16", "--embeddings", "int8", "--task", "toy", "--max_eval_samples", "40"]
    assert main(["export", str(source), "--output_dir", str(output), *options]) == 0
    metrics = json.loads((output / "export.json").read_text())["metrics"]["accuracy"]
    assert "accuracy" in capsys.readouterr().out
    for when, path in (("before", source / "model"), ("after", output)):
        assert main(["evaluate", str(path), "--task", "toy", "--max_eval_samples", "40", "--json", "--quiet"]) == 0
        assert json.loads(capsys.readouterr().out)["metrics"]["accuracy"] == metrics[when]


def test_number_formats(source: Path, pruned: PreTrainedModel, tmp_path: Path) -> None:
    for format, values, embeddings in (("dense", "float16", None), ("sparse", "float16", "int8")):
        output = tmp_path / format
        flags = ["--format", format, "--values", values, *(["--embeddings", embeddings] if embeddings else [])]
        assert main(["export", str(source), "--output_dir", str(output), *flags]) == 0
        loaded = contraprune.load(output, engine="torch")
        for name, parameter in pruned.named_parameters():
            found = loaded.get_parameter(name)
            if embeddings and "embeddings" in name and parameter.dim() == 2:
                assert not torch.equal(found, parameter)
                assert ((found - parameter).abs().amax(1) <= 0.501 * parameter.abs().amax(1) / 127).all()
            elif parameter.dim() == 2 or format == "dense":
                assert torch.equal(found, parameter.half().float()), name
            else:
                assert torch.equal(found, parameter), name
    assert load_file(tmp_path / "dense" / "model.safetensors")["classifier.weight"].dtype == torch.float16


@pytest.mark.parametrize("format", ["sparse", "dense"])
def test_shrunk_models(tmp_path: Path, format: str) -> None:
    model = FAMILIES["bert"].build()
    heads = [torch.arange(4) < count for count in (1, 4, 2)]
    shrink(model, find_layers(model), heads, [torch.arange(20) < count for count in (3, 0, 20)])
    save_model(model, None, tmp_path / "model")
    assert main(["export", str(tmp_path), "--format", format, "--output_dir", str(tmp_path / "out")]) == 0
    loaded = contraprune.load(tmp_path / "out")
    inputs = batch()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, atol=1e-4, rtol=1e-4)
    if format == "dense":
        stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", trust_remote_code=True)
        assert same_parameters(stock, model)


def refuse(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_cannot_be_exported(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, output = str(source), str(tmp_path / "out")
    refuse([str(tmp_path / "none"), "--output_dir", output], "expected a model directory", capsys)
    refuse([model], "--output_dir: expected a directory", capsys)
    refuse([model, "--output_dir", str(source / "model")], "that is the model itself", capsys)
    refuse([model, "--output_dir", str(source)], "not empty, and not an export", capsys)
    file = source / "model" / "config.json"
    refuse([model, "--output_dir", str(file)], "expected a directory, found a file", capsys)
    refuse([model, "--output_dir", output, "--format", "pickle"], "invalid choice: 'pickle'", capsys)
    refuse([model, "--output_dir", output, "--format", "dense", "--embeddings", "int8"], "--embeddings int8", capsys)
    assert not Path(output).exists()
    assert main(["export", model, "--output_dir", output]) == 0
    refuse([model, "--output_dir", output], "holds an earlier export; use --overwrite", capsys)
    assert main(["export", model, "--output_dir", output, "--overwrite"]) == 0


def test_a_damaged_file_leaves_one_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert main(["export", str(source), "--output_dir", str(output)]) == 0
    file = output / FILE
    file.write_bytes(file.read_bytes()[:-7])
    capsys.readouterr()
    refuse(
        [str(output), "--output_dir", str(tmp_path / "again")], "model.sparse.safetensors: damaged or edited", capsys
    )


def test_an_edited_configuration_is_refused(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With half as many heads every matrix still has its shape."""
    output = tmp_path / "out"
    assert main(["export", str(source), "--output_dir", str(output)]) == 0
    (output / "SHA256SUMS").unlink()
    config = json.loads((output / "config.json").read_text())
    (output / "config.json").write_text(json.dumps(config | {"num_attention_heads": 2}))
    capsys.readouterr()
    refuse([str(output), "--output_dir", str(tmp_path / "again")], "num_attention_heads: expected 2", capsys)


def test_inspect_reads_the_sparse_format(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(source), "--output_dir", str(tmp_path / "out")]) == 0
    assert main(["inspect", str(source)]) == 0
    dense = capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert next(line for line in dense.splitlines() if "encoder weights" in line) in capsys.readouterr().out
