"""Scopes: which weights a criterion keeps."""

import pytest
import torch
from torch import nn

from contraprune import UserError, criteria
from contraprune.criteria import CRITERIA, Magnitude, Ranking, register
from contraprune.masking import mask_linears
from contraprune.pruning_config import PruningConfig
from contraprune.schedules import Moment, cubic
from reference import END, keep_largest


def kept_by_sorting(scores, density):
    flat = scores.flatten().tolist()
    return torch.tensor(keep_largest(flat, int(density * len(flat)))).view_as(scores)


def layers(learn_scores=False, dense_gradients=False):
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(6, 5), "b": nn.Linear(3, 7)})
    with torch.no_grad():
        model["b"].weight.mul_(10)
    return mask_linears(dict(model.items()), learn_scores=learn_scores, dense_gradients=dense_gradients)


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1])
def test_local_scope_keeps_the_top_of_each_matrix(density):
    linears = layers()
    Magnitude(linears, PruningConfig(density=density)).update_masks(END)
    for linear in linears.values():
        assert torch.equal(linear.mask.bool(), kept_by_sorting(linear.weight.abs(), density))


def test_global_scope_keeps_the_top_of_all_matrices_together():
    linears = layers()
    Magnitude(linears, PruningConfig(density=0.4, scope="global")).update_masks(END)
    together = torch.cat([linear.weight.abs().flatten() for linear in linears.values()])
    masks = torch.cat([linear.mask.flatten() for linear in linears.values()])
    assert torch.equal(masks.bool(), kept_by_sorting(together, 0.4))
    assert linears["b"].mask.float().mean() > linears["a"].mask.float().mean()


def test_the_density_is_that_of_the_moment():
    linears = layers()
    criterion = Magnitude(linears, PruningConfig(density=0.1))
    for step in range(11):
        criterion.update_masks(Moment(step=step, total=10, warmup=1, cooldown=3, last=False))
        density = cubic(step, 10, warmup_steps=1, initial=1.0, final=0.1, initial_warmup=1, final_warmup=3)
        assert [int(linear.mask.sum()) for linear in linears.values()] == [int(density * 30), int(density * 21)]


@pytest.mark.parametrize("name", sorted(CRITERIA))
@pytest.mark.parametrize("shape", [{}, {"pattern": "1:3"}, {"block": "1x3"}], ids=["free", "1:3", "1x3"])
def test_every_criterion_meets_its_contract(name, shape):
    """Through the steps of a run; continued from its state half-way, it ends with the same masks, in the pattern."""
    criterion_class = CRITERIA[name]
    config = PruningConfig(method=name, density=0.3, **shape)
    saved, ends = None, []
    for continued in (False, True):
        linears = layers(criterion_class.learns_scores, criterion_class.dense_gradients)
        criterion = criterion_class(linears, config)
        if criterion.started and not continued:
            criterion.start_from({name: linear.weight.detach().abs() for name, linear in linears.items()})
        for step in range(11):
            if step == 5 and not continued:
                state = {key: value.clone() for key, value in criterion.state().items()}
                saved = state, [[p.detach().clone() for p in linear.parameters()] for linear in linears.values()]
            if step == 5 and continued:
                criterion.load_state(saved[0])
                for linear, parameters in zip(linears.values(), saved[1], strict=True):
                    for parameter, value in zip(linear.parameters(), parameters, strict=True):
                        parameter.data.copy_(value)
            if step >= 5 or not continued:
                criterion.update_masks(Moment(step=step, total=10, warmup=1, cooldown=3, last=step == 10))
                training_step(linears, criterion, seed=step)
        ends.append([linear.mask.clone() for linear in linears.values()])
    assert all(torch.equal(*pair) for pair in zip(*ends, strict=True))
    assert sum(int(mask.count_nonzero()) for mask in ends[0]) == pytest.approx(0.3 * 51, abs=1)
    in_threes = torch.cat([mask.view(-1, 3).count_nonzero(1) for mask in ends[0]]).unique().tolist()
    assert in_threes == {"pattern": [0, 1], "block": [0, 3]}.get(next(iter(shape), ""), in_threes)


def training_step(linears, criterion, *, seed):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    x = torch.randn(4, 6, generator=generator)
    loss = linears["b"](linears["a"](x)[:, :3]).square().sum()
    if (penalty := criterion.penalty()) is not None:
        weight, value = penalty
        loss = loss + weight * value
    loss.backward()
    criterion.observe_gradients()
    with torch.no_grad():
        for linear in linears.values():
            linear.drop_masked_gradient()
            for parameter in linear.parameters():
                parameter.add_(parameter.grad, alpha=-1e-3)
                parameter.grad = None


@pytest.mark.parametrize(
    ("shape", "message"),
    [({"pattern": "2:4"}, "--pattern 2:4: a of 5 x 6 weights"), ({"block": "2x1"}, "--block 2x1: a of 5 x 6 weights")],
)
@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_matrices_that_do_not_divide_are_refused(name, shape, message):
    with pytest.raises(UserError, match=message):
        CRITERIA[name](layers(), PruningConfig(**shape))


class Mine(Magnitude):
    """A criterion of somebody's own."""


def test_a_registered_criterion_is_had_by_its_name_and_names_are_not_taken_twice(monkeypatch):
    monkeypatch.setattr("contraprune.criteria.CRITERIA", CRITERIA.copy())
    register("mine", Mine)
    register("mine", Mine)
    assert criteria.CRITERIA["mine"] is Mine
    for name in ("movement", "taylor"):
        with pytest.raises(ValueError, match="another criterion has this name"):
            register(name, Mine)
    with pytest.raises(TypeError, match="Ranking has to define importance"):
        register("other", Ranking)
    with pytest.raises(TypeError, match="expected a subclass"):
        register("other", len)
