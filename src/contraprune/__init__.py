"""Contrastive Pruning of fine-tuned Hugging Face models.

Examples:
    >>> import contraprune
    >>> results = contraprune.prune(model="bert-base-uncased", teacher="runs/teacher/model", task="sst2",
    ...                             density=0.1, output_dir="runs/pruned")  # doctest: +SKIP
    >>> model = contraprune.load("runs/pruned")  # doctest: +SKIP
"""

import importlib
from typing import TYPE_CHECKING, Any

from contraprune.errors import UserError

if TYPE_CHECKING:
    from contraprune.pipeline import finetune, prune
    from contraprune.saving import load

__all__ = ["UserError", "__version__", "finetune", "load", "prune"]
__version__ = "0.1.0.dev0"

_HOMES = {"finetune": "contraprune.pipeline", "prune": "contraprune.pipeline", "load": "contraprune.saving"}


def __getattr__(name: str) -> Any:
    """Imports torch and transformers when a public function is first asked for, so that ``--help`` is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'contraprune' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
