"""First-order Taylor importance of heads and neurons (Molchanov et al. 2017; CAP-f, Xu et al. 2022)."""

import itertools
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
    loss_of: Callable[[Any], Tensor | None],
    *,
    reduce: Callable[[Tensor], Tensor],
    normalise: bool,
) -> UnitImportance:
    """Sum over batches of ``|dL/dgate|`` for a gate of one on every unit, in eval mode.

    Args:
        layers: ``find_layers(model)``.
        loss_of: runs the model on this process's part of a batch and gives its part of the loss, None for no part;
            over all processes these add up to the loss of the batch.
        reduce: sums a tensor over processes; called once for every batch, which all of them go through together.
        normalise: divide each layer's scores by their L2 norm, heads and neurons apart.
    """
    was_training = model.training
    model.eval()
    with attach_gates(model, layers, requires_grad=True) as gates:
        none = [torch.zeros_like(gate).detach() for gate in (*gates.heads, *gates.neurons)]
        lengths = [len(gate) for gate in none]
        heads, neurons = none[: len(layers)], none[len(layers) :]
        for batch in batches:
            loss = loss_of(batch)
            mine = none if loss is None else [*itertools.chain(*gates.gradients(loss))]
            whole = reduce(torch.cat(mine)).split(lengths)  # before the absolute value: the gradient of the batch
            heads, neurons = accumulate(heads, whole[: len(layers)]), accumulate(neurons, whole[len(layers) :])
    model.train(was_training)
    if normalise:
        heads, neurons = normalise_per_layer(heads), normalise_per_layer(neurons)
    return UnitImportance(heads, neurons)


def keep_after_removal(
    importance: list[Float[Tensor, " _units"]], count: int, *, keep_at_least: int, divisor: int = 1
) -> list[Bool[Tensor, " _units"]]:
    """Which units of each layer stay when the ``count`` least important of all layers go.

    See :func:`contraprune.selection.remove_lowest`.

    Raises:
        ValueError: so many cannot go while every layer keeps ``keep_at_least``.
    """
    widest = max(len(scores) for scores in importance)
    table = torch.zeros(len(importance), widest)
    alive = torch.zeros(len(importance), widest, dtype=torch.bool)
    for row, scores in enumerate(importance):
        table[row, : len(scores)] = scores.float().cpu()
        alive[row, : len(scores)] = True
    kept = remove_lowest(table, alive, count, keep_at_least=keep_at_least, divisor=divisor)
    return [kept[row, : len(scores)] for row, scores in enumerate(importance)]
