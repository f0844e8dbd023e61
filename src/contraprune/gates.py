"""Multiplicative gates on attention heads and FFN neurons, and importance scores from their gradients.

A gate multiplies what a head (or a neuron) hands to the output projection of its attention (or FFN). That is
exactly masking the head, whichever attention implementation the model runs.
"""

from collections.abc import Sequence
from types import TracebackType

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from contraprune.structure import HeadGroup, Layer, NeuronGroup, assert_same_model


class Gates:
    """Gates attached to a model, all one at first; made by ``attach_gates``.

    ``heads[l]`` is (num_heads,) and ``neurons[l]`` (num_neurons,) of layer ``l``: leaf tensors whose values
    may be set at any time (``gates.heads[0].data[2] = 0``). As a context manager, gone at the end.
    """

    heads: list[Float[Tensor, " _heads"]]
    neurons: list[Float[Tensor, " _neurons"]]

    def __init__(self, layers: Sequence[Layer], requires_grad: bool) -> None:
        self._handles: list[RemovableHandle] = []
        self.heads = [self._attach(layer.heads, requires_grad) for layer in layers]
        self.neurons = [self._attach(layer.neurons, requires_grad) for layer in layers]

    def gradients(self, loss: Float[Tensor, ""]) -> tuple[list[Tensor], list[Tensor]]:
        """The gradients of ``loss`` with respect to ``heads`` and ``neurons``; touches no ``.grad``."""
        gates = [*self.heads, *self.neurons]
        found = torch.autograd.grad(loss, gates, allow_unused=True, materialize_grads=True)
        return list(found[: len(self.heads)]), list(found[len(self.heads) :])

    def remove(self) -> None:
        """Takes the gates off the model, which then runs as before."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> "Gates":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _attach(self, group: HeadGroup | NeuronGroup, requires_grad: bool) -> Tensor:
        weight, size = group.consumer.module.weight, group.consumer.size
        assert isinstance(weight, Tensor)
        # Sums of many small gradients: never kept in half precision, even where the weights are.
        dtype = torch.promote_types(weight.dtype, torch.float32)
        gate = torch.ones(group.num_units, dtype=dtype, device=weight.device, requires_grad=requires_grad)

        def multiply(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            features, *rest = inputs
            return (features * gate.to(features.dtype).repeat_interleave(size), *rest)

        self._handles.append(group.consumer.module.register_forward_pre_hook(multiply))
        return gate


def attach_gates(model: nn.Module, layers: Sequence[Layer], *, requires_grad: bool = False) -> Gates:
    """Puts a gate of one on every head and neuron of ``layers``, which ``find_layers(model)`` gave.

    A copy of the model made while gates are attached shares them; remove them before copying or saving.
    """
    assert_same_model(model, layers)
    return Gates(layers, requires_grad)


def accumulate(
    totals: Sequence[Float[Tensor, " _units"]], gradients: Sequence[Float[Tensor, " _units"]]
) -> list[Float[Tensor, " _units"]]:
    """Adds one batch to first-order Taylor importance scores: per layer, total + |dL/dgate|.

    To first order, |dL/dgate| is how much the loss changes when a unit whose gate is one is removed
    (Molchanov et al. 2017; for heads Michel et al. 2019, section 4.1; summed over batches as in CAP-f).
    """
    return [total + gradient.abs() for total, gradient in zip(totals, gradients, strict=True)]


def normalise_per_layer(importance: Sequence[Float[Tensor, " _units"]]) -> list[Float[Tensor, " _units"]]:
    """Divides every layer's scores by their L2 norm, so that layers can be compared; zeros stay zeros.

    Molchanov et al. 2017; for heads Michel et al. 2019, section 4.1.
    """
    return [scores / scores.norm().clamp_min(torch.finfo(scores.dtype).tiny) for scores in importance]
