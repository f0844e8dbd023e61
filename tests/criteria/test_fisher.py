"""Diagonal-Fisher saliency: against a loop, for masked weights too, and undisturbed by an overflow."""

import torch
from torch import nn

from contraprune.criteria import Fisher
from contraprune.masking import mask_linears
from contraprune.pruning_config import PruningConfig
from reference import END


def subject(**settings):
    torch.manual_seed(0)
    linears = mask_linears({"a": nn.Linear(3, 2, bias=False)}, learn_scores=False, dense_gradients=True)
    return linears["a"], Fisher(linears, PruningConfig(method="fisher", density=0.5, **settings))


def backward(linear, seed):
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
    linear.weight.grad = None
    linear(x).square().sum().backward()
    used = linear.weight.detach() * linear.mask
    return [[sum(2 * (x[n] @ used[o]) * x[n, i] for n in range(4)) for i in range(3)] for o in range(2)]


def test_it_is_the_squared_weight_times_the_moving_average_of_the_squared_gradient_of_the_masked_weight():
    linear, criterion = subject(fisher_decay=0.8)
    saliency = torch.rand(2, 3)
    criterion.start_from({"a": saliency})
    torch.testing.assert_close(criterion.importance("a"), saliency)
    criterion.update_masks(END)
    average = saliency / linear.weight.detach() ** 2
    for seed in range(3):
        dense = torch.tensor(backward(linear, seed))
        torch.testing.assert_close(linear.weight.grad, dense)
        criterion.observe_gradients()
        linear.drop_masked_gradient()
        torch.testing.assert_close(linear.weight.grad, dense * linear.mask)
        average = 0.8 * average + 0.2 * dense**2
    torch.testing.assert_close(criterion.importance("a"), linear.weight.detach() ** 2 * average)


def test_a_masked_weight_that_matters_comes_back():
    linear, criterion = subject(fisher_decay=0.5)
    saliency = torch.ones(2, 3)
    saliency[0, 0] = 0.0
    criterion.start_from({"a": saliency})
    criterion.update_masks(END)
    assert linear.mask[0, 0] == 0
    for _ in range(20):
        linear.weight.grad = torch.zeros(2, 3)
        linear.weight.grad[0, 0] = 9.0
        criterion.observe_gradients()
    criterion.update_masks(END)
    assert linear.mask[0, 0] == 1


def test_a_step_whose_gradient_overflowed_is_left_out():
    linear, criterion = subject()
    criterion.start_from({"a": torch.ones(2, 3)})
    before = criterion.importance("a").clone()
    linear.weight.grad = torch.full((2, 3), float("inf"))
    criterion.observe_gradients()
    assert torch.equal(criterion.importance("a"), before)
