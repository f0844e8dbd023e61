"""Pooling: golden encodings of a real transformers model, and the naive loop."""

from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import reference
from contraprune.pooling import Pooling, pool


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_encodings_equal_the_released_code(golden, pooling):
    values = np.load(golden / "tiny_bert_importance.npz")
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {name: torch.from_numpy(values[name][:8]) for name in names}
    with torch.no_grad():
        output = reference.golden_bert(golden, "student").bert(**inputs)
    pooled = pool(
        output.last_hidden_state,
        inputs["attention_mask"],
        pooling=pooling,
        pooler_output=output.pooler_output,
    )
    expected = torch.from_numpy(values[f"encode_first8_{pooling}"])
    torch.testing.assert_close(F.normalize(pooled), expected, atol=1e-6, rtol=1e-5)


def test_mean_is_over_unmasked_tokens_wherever_they_are():
    hidden = torch.randn(3, 5, 4, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 0, 1]])
    expected = [
        sum(hidden[row, token] for token in range(5) if mask[row, token]) / int(mask[row].sum()) for row in range(3)
    ]
    for form in (mask, mask.bool(), mask.float()):
        torch.testing.assert_close(pool(hidden, form, pooling="mean"), torch.stack(expected))


def test_mean_of_a_fully_masked_row_is_zero():
    pooled = pool(torch.ones(1, 3, 2), torch.zeros(1, 3, dtype=torch.long), pooling="mean")
    assert pooled.tolist() == [[0, 0]]


def by_hand(tokens, pooling):
    """One row's vector from the list of its real tokens."""
    match pooling:
        case "cls":
            return tokens[0]
        case "lasttoken":
            return tokens[-1]
        case "max":
            return torch.stack([max(values) for values in zip(*tokens, strict=True)])
        case "mean":
            return sum(tokens) / len(tokens)
        case "mean_sqrt_len_tokens":
            return sum(tokens) / len(tokens) ** 0.5
        case "weightedmean":
            return sum(n * token for n, token in enumerate(tokens, 1)) / sum(range(1, len(tokens) + 1))


@pytest.mark.parametrize("pooling", get_args(Pooling))
@pytest.mark.parametrize("side", ["right", "left"])
def test_every_pooling_sees_the_real_tokens_on_whichever_side_they_are(pooling, side):
    hidden = torch.randn(3, 5, 4, dtype=torch.float64) - 3
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    mask = mask.flip(1) if side == "left" else mask
    expected = [by_hand([hidden[row, t] for t in range(5) if mask[row, t]], pooling) for row in range(3)]
    torch.testing.assert_close(pool(hidden, mask, pooling=pooling), torch.stack(expected))
