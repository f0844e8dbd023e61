"""First-order Taylor importance of heads and neurons (Molchanov et al. 2017; CAP-f, Xu et al. 2022)."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from contraprune.gates import accumulate, attach_gates, normalise_per_layer
from contraprune.selection import remove_lowest
from contraprune.structure import Layer


class UnitImportance(NamedTuple):
    """Per layer, the importance of each attention head and of each FFN neuron."""

    heads: list[Float[Tensor, " _heads"]]
    neurons: list[Float[Tensor, " _neurons"]]


def taylor_importance(
    model: PreTrainedModel,
    layers: list[Layer],
    batches: Iterable[Any],
    loss_of: Callable[[Any], Tensor],
    *,
    reduce: Callable[[Tensor], Tensor],
    normalise: bool,
) -> UnitImportance:
    """Sum over batches of ``|dL/dgate|`` for a gate of one on every unit, in eval mode.

    Args:
        layers: ``find_layers(model)``.
        loss_of: runs the model on a batch and gives its loss.
        reduce: sums a tensor over processes.
        normalise: divide each layer's scores by their L2 norm, heads and neurons apart.
    """
    was_training = model.training
    model.eval()
    with attach_gates(model, layers, requires_grad=True) as gates:
        heads, neurons = ([torch.zeros_like(gate) for gate in group] for group in (gates.heads, gates.neurons))
        for batch in batches:
            of_heads, of_neurons = gates.gradients(loss_of(batch))
            heads, neurons = accumulate(heads, of_heads), accumulate(neurons, of_neurons)
    model.train(was_training)
    heads, neurons = ([reduce(scores.detach()) for scores in group] for group in (heads, neurons))
    if normalise:
        heads, neurons = normalise_per_layer(heads), normalise_per_layer(neurons)
    return UnitImportance(heads, neurons)


def keep_after_removal(
    importance: list[Float[Tensor, " _units"]], count: int, *, keep_at_least: int
) -> list[Bool[Tensor, " _units"]]:
    """Which units of each layer stay when the ``count`` least important of all layers go.

    Raises:
        ValueError: so many cannot go while every layer keeps ``keep_at_least``.
    """
    widest = max(len(scores) for scores in importance)
    table = torch.zeros(len(importance), widest)
    alive = torch.zeros(len(importance), widest, dtype=torch.bool)
    for row, scores in enumerate(importance):
        table[row, : len(scores)] = scores.float().cpu()
        alive[row, : len(scores)] = True
    kept = remove_lowest(table, alive, count, keep_at_least=keep_at_least)
    return [kept[row, : len(scores)] for row, scores in enumerate(importance)]
