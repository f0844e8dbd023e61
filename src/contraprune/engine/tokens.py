"""What an encoder of the engine reads and gives: a batch without its padding."""

from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from contraprune.engine.families import EncoderSpec
from contraprune.errors import UserError


class Tokens(NamedTuple):
    """The tokens of a batch, sequence after sequence, int64 and contiguous."""

    columns: Int[np.ndarray, "3 tokens"]  # ids, positions, types
    starts: Int[np.ndarray, " sequences+1"]  # index of each sequence's first token; then the number of tokens


class Encoder(Protocol):
    """Embeddings and layers of a model, however they are computed."""

    def __call__(self, tokens: Tokens) -> Float[Tensor, "tokens hidden"]:
        """The last hidden states.

        Raises:
            UserError: an id or a position is not in its table, or a sequence is too long.
        """
        ...


class Batch(NamedTuple):
    """The tokens of a padded batch, and where they were."""

    tokens: Tokens
    shape: tuple[int, int]
    where: Int[np.ndarray, " tokens"] | None  # index in the flat batch; None: there is no padding


def strip(
    spec: EncoderSpec,
    input_ids: Int[Tensor, "batch length"],
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor | None,
) -> Batch:
    """Leaves out the tokens whose ``attention_mask`` is 0, wherever they are.

    Raises:
        UserError: the shapes differ, or with relative positions, a mask has gaps.
    """
    ids = _array(input_ids)
    if ids.ndim != 2:
        raise UserError(f"input_ids: expected the shape (batch, length), found {[*ids.shape]}")
    batch, length = ids.shape
    columns = np.zeros((3, batch, length), np.int64)
    columns[0] = ids
    columns[1] = _positions(spec, ids) if position_ids is None else _like(ids, position_ids, "position_ids")
    if token_type_ids is not None:
        columns[2] = _like(ids, token_type_ids, "token_type_ids")
    flat = columns.reshape(3, batch * length)
    mask = None if attention_mask is None else _like(ids, attention_mask, "attention_mask") != 0
    if mask is None or mask.all():
        return Batch(Tokens(flat, np.arange(0, batch * length + 1, max(1, length))), (batch, length), None)
    lengths = mask.sum(axis=1)
    starts = np.cumsum([0, *lengths[lengths > 0]])
    if spec.relative_bias is not None and (np.diff(mask.astype(np.int8), axis=1, prepend=0) == 1).sum() >= len(starts):
        raise UserError("attention_mask: expected no gaps within a text, for a model with relative positions")
    where = np.flatnonzero(mask)
    return Batch(Tokens(np.ascontiguousarray(flat[:, where]), starts), (batch, length), where)


def pad(hidden: Float[Tensor, "tokens hidden"], batch: Batch) -> Float[Tensor, "batch length hidden"]:
    """The opposite of :func:`strip`: rows of padding are zero."""
    if batch.where is not None:
        rows = hidden.new_zeros(batch.shape[0] * batch.shape[1], hidden.shape[1])
        rows[torch.from_numpy(batch.where)] = hidden
        hidden = rows
    return hidden.view(*batch.shape, -1)


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.numpy(force=True)
    return array


def _like(ids: np.ndarray, tensor: Tensor, name: str) -> np.ndarray:
    array = _array(tensor)
    if array.shape == ids.shape or (name == "position_ids" and array.shape == (1, ids.shape[1])):
        return array
    raise UserError(f"{name}: expected the shape {[*ids.shape]} of input_ids, found {[*array.shape]}")


def _positions(spec: EncoderSpec, ids: np.ndarray) -> np.ndarray:
    if spec.padding_idx is None:
        return np.arange(ids.shape[1])
    counted = ids != spec.padding_idx
    positions: np.ndarray = np.cumsum(counted, axis=1) * counted + spec.padding_idx
    return positions
