"""Scopes: which weights a criterion keeps."""

import pytest
import torch
from torch import nn

from contraprune.criteria import CRITERIA, Magnitude
from contraprune.masking import mask_linears
from reference import keep_largest


def kept_by_sorting(scores, density):
    flat = scores.flatten().tolist()
    return torch.tensor(keep_largest(flat, int(density * len(flat)))).view_as(scores)


def layers(learn_scores=False):
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(6, 5), "b": nn.Linear(3, 7)})
    with torch.no_grad():
        model["b"].weight.mul_(10)
    return mask_linears(dict(model.items()), learn_scores=learn_scores)


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1])
def test_local_scope_keeps_the_top_of_each_matrix(density):
    linears = layers()
    Magnitude(linears, scope="local").update_masks(density)
    for linear in linears.values():
        assert torch.equal(linear.mask.bool(), kept_by_sorting(linear.weight.abs(), density))


def test_global_scope_keeps_the_top_of_all_matrices_together():
    linears = layers()
    Magnitude(linears, scope="global").update_masks(0.4)
    together = torch.cat([linear.weight.abs().flatten() for linear in linears.values()])
    masks = torch.cat([linear.mask.flatten() for linear in linears.values()])
    assert torch.equal(masks.bool(), kept_by_sorting(together, 0.4))
    assert linears["b"].mask.mean() > linears["a"].mask.mean()


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_every_criterion_meets_its_contract(name):
    criterion_class = CRITERIA[name]
    linears = layers(criterion_class.learns_scores)
    criterion = criterion_class(linears, scope="local")
    for layer_name, linear in linears.items():
        assert criterion.importance(layer_name).shape == linear.weight.shape
        assert not criterion.importance(layer_name).requires_grad or name == "magnitude"
        assert (linear.mask_scores is not None) == criterion_class.learns_scores
    criterion.observe_gradients()
    criterion.load_state(criterion.state())
    criterion.update_masks(0.3)
    assert [int(linear.mask.sum()) for linear in linears.values()] == [int(0.3 * 30), int(0.3 * 21)]
