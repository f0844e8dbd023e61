"""How much each weight of a trained model matters, before any of it is pruned."""

from collections.abc import Callable, Mapping
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from contraprune.encoding import features_of, longest_first
from contraprune.masking import MaskedLinear
from contraprune.objectives import Draws
from contraprune.processes import Batches, cut
from contraprune.products import fast_products
from contraprune.progress import progress as tracked
from contraprune.seeding import seeded
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
        batch_size: of the batches that gradients are averaged over; processes share whole ones.
        temperature: softens the predictions that targets are drawn from.

    Returns:
        Per matrix a tensor of its weight's shape; equal on every process, and however many there are.
    """
    was_training = model.training
    model.eval()
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:examples].tolist()
    subset = dataset.select(chosen)
    subset = subset.select(longest_first(subset["length"])).remove_columns(["length"])
    batches = cut(len(subset), batch_size)
    mine = range(accelerator.process_index, len(batches), accelerator.num_processes)
    loader = Batches(subset, [batches[number] for number in mine], collator=collator, accelerator=accelerator)
    squares = {name: torch.zeros_like(linear.weight) for name, linear in linears.items()}
    weights = [linear.weight for linear in linears.values()]
    with fast_products(model):
        for number, batch in zip(mine, tracked(loader, "rating weights", show=progress), strict=True):
            features = features_of(batch, task.objective)
            with accelerator.autocast():
                outputs = task.outputs(model(**features), features)
            draws = Draws(seeded(seed, number))  # of the batch alone: the same on whichever process it is
            loss = task.objective.sampled_loss(outputs, batch, temperature=temperature, draws=draws)
            gradients = torch.autograd.grad(loss, weights)
            for square, gradient in zip(squares.values(), gradients, strict=True):
                square.add_(gradient.square())
    model.train(was_training)
    return {
        name: linears[name].weight.detach().square() * accelerator.reduce(square, reduction="sum") / len(batches)
        for name, square in squares.items()
    }
