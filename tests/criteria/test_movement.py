"""Movement pruning: learned scores, and where they start."""

import numpy as np
import torch
from scipy.stats import rankdata
from torch import nn

from contraprune.criteria import Movement
from contraprune.criteria.learned import ranks
from contraprune.masking import mask_linears
from contraprune.pruning_config import PruningConfig
from reference import END


def test_ranks_are_those_of_scipy_spread_over_zero_to_one():
    importance = torch.randn(7, 9)
    expected = (rankdata(importance.numpy(), method="ordinal").reshape(7, 9) - 1) / 62
    np.testing.assert_allclose(ranks(importance).numpy(), expected, atol=1e-6)


def test_scores_start_at_the_ranks_and_keep_the_most_important():
    linears = mask_linears({"a": nn.Linear(4, 5)}, learn_scores=True)
    criterion = Movement(linears, PruningConfig(density=0.25))
    importance = torch.rand(5, 4)
    criterion.start_from({"a": importance})
    criterion.update_masks(END)
    kept = set(importance.flatten().topk(5).indices.tolist())
    assert set(linears["a"].mask.flatten().nonzero().flatten().tolist()) == kept


def test_a_weight_that_training_moves_away_from_zero_gains_score():
    """One SGD step on L = -W: every weight wants to grow, so positive weights move away from zero."""
    linear = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, -1.0]]))
    linears = mask_linears({"a": linear}, learn_scores=True)
    scores = linears["a"].mask_scores
    (-linears["a"](torch.ones(1, 2)).sum()).backward()
    torch.optim.SGD([scores], lr=0.1).step()
    assert scores[0, 0] > 0 > scores[0, 1]
