"""How much each weight of a trained model matters, before any of it is pruned."""

from collections.abc import Callable, Mapping
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from contraprune.encoding import features_of, longest_first
from contraprune.masking import MaskedLinear
from contraprune.progress import progress as tracked
from contraprune.tasks import Task


def fisher_saliency(
    model: PreTrainedModel,
    linears: Mapping[str, MaskedLinear],
    task: Task,
    dataset: datasets.Dataset,
    *,
    collator: Callable[[list[dict[str, Any]]], Any],
    examples: int,
    batch_size: int,
    temperature: float,
    seed: int,
    accelerator: Accelerator,
    progress: bool,
) -> dict[str, Float[Tensor, "out in"]]:
    """The loss expected from removing each weight, by the diagonal of the Fisher information: ``W² · E[g²]``.

    The second-order term of optimal brain damage (LeCun et al. 1989), with the Hessian replaced by the Fisher
    information as in WoodFisher (Singh and Alistarh 2020), here its diagonal. ``g`` is the gradient, averaged over
    a small batch, of the loss against targets drawn from the model's own softened predictions, so that a training
    set which the model fits perfectly still tells its weights apart.

    Args:
        linears: the matrices to rate, as masked layers with nothing masked yet.
        dataset: encoded training set; ``examples`` of it are drawn with ``seed``.
        temperature: softens the predictions that targets are drawn from.

    Returns:
        Per matrix a tensor of its weight's shape; equal on every process.
    """
    was_training = model.training
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(dataset), generator=generator)[:examples].tolist()
    subset = dataset.select(chosen)
    subset = subset.select(longest_first(subset["length"])).remove_columns(["length"])
    loader = accelerator.prepare(
        DataLoader(subset, batch_size=batch_size, collate_fn=collator, generator=torch.Generator())
    )
    squares = {name: torch.zeros_like(linear.weight) for name, linear in linears.items()}
    weights = [linear.weight for linear in linears.values()]
    for batch in tracked(loader, "rating weights", show=progress):
        features = features_of(batch, task.objective)
        with accelerator.autocast():
            outputs = task.outputs(model(**features), features)
        loss = task.objective.sampled_loss(outputs, batch, temperature=temperature, generator=generator)
        gradients = torch.autograd.grad(loss, weights)
        for square, gradient in zip(squares.values(), gradients, strict=True):
            square.add_(gradient.square())
    model.train(was_training)
    return {
        name: linears[name].weight.detach().square() * accelerator.reduce(square, reduction="mean") / len(loader)
        for name, square in squares.items()
    }
