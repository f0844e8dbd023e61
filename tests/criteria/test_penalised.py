"""Criteria with a threshold under patterns: what they keep at every step, in training and at the end."""

import pytest
import torch
from torch import nn

from contraprune.criteria import L0, SoftMovement
from contraprune.masking import mask_linears
from contraprune.patterns import Blocks, best_of_groups, block_means, spread
from contraprune.pruning_config import PruningConfig
from contraprune.schedules import Moment
from reference import cubic

SHAPES = [{"pattern": "2:4"}, {"pattern": "1:4", "density": 0.1}, {"block": "4x1"}, {"block": "2x8", "density": 0.3}]
both = pytest.mark.parametrize("kind", [SoftMovement, L0])


def subject(kind, **settings):
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(32, 16), "b": nn.Linear(64, 32)})
    linears = mask_linears(dict(model.items()), learn_scores=True)
    criterion = kind(linears, PruningConfig(method="soft_movement" if kind is SoftMovement else "l0", **settings))
    criterion.start_from({name: linear.weight.detach().square() for name, linear in linears.items()})
    return criterion


def moment(step, *, total=20):
    return Moment(step=step, total=total, warmup=2, cooldown=6, last=step == total)


def jitter(criterion, step):
    """What training does to the scores."""
    generator = torch.Generator().manual_seed(step)
    for linear in criterion.linears.values():
        noise = torch.randn(linear.weight.shape, generator=generator)
        linear.mask_scores.data.add_(noise, alpha=0.5)


def obeys(matrix, criterion):
    """Blocks of one value each, or at most N of every group."""
    kept, shape = matrix.detach() != 0, criterion.config.shape
    if isinstance(shape, Blocks):
        tiles = [tile for rows in matrix.detach().split(shape.rows) for tile in rows.split(shape.columns, 1)]
        return all(len(tile.unique()) == 1 for tile in tiles)
    return int(kept.view(-1, shape.group).sum(1).max()) <= shape.keep


@both
@pytest.mark.parametrize("settings", SHAPES, ids=str)
def test_masks_and_draws_obey_the_pattern_and_end_at_the_density(kind, settings):
    criterion = subject(kind, **settings)
    density, shape = criterion.config.density, criterion.config.shape
    total = sum(linear.weight.numel() for linear in criterion.linears.values())
    for step in range(21):
        criterion.update_masks(moment(step))
        wanted = cubic(step, 20, warmup_steps=1, initial=1.0, final=density, initial_warmup=2, final_warmup=6)
        met = isinstance(shape, Blocks) or wanted <= shape.density
        masks = [linear.mask for linear in criterion.linears.values()]
        draws = [linear.sampler() for linear in criterion.linears.values() if linear.sampler is not None]
        assert len(draws) == (2 if kind is L0 and step < 20 else 0)
        assert all(obeys(matrix, criterion) for matrix in (*masks, *draws)) or not met
        if not isinstance(shape, Blocks):
            left = max(wanted, shape.density)
            assert all(int(m.count_nonzero()) <= int(left * m.numel()) for m in (*masks, *draws))
        if step < 20:
            jitter(criterion, step)
    units = total if not isinstance(shape, Blocks) else total // (shape.rows * shape.columns)
    kept = sum(int(mask.count_nonzero()) for mask in masks)
    assert kept == int(density * units) * (total // units)


@both
def test_a_block_that_goes_has_the_lowest_mean_score(kind):
    criterion = subject(kind, block="4x1", density=0.25)
    jitter(criterion, 1)
    criterion.update_masks(moment(20))
    means = {
        name: block_means(linear.mask_scores, Blocks(rows=4, columns=1)) for name, linear in criterion.linears.items()
    }
    together = torch.cat([matrix.flatten() for matrix in means.values()])
    cut = together.sort(descending=True).values[int(0.25 * len(together)) - 1]
    for name, linear in criterion.linears.items():
        assert torch.equal(linear.mask != 0, spread(means[name] >= cut, Blocks(rows=4, columns=1)))


@both
def test_the_weights_of_a_group_that_start_to_go_are_its_worst(kind):
    criterion = subject(kind, pattern="2:4")
    for linear in criterion.linears.values():
        best = best_of_groups(linear.weight.detach().square(), criterion.config.shape)
        assert linear.mask_scores[best].min() > linear.mask_scores[~best].max()


@both
def test_the_penalty_pushes_what_is_open_only(kind):
    criterion = subject(kind, pattern="2:4", density=0.2)
    criterion.update_masks(moment(16))
    criterion.value().backward()
    for name, linear in criterion.linears.items():
        allowed = criterion.allowed[name]
        assert allowed.float().mean() == 0.5
        pushed = linear.mask_scores.grad[allowed & (linear.mask_scores < 5)]  # above, sigmoids have no slope left
        assert len(pushed) > 40
        assert (pushed > 0).all()
        assert not linear.mask_scores.grad[~allowed].any()


@both
def test_all_scores_of_a_block_feel_the_penalty_alike(kind):
    criterion = subject(kind, block="4x1", density=0.2)
    criterion.update_masks(moment(16))
    criterion.value().backward()
    for linear in criterion.linears.values():
        assert obeys(linear.mask_scores.grad, criterion)
        assert (linear.mask_scores.grad[linear.mask_scores < 5] > 0).all()


@both
def test_a_last_mask_far_from_what_the_penalty_reached_is_said(kind):
    criterion = subject(kind, density=0.25)
    criterion.update_masks(moment(0))
    for linear in criterion.linears.values():
        linear.mask_scores.data += 20.0  # all open
    with pytest.warns(
        UserWarning, match=r"density to 1\.000 when .* rest of the way to --density 0\.25 was cut at once"
    ):
        criterion.update_masks(moment(20))


@both
def test_a_penalty_that_did_its_work_is_not_warned_about(kind, recwarn):
    criterion = subject(kind, density=0.25)
    criterion.update_masks(moment(0))
    for linear in criterion.linears.values():  # open or shut for good
        flat = linear.mask_scores.data.flatten()
        flat.fill_(-20.0)[: flat.numel() // 4] = 20.0
        linear.mask_scores.data.copy_(flat.view(linear.mask_scores.shape))
    criterion.update_masks(moment(20))
    assert not recwarn
