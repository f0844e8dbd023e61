"""The sparse format: what ``contraprune.load`` runs in the sparse engine."""

from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from contraprune.engine import write_sparse

if TYPE_CHECKING:
    from contraprune.export.job import ExportConfig


def write_sparse_model(model: PreTrainedModel, directory: Path, config: "ExportConfig") -> None:
    """Configuration and weights; see ``contraprune.engine.format`` for the file."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    write_sparse(model, directory, values=config.values, embeddings=config.embeddings or config.values)
