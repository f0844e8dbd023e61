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

    ids: Int[np.ndarray, " tokens"]
    positions: Int[np.ndarray, " tokens"]
    types: Int[np.ndarray, " tokens"]
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
    kinds = np.zeros_like(ids) if token_type_ids is None else _like(ids, token_type_ids, "token_type_ids")
    places = _positions(spec, ids) if position_ids is None else _like(ids, position_ids, "position_ids")
    mask = np.ones(ids.shape, bool) if attention_mask is None else _like(ids, attention_mask, "attention_mask") != 0
    lengths = mask.sum(axis=1)
    present = lengths[lengths > 0]
    starts = np.zeros(len(present) + 1, np.int64)
    np.cumsum(present, out=starts[1:])
    if starts[-1] == mask.size:
        flat = [np.ascontiguousarray(array).reshape(-1) for array in (ids, places, kinds)]
        return Batch(Tokens(flat[0], flat[1], flat[2], starts), ids.shape, None)
    if spec.relative_bias is not None and (np.diff(mask.astype(np.int8), axis=1, prepend=0) == 1).sum() > len(present):
        raise UserError("attention_mask: expected no gaps within a text, for a model with relative positions")
    where = np.flatnonzero(mask)
    flat = [array.reshape(-1)[where] for array in (ids, places, kinds)]
    return Batch(Tokens(flat[0], flat[1], flat[2], starts), ids.shape, where)


def pad(hidden: Float[Tensor, "tokens hidden"], batch: Batch) -> Float[Tensor, "batch length hidden"]:
    """The opposite of :func:`strip`: rows of padding are zero."""
    if batch.where is not None:
        rows = hidden.new_zeros(batch.shape[0] * batch.shape[1], hidden.shape[1])
        rows[torch.from_numpy(batch.where)] = hidden
        hidden = rows
    return hidden.view(*batch.shape, -1)


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().cpu().numpy()
    return array if array.dtype == np.int64 else array.astype(np.int64)


def _like(ids: np.ndarray, tensor: Tensor, name: str) -> np.ndarray:
    array = _array(tensor)
    if array.shape == ids.shape:
        return array
    if name == "position_ids" and array.shape == (1, ids.shape[1]):
        return np.broadcast_to(array, ids.shape)
    raise UserError(f"{name}: expected the shape {[*ids.shape]} of input_ids, found {[*array.shape]}")


def _positions(spec: EncoderSpec, ids: np.ndarray) -> np.ndarray:
    if spec.padding_idx is None:
        return np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    counted = ids != spec.padding_idx
    return np.cumsum(counted, axis=1) * counted + spec.padding_idx
