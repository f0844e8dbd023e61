"""What a model is made of: density of every matrix, parameters, size on disk."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from contraprune.saving import parameter_counts
from contraprune.structure import find_layers


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """One weight matrix of an encoder layer."""

    name: str  # within its layer, e.g. attention.self.query
    shape: tuple[int, ...]
    nonzero: int

    @property
    def numel(self) -> int:
        return int(torch.Size(self.shape).numel())


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """One encoder layer: its sizes and its matrices."""

    name: str
    heads: int
    neurons: int
    matrices: tuple[Matrix, ...]

    @property
    def density(self) -> float:
        return sum(m.nonzero for m in self.matrices) / max(1, sum(m.numel for m in self.matrices))


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A model as ``contraprune inspect`` shows it."""

    model_class: str
    layers: tuple[LayerSummary, ...]
    parameters: int
    nonzero: int
    encoder_weights: int
    encoder_nonzero: int
    bytes_on_disk: int | None

    @property
    def encoder_density(self) -> float:
        return self.encoder_nonzero / max(1, self.encoder_weights)


@torch.no_grad()
def summarise(model: PreTrainedModel, directory: Path | None = None) -> Summary:
    """Counts the non-zero weights of every matrix that pruning acts on, and of the whole model.

    Args:
        directory: where the model was loaded from, for the size of its weight files.

    Raises:
        UserError: the architecture is not known.
    """
    layers = tuple(
        LayerSummary(
            name=layer.name,
            heads=layer.heads.num_heads,
            neurons=layer.neurons.num_neurons,
            matrices=tuple(
                Matrix(
                    name=name.removeprefix(layer.name + "."),
                    shape=tuple(module.weight.shape),  # type: ignore[arg-type]
                    nonzero=int(torch.count_nonzero(module.weight)),  # type: ignore[arg-type]
                )
                for name, module in layer.linears.items()
            ),
        )
        for layer in find_layers(model)
    )
    counts = parameter_counts(model)
    matrices = [matrix for layer in layers for matrix in layer.matrices]
    return Summary(
        model_class=type(model).__name__,
        layers=layers,
        parameters=counts["all"],
        nonzero=counts["nonzero"],
        encoder_weights=sum(matrix.numel for matrix in matrices),
        encoder_nonzero=sum(matrix.nonzero for matrix in matrices),
        bytes_on_disk=None if directory is None else weight_bytes(directory),
    )


def weight_bytes(directory: Path) -> int:
    """Size of the safetensors files of a model directory, in bytes."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))
