"""Two small real runs, made once: single weights with every source, heads and neurons without contrast."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from contraprune.pipeline import finetune, prune


@pytest.fixture(scope="session")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Directories of a ``dense``, a ``sparse`` and a ``slim`` run of the toy task."""
    folder = tmp_path_factory.mktemp("runs")
    common = {
        "model": str(tiny / "pretrained"),
        "task": "toy",
        "max_train_samples": 64,
        "max_eval_samples": 48,
        "max_length": 24,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 16,
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    finetune(**common, output_dir=str(folder / "dense"))
    common |= {"teacher": str(folder / "dense" / "model"), "cache_dir": str(folder / "cache")}
    prune(**common, density=0.25, extra_examples=32, output_dir=str(folder / "sparse"))
    prune(
        **common, method="taylor", density=0.5, num_stages=2, contrast="none", importance_examples=32,
        output_dir=str(folder / "slim"),
    )  # fmt: skip
    return SimpleNamespace(**{name: folder / name for name in ("dense", "sparse", "slim")})
