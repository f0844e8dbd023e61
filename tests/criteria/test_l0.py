"""L0 against the released gates, in training with their noise and in evaluation."""

import numpy as np
import pytest
import torch
from torch import nn

from contraprune.criteria import L0
from contraprune.criteria.l0 import TRAVEL, evaluation_gates, scores_for
from contraprune.masking import fold, mask_linears
from contraprune.pruning_config import PruningConfig
from contraprune.schedules import Moment
from reference import END


@pytest.fixture
def released(golden):
    values = np.load(golden / "binarizers.npz")
    names = ("x", "weight", "bias", "mask_scores", "u_seed123", "out_train", "out_eval")
    return {name: torch.tensor(values[f"l0_linear/{name}"]) for name in names}


def subject(released, **settings):
    linear = nn.Linear(13, 7)
    linear.load_state_dict({"weight": released["weight"], "bias": released["bias"]})
    model = nn.Sequential(linear)
    linears = mask_linears({"layer": linear}, learn_scores=True)
    linear.mask_scores.data.copy_(released["mask_scores"])
    return model, L0(linears, PruningConfig(method="l0", **settings))


def test_gates_in_evaluation_are_the_released_ones(golden):
    values = np.load(golden / "binarizers.npz")
    keys = [key for key in values.files if key.endswith("/l0_eval")]
    assert len(keys) == 7
    for key in keys:
        gates = evaluation_gates(torch.from_numpy(values[key.replace("l0_eval", "input")]))
        np.testing.assert_allclose(gates.numpy(), values[key], atol=2e-7)


def test_training_draws_the_released_noise_and_evaluation_none(released):
    model, criterion = subject(released, final_penalty=1.0)
    criterion.update_masks(Moment(step=5, total=10, warmup=0, cooldown=0, last=False))
    torch.manual_seed(123)
    torch.testing.assert_close(model.train()(released["x"]), released["out_train"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.eval()(released["x"]), released["out_eval"], rtol=1e-5, atol=1e-5)


def test_the_gradient_of_the_scores_is_that_of_the_formula(released):
    model, criterion = subject(released, final_penalty=1.0)
    torch.manual_seed(123)
    model.train()(released["x"]).square().sum().backward()
    scores = released["mask_scores"].double().requires_grad_()
    uniform = released["u_seed123"].double()
    gates = torch.sigmoid((torch.logit(uniform) + scores) * 1.5) * 1.2 - 0.1
    weight = released["weight"].double() * torch.where((gates > 0) & (gates < 1), gates, gates.clamp(0, 1).detach())
    (released["x"].double() @ weight.T + released["bias"]).square().sum().backward()
    found = criterion.linears["layer"].mask_scores.grad
    torch.testing.assert_close(found.double(), scores.grad, rtol=1e-3, atol=1e-5)


def test_the_penalty_is_how_often_a_drawn_gate_is_open(released):
    criterion = subject(released, final_penalty=1.0)[1]
    torch.manual_seed(0)
    draws = torch.stack([criterion.linears["layer"].sampler() for _ in range(4000)])
    assert criterion.value().item() == pytest.approx(float((draws > 0).float().mean()), abs=4e-3)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.95])
def test_the_last_masks_have_the_density_end_the_noise_and_fold_exactly(released, density):
    model, criterion = subject(released, density=density)
    criterion.update_masks(END)
    mask = criterion.linears["layer"].mask.clone()
    top = released["mask_scores"].flatten().topk(int(density * 91)).indices
    assert sorted(mask.flatten().nonzero().flatten().tolist()) == sorted(top.tolist())
    expected = (torch.sigmoid(released["mask_scores"]) * 1.2 - 0.1).clamp(0.05, 1)
    torch.testing.assert_close(mask[mask != 0], expected[mask != 0])
    out = model.train()(released["x"])
    assert torch.equal(out, model(released["x"]))
    fold(model)
    assert torch.equal(model[0].weight, released["weight"] * mask)
    assert torch.equal(model(released["x"]), out)
    assert criterion.penalty() is None


def test_when_every_gate_is_shut_the_penalty_brings_weights_back(released):
    _, criterion = subject(released, density=0.1)
    linear = criterion.linears["layer"]
    linear.mask_scores.data.fill_(-9.0)
    criterion.unit = 1.0
    criterion.update_masks(Moment(step=5, total=10, warmup=0, cooldown=0, last=False))
    assert not linear.mask.any()
    weight, value = criterion.penalty()
    (weight * value).backward()
    assert weight < 0
    assert (linear.mask_scores.grad < 0).all()  # a step against it opens gates


@pytest.mark.parametrize("density", [0.05, 0.5])
def test_scores_pushed_down_together_shut_the_gates_in_order(density):
    rank = torch.linspace(0, 1, 2001).view(1, 2001)
    scores = scores_for(rank, density)
    assert (evaluation_gates(scores) > 0).all()
    for share in (0.25, 0.5, 1.0):
        open_now = (evaluation_gates(scores - 0.01 - TRAVEL * share) > 0).float().mean()
        assert float(open_now) == pytest.approx(1 - (1 - density) * share, abs=2e-3)
