"""Magnitude pruning against the released masks and a second library."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from contraprune.criteria import Magnitude
from contraprune.masking import mask_linears
from contraprune.pruning_config import PruningConfig
from reference import END


@pytest.mark.parametrize("density", [0.5, 0.1, 0.03])
def test_masks_are_the_released_ones_and_those_of_torch(golden, density):
    values = np.load(golden / "binarizers.npz")
    weight = torch.tensor(values["randn_24x40/input"])
    linear, other = nn.Linear(40, 24), nn.Linear(40, 24)
    for layer in (linear, other):
        layer.weight.data.copy_(weight)
    linears = mask_linears({"a": linear}, learn_scores=False)
    Magnitude(linears, PruningConfig(density=density)).update_masks(END)
    assert np.array_equal(linears["a"].mask.numpy(), values[f"randn_24x40/magnitude@{density}"])
    prune.l1_unstructured(other, "weight", amount=weight.numel() - int(density * weight.numel()))
    assert torch.equal(linears["a"].mask, other.weight_mask)
