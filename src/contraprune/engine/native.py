"""The compiled engine by way of ctypes: instruction sets, threads, and the packing of weights."""

import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from contraprune.engine.bias import distance_bias
from contraprune.engine.compile import LIBRARY
from contraprune.engine.families import EncoderSpec, LayerSpec
from contraprune.engine.tokens import Tokens
from contraprune.errors import UserError

Values = Callable[[str], np.ndarray]
"""Gives a tensor of the model by its name: float32, C order."""

ISAS = ("portable", "avx2", "avx512")  # as numbered in encoder.cpp, better ones later
_ACTIVATIONS = ("none", "gelu", "gelu_tanh", "relu", "tanh")
_NO_MEMORY, _BAD_INDEX = 1, 3
_PROJECTION, _QUERIES_KEYS_VALUES, _ATTENTION_OUTPUT, _FFN_INPUT, _FFN_OUTPUT = range(5)
_WORDS, _POSITIONS, _TYPES, _EMBEDDING_NORM, _RELATIVE_BIAS, _ATTENTION_NORM, _FFN_NORM = 0, 1, 2, 3, 5, 6, 8


class _Sizes(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("isa", "threads", "hidden", "embedding", "head_size", "layers")),
        *((name, ctypes.c_int64) for name in ("activation", "vocabulary", "positions", "types", "span")),
        ("epsilon", ctypes.c_double),
    )


def library(path: Path = LIBRARY) -> Any | None:
    """The compiled engine, or None where the package was built without a compiler."""
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError:
        return None
    size, pointer, status = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int32
    for name, result, arguments in (
        ("cp_supports", status, (size,)),
        ("cp_new", pointer, (ctypes.POINTER(_Sizes), ctypes.POINTER(status))),
        ("cp_free", None, (pointer,)),
        ("cp_layer", status, (pointer, size, size, size)),
        ("cp_matrix", status, (pointer, size, status, size, size, pointer, pointer)),
        ("cp_vector", status, (pointer, size, status, size, pointer)),
        ("cp_forward", status, (pointer, size, size, pointer, pointer, pointer, pointer, pointer)),
    ):
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


def choose_isa(loaded: Any, asked: str | None = None) -> str:
    """The best instruction set of this machine, or the one asked for (else CONTRAPRUNE_ISA).

    Raises:
        UserError: the one asked for is unknown, or not to be had here.
    """
    available = [name for number, name in enumerate(ISAS) if loaded.cp_supports(number)]
    asked = asked or os.environ.get("CONTRAPRUNE_ISA") or available[-1]
    if asked not in available:
        raise UserError(f"CONTRAPRUNE_ISA: expected one of {', '.join(available)} on this machine, found {asked!r:.40}")
    return asked


class NativeEncoder:
    """An encoder in the compiled engine. Calls from several threads take turns."""

    def __init__(
        self, spec: EncoderSpec, values: Values, *, threads: int, isa: str | None = None, loaded: Any | None = None
    ) -> None:
        self._library: Any = library() if loaded is None else loaded
        assert self._library is not None, "there is no compiled engine"
        self.isa = choose_isa(self._library, isa)
        self._spec = spec
        self._turn = threading.Lock()
        status = ctypes.c_int32()
        sizes = _Sizes(
            isa=ISAS.index(self.isa),
            threads=threads,
            hidden=spec.hidden,
            embedding=spec.embedding,
            head_size=spec.head_size,
            layers=len(spec.layers),
            activation=_ACTIVATIONS.index(spec.activation),
            vocabulary=spec.vocabulary,
            positions=spec.positions,
            types=spec.types,
            span=spec.positions if spec.relative_bias else 0,
            epsilon=spec.norm_eps,
        )
        self._handle = self._library.cp_new(ctypes.byref(sizes), ctypes.byref(status))
        _check(status.value)
        weakref.finalize(self, self._library.cp_free, self._handle)
        self._fill(values)

    def __call__(self, tokens: Tokens) -> Float[Tensor, "tokens hidden"]:
        """See :class:`contraprune.engine.tokens.Encoder`."""
        count = tokens.columns.shape[1]
        hidden = torch.empty(count, self._spec.hidden)
        if count == 0:
            return hidden
        columns = tokens.columns.ctypes.data
        with self._turn:
            status = self._library.cp_forward(
                self._handle,
                count,
                len(tokens.starts) - 1,
                tokens.starts.ctypes.data,
                columns,
                columns + 8 * count,
                columns + 16 * count,
                hidden.data_ptr(),
            )
        _check(status, self._spec)
        return hidden

    def _fill(self, values: Values) -> None:
        spec = self._spec
        self._vector(-1, _WORDS, values(f"{spec.word_embeddings}.weight"))
        self._vector(-1, _POSITIONS, values(f"{spec.position_embeddings}.weight"))
        if spec.type_embeddings:
            self._vector(-1, _TYPES, values(f"{spec.type_embeddings}.weight"))
        self._norm(-1, _EMBEDDING_NORM, spec.embedding_norm, values)
        if spec.projection:
            self._linear(-1, _PROJECTION, (spec.projection,), values)
        for index, layer in enumerate(spec.layers):
            self._fill_layer(index, layer, values)

    def _fill_layer(self, index: int, layer: LayerSpec, values: Values) -> None:
        _check(self._library.cp_layer(self._handle, index, layer.heads, layer.neurons))
        self._linear(index, _QUERIES_KEYS_VALUES, (layer.queries, layer.keys, layer.values), values)
        self._linear(index, _ATTENTION_OUTPUT, (layer.attention_output,), values)
        self._linear(index, _FFN_INPUT, (layer.ffn_input,), values)
        self._linear(index, _FFN_OUTPUT, (layer.ffn_output,), values)
        self._norm(index, _ATTENTION_NORM, layer.attention_norm, values)
        self._norm(index, _FFN_NORM, layer.ffn_norm, values)
        if self._spec.relative_bias:
            table = values(f"{self._spec.relative_bias}.weight")
            self._vector(index, _RELATIVE_BIAS, distance_bias(table, layer.kept_heads, self._spec.positions))

    def _linear(self, index: int, slot: int, names: tuple[str, ...], values: Values) -> None:
        weight = np.ascontiguousarray(np.concatenate([values(f"{name}.weight") for name in names]), np.float32)
        bias = np.ascontiguousarray(np.concatenate([values(f"{name}.bias") for name in names]), np.float32)
        data, shift = weight.ctypes.data, bias.ctypes.data
        _check(self._library.cp_matrix(self._handle, index, slot, *weight.shape, data, shift))

    def _norm(self, index: int, part: int, name: str, values: Values) -> None:
        self._vector(index, part, values(f"{name}.weight"))
        self._vector(index, part + 1, values(f"{name}.bias"))

    def _vector(self, index: int, part: int, array: np.ndarray) -> None:
        flat = np.ascontiguousarray(array, np.float32)
        _check(self._library.cp_vector(self._handle, index, part, flat.size, flat.ctypes.data))


def _check(status: int, spec: EncoderSpec | None = None) -> None:
    if status == _NO_MEMORY:
        raise MemoryError("the sparse engine is out of memory")
    if status == _BAD_INDEX and spec is not None:
        raise UserError(out_of_range(spec))
    assert status == 0, f"the sparse engine refused its input (status {status})"


def out_of_range(spec: EncoderSpec) -> str:
    """What to say where a token, a position or a type is not in its table."""
    longest = spec.positions - spec.first_position
    return (
        f"input: expected ids below {spec.vocabulary}, token types below {max(1, spec.types)} and at most {longest} "
        "tokens, found others; set truncation=True in the tokenizer"
    )
