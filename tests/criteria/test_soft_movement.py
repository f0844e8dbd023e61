"""Soft movement against the released masks, gradients and penalties, and where its scores start."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from contraprune import UserError
from contraprune.criteria import SoftMovement
from contraprune.criteria.penalised import keep_with_floors
from contraprune.criteria.soft_movement import scores_for
from contraprune.masking import mask_linears
from contraprune.pruning_config import PruningConfig
from contraprune.schedules import Moment
from contraprune.selection import keep_above
from reference import END, cubic, keep_largest


def layer(weight, bias=None, scores=None):
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    masked = mask_linears({"layer": linear}, learn_scores=True)["layer"]
    with torch.no_grad():
        masked.weight.copy_(weight)
        if bias is not None:
            masked.bias.copy_(bias)
        if scores is not None:
            masked.mask_scores.copy_(scores)
    return masked


def with_scores(*matrices, **settings):
    linears = {
        name: layer(torch.zeros_like(scores), scores=scores) for name, scores in zip("ab", matrices, strict=False)
    }
    return SoftMovement(linears, PruningConfig(method="soft_movement", **settings))


def test_forward_and_gradients_are_those_of_the_released_layer(golden):
    values = np.load(golden / "binarizers.npz")
    given = {
        name: torch.tensor(values[f"linear_sigmoied_threshold@0.4/{name}"])
        for name in ("x", "weight", "bias", "mask_scores", "upstream", "out")
    }
    masked = layer(given["weight"], given["bias"], given["mask_scores"])
    config = PruningConfig(method="soft_movement", final_penalty=1.0, final_threshold=0.4)
    SoftMovement({"layer": masked}, config).update_masks(END)
    out = masked(given["x"].requires_grad_())
    out.backward(given["upstream"])
    torch.testing.assert_close(out, given["out"], rtol=1e-5, atol=1e-6)
    found = {"x": given["x"].grad} | {name: p.grad for name, p in masked.named_parameters()}
    for name, gradient in found.items():
        expected = torch.tensor(values[f"linear_sigmoied_threshold@0.4/grad_{name}"])
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6, msg=name)


def test_a_threshold_on_raw_scores_is_one_on_their_sigmoid(golden):
    values = np.load(golden / "binarizers.npz")
    keys = [key for key in values.files if "/threshold@" in key]
    assert len(keys) == 35
    for key in keys:
        matrix, threshold = key.split("/threshold@")
        scores = torch.from_numpy(values[f"{matrix}/input"]).double()
        mask = keep_above(scores, float(torch.tensor(float(threshold)).double().sigmoid()), min_density=0.0)
        released = torch.from_numpy(values[key]).bool()
        floor = int(0.005 * scores.numel()) + 1
        if (scores > float(threshold)).sum() >= floor:
            assert torch.equal(mask, released), key


@pytest.mark.parametrize("regularizer", ["l1", "l0"])
def test_the_penalty_is_the_released_one(golden, regularizer):
    values = np.load(golden / "binarizers.npz")
    scores = [torch.tensor(values[f"regularization/scores_{name}"]) for name in "ab"]
    criterion = with_scores(*scores, regularizer=regularizer)
    expected = float(values[f"regularization/{regularizer}"])
    assert criterion.value().item() == pytest.approx(expected, rel=1e-6)


def test_without_a_density_threshold_and_weight_follow_the_released_schedule(golden):
    checked = 0
    for case in json.loads((golden / "schedule_threshold.json").read_text()):
        if case["initial_threshold"] != 0 or case["step"] in (0, case["total_step"]):
            continue
        criterion = with_scores(
            torch.linspace(-6, 6, 60).view(6, 10),
            final_penalty=case["final_lambda"],
            final_threshold=case["final_threshold"],
        )
        moment = Moment(
            step=case["step"],
            total=case["total_step"],
            warmup=case["initial_warmup"] * case["warmup_steps"],
            cooldown=case["final_warmup"] * case["warmup_steps"],
            last=False,
        )
        criterion.update_masks(moment)
        assert criterion.weight == pytest.approx(case["lambda"])
        above = torch.linspace(-6, 6, 60).sigmoid() > case["threshold"]
        assert torch.equal(criterion.linears["a"].mask.flatten().bool(), above)
        checked += 1
    assert checked > 10


@pytest.mark.parametrize("density", [0.03, 0.1, 0.5, 0.95])
def test_scores_that_do_not_move_follow_the_density_schedule(density):
    size = 4000
    criterion = with_scores(torch.zeros(40, 100), density=density)
    criterion.start_from({"a": torch.rand(40, 100, generator=torch.Generator().manual_seed(0))})
    for step in range(0, 101, 5):
        criterion.update_masks(Moment(step=step, total=100, warmup=10, cooldown=30, last=False))
        wanted = cubic(step, 100, warmup_steps=1, initial=1.0, final=density, initial_warmup=10, final_warmup=30)
        assert int(criterion.linears["a"].mask.sum()) == pytest.approx(wanted * size, abs=2)


def test_starting_scores_keep_the_order_of_the_ranks():
    rank = torch.linspace(0, 1, 1000).view(10, 100)
    for density in (0.01, 0.1, 0.9, 1.0):
        scores = scores_for(rank, 0.1, density).flatten()
        assert scores.isfinite().all()
        assert (scores[1:] >= scores[:-1]).all()


def test_the_last_masks_have_the_density_and_every_floor():
    torch.manual_seed(0)
    scores = [torch.randn(20, 50) - 4, torch.randn(20, 50)]
    criterion = with_scores(*scores, density=0.1)
    criterion.update_masks(END)
    masks = [linear.mask.bool() for linear in criterion.linears.values()]
    assert [int(mask.sum()) for mask in masks] == [6, 194]
    for mask, matrix in zip(masks, scores, strict=True):
        assert mask.flatten().tolist() == keep_largest(matrix.flatten().tolist(), int(mask.sum()))
    assert criterion.penalty() is None


def test_floors_are_kept_and_the_rest_is_the_best_of_all():
    scores = [torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[9.0, 8.0, 7.0, 6.0]])]
    masks = keep_with_floors(scores, 0.5, [1, 1])
    assert [mask.int().tolist() for mask in masks] == [[[0, 0, 0, 1]], [[1, 1, 1, 0]]]


def test_a_pattern_below_the_floors_is_refused():
    with pytest.raises(UserError, match=r"--pattern 1:1000: soft movement keeps 0.5 % of every matrix; .* leaves more"):
        with_scores(torch.zeros(20, 1000), pattern="1:1000", final_penalty=1.0)


def test_a_density_below_the_floors_is_refused():
    with pytest.raises(
        UserError, match=r"--density 0.004: soft movement keeps 0.5 % of every matrix; .* at least 0.006$"
    ):
        with_scores(torch.zeros(20, 50), density=0.004)
