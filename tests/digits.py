"""Gradual pruning of a small network on real data (scikit-learn's digits) in a plain loop: seconds, and it can fail."""

import copy

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from contraprune.criteria import CRITERIA
from contraprune.distillation import distillation_loss
from contraprune.masking import fold, mask_linears
from contraprune.pruning_config import PruningConfig
from contraprune.schedules import Moment

PRUNED = ("0", "2", "4")  # of the teacher's modules; the output layer stays dense


def digits():
    """(images, labels) to train on, (images, labels) to test on."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]
    return images[:1200], labels[:1200], images[1200:], labels[1200:]


def train_teacher(images, labels):
    torch.manual_seed(0)
    sizes = [(64, 256), (256, 256), (256, 256)]
    model = nn.Sequential(*[part for size in sizes for part in (nn.Linear(*size), nn.GELU())], nn.Linear(256, 10))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(300):
        rows = torch.randint(0, len(labels), (32,))
        optimizer.zero_grad()
        F.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    return model


def saliency_of(model, linears, images):
    """W² · E[g²] with labels drawn from the model's softened predictions, in batches of eight."""
    torch.manual_seed(2)
    squares = {name: torch.zeros_like(linear.weight) for name, linear in linears.items()}
    for batch in images.split(8):
        logits = model.eval()(batch) / 2
        labels = torch.multinomial(logits.softmax(-1), 1).squeeze(1)
        gradients = torch.autograd.grad(F.cross_entropy(logits, labels), [m.weight for m in linears.values()])
        for square, gradient in zip(squares.values(), gradients, strict=True):
            square.add_(gradient.square())
    return {name: linears[name].weight.detach() ** 2 * square / len(images) * 8 for name, square in squares.items()}


def prune(teacher, images, labels, method, *, density, steps, **shape):
    """The pruned model, folded, and the density at every step."""
    model, kind = copy.deepcopy(teacher), CRITERIA[method]
    linears = mask_linears(
        {name: model.get_submodule(name) for name in PRUNED},
        learn_scores=kind.learns_scores,
        dense_gradients=kind.dense_gradients,
    )
    criterion = kind(linears, PruningConfig(method=method, density=density, **shape))
    if kind.started:
        criterion.start_from(saliency_of(model, linears, images))
    scores = [linear.mask_scores for linear in linears.values() if linear.mask_scores is not None]
    of_scores = {id(score) for score in scores}
    others = [p for p in model.parameters() if id(p) not in of_scores]
    trained = others if kind.trains_weights else list(model[-1].parameters())
    groups = [{"params": trained, "lr": 1e-3}]
    if scores:
        groups.append({"params": scores, "lr": criterion.score_learning_rate(steps)})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(step / (0.1 * steps), (steps - step) / (0.9 * steps))
    )
    last, densities = int(0.85 * steps), []
    torch.manual_seed(1)
    for step in range(steps):
        if step <= last:
            moment = Moment(step=step, total=steps, warmup=steps // 10, cooldown=steps * 3 // 10, last=step == last)
            criterion.update_masks(moment)
        densities.append(
            sum(int(m.mask.count_nonzero()) for m in linears.values()) / sum(m.mask.numel() for m in linears.values())
        )
        rows = torch.randint(0, len(labels), (32,))
        optimizer.zero_grad()
        logits, target = model.train()(images[rows]), teacher(images[rows]).detach()
        loss = 0.1 * F.cross_entropy(logits, labels[rows]) + 0.9 * distillation_loss(logits, target, temperature=2.0)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        criterion.observe_gradients()
        for linear in linears.values():
            linear.drop_masked_gradient()
        if (penalty := criterion.penalty()) is not None:
            (penalty[0] * penalty[1]).backward()
        optimizer.step()
        scheduler.step()
    fold(model)
    return model.eval(), densities


def accuracy(model, images, labels):
    with torch.no_grad():
        return (model(images).argmax(-1) == labels).float().mean().item()
