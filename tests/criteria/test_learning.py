"""What the criteria are for: a network that still works with a tenth of its weights, after 128 steps."""

import pytest
import torch

import digits
from contraprune.criteria import CRITERIA


@pytest.fixture(scope="module")
def teacher():
    images, labels, *test = digits.digits()
    model = digits.train_teacher(images, labels)
    assert digits.accuracy(model, *test) > 0.95
    return model


@pytest.mark.parametrize("method", sorted(CRITERIA))
def test_a_tenth_of_the_weights_keeps_the_accuracy(teacher, method):
    images, labels, *test = digits.digits()
    model, densities = digits.prune(teacher, images, labels, method, density=0.1, steps=128)
    matrices = [model.get_submodule(name).weight for name in digits.PRUNED]
    kept = sum(int(torch.count_nonzero(matrix)) for matrix in matrices)
    assert kept / sum(matrix.numel() for matrix in matrices) == pytest.approx(0.1, rel=1e-3)
    assert densities[107] == pytest.approx(0.1, rel=0.1)  # a step before the last masks: the steering did it
    assert digits.accuracy(model, *test) > 0.84  # a random tenth of the weights: 0.1
