"""What a model is made of: living heads and neurons, density of every matrix, parameters, size on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from contraprune.remote_code import unpruned_layers
from contraprune.saving import parameter_counts
from contraprune.structure import HeadGroup, NeuronGroup, Projection, feature_dims, find_layers

_WEIGHTS = (".safetensors", ".onnx", ".data", ".xml", ".bin")  # of ONNX the graph and its weights, as of OpenVINO


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
class Units:
    """The heads or the neurons of one layer.

    Attributes:
        before: how many there were before any was removed, as far as the configuration tells.
        densities: of each that is there, the non-zero fraction of its weights.
        living: how many hand anything on: not all their weights in the output projection are zero.
    """

    before: int
    densities: tuple[float, ...]
    living: int


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """One encoder layer: its units and its matrices."""

    name: str
    heads: Units
    neurons: Units
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
            heads=_units(layer.heads, unpruned.heads.num_units),
            neurons=_units(layer.neurons, unpruned.neurons.num_units),
            matrices=tuple(
                Matrix(
                    name=name.removeprefix(layer.name + "."),
                    shape=tuple(module.weight.shape),  # type: ignore[arg-type]
                    nonzero=int(torch.count_nonzero(module.weight)),  # type: ignore[arg-type]
                )
                for name, module in layer.linears.items()
            ),
        )
        for layer, unpruned in zip(find_layers(model), unpruned_layers(model), strict=True)
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


def _units(group: HeadGroup | NeuronGroup, before: int) -> Units:
    consumed, size = _nonzero(group.consumer, group.num_units, side=1)
    counts, sizes = consumed.clone(), size
    for producer in group.producers:
        produced, size = _nonzero(producer, group.num_units, side=0)
        counts, sizes = counts + produced, sizes + size
    densities = (counts / max(1, sizes)).tolist()
    return Units(before=before, densities=tuple(densities), living=int(torch.count_nonzero(consumed)))


def _nonzero(projection: Projection, units: int, *, side: int) -> tuple[Tensor, int]:
    """Per unit, its non-zero weights in a matrix that makes it (side 0) or takes it (side 1); and how many it has."""
    weight = projection.module.weight
    assert isinstance(weight, Tensor)
    per_feature = torch.count_nonzero(weight, dim=feature_dims(projection.module)[1 - side])
    counts = per_feature.view(projection.blocks, units, projection.size).sum(dim=(0, 2))
    return counts, weight.numel() // max(1, units)


def unit_densities(groups: Sequence[Units], most_columns: int) -> Float[np.ndarray, "layers columns"]:
    """The density of every unit, a row per layer; NaN where units were removed for good (at the end of a row).

    Where a layer had more than ``most_columns`` units, a column is the mean of neighbours.
    """
    widest = max(units.before for units in groups)
    columns = min(widest, most_columns)
    cells = np.full((len(groups), columns), np.nan)
    for row, units in enumerate(groups):
        owners = np.arange(len(units.densities)) * columns // widest
        for column in np.unique(owners):
            cells[row, column] = np.mean(np.asarray(units.densities)[owners == column])
    return cells


def weight_bytes(directory: Path) -> int:
    """Size of the weights in a model directory, of whatever format, in bytes."""
    return sum(file.stat().st_size for file in directory.iterdir() if file.suffix in _WEIGHTS)
