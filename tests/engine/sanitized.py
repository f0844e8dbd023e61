"""Runs the engine built with sanitizers over its hard cases; ``make sanitize`` preloads their run-time library.

    python tests/engine/sanitized.py LIBRARY

Random sizes, densities, ragged batches and threads through the C interface alone (no torch, whose own allocations
the sanitizers would watch); results are compared with numpy.
"""

import ctypes
import sys
from itertools import pairwise
from typing import Any

import numpy as np

SIZES = ("isa", "threads", "hidden", "embedding", "head_size", "layers", "activation")
SIZES += ("vocabulary", "positions", "types", "span")


class Sizes(ctypes.Structure):
    _fields_ = (*((name, ctypes.c_int64) for name in SIZES), ("epsilon", ctypes.c_double))


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def norm(x: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale + shift


class Model:
    """A random encoder in the library and in numpy."""

    def __init__(self, loaded: Any, rng: np.random.Generator, isa: int) -> None:
        self.loaded, self.rng = loaded, rng
        self.head_size = int(rng.integers(1, 9))
        self.hidden = int(rng.integers(1, 300))
        self.embedding = self.hidden if rng.random() < 0.5 else int(rng.integers(1, 40))
        self.span = 200 if rng.random() < 0.3 else 0
        self.layers: list[dict[str, np.ndarray]] = []
        count = int(rng.integers(0, 4))
        sizes = Sizes(isa, int(rng.integers(1, 5)), self.hidden, self.embedding, self.head_size, count, 3, 11, 200, 2,
                      self.span, 1e-5)  # fmt: skip
        status = ctypes.c_int32()
        self.handle = ctypes.c_void_p(loaded.cp_new(ctypes.byref(sizes), ctypes.byref(status)))
        assert status.value == 0
        self.outer = {
            name: self.vector(-1, part, *shape)
            for part, (name, shape) in enumerate(
                {"words": (11, self.embedding), "positions": (200, self.embedding), "types": (2, self.embedding),
                 "scale": (self.embedding,), "shift": (self.embedding,)}.items()
            )
        }  # fmt: skip
        projected = self.embedding != self.hidden
        self.projection = self.matrix(-1, 0, self.hidden, self.embedding) if projected else None
        for index in range(count):
            self.layer(index, int(rng.integers(0, 5)), int(rng.integers(0, 400)))

    def layer(self, index: int, heads: int, neurons: int) -> None:
        assert self.loaded.cp_layer(self.handle, index, heads, neurons) == 0
        width, hidden = heads * self.head_size, self.hidden
        shapes = [(3 * width, hidden), (hidden, width), (neurons, hidden), (hidden, neurons)]
        layer: dict[str, Any] = {"heads": heads}
        for slot, shape in enumerate(shapes, start=1):
            layer[f"m{slot}"] = self.matrix(index, slot, *shape)
        if self.span:
            layer["bias"] = self.vector(index, 5, heads, 2 * self.span - 1)
        for part in range(6, 10):
            layer[f"p{part}"] = self.vector(index, part, hidden)
        self.layers.append(layer)

    def matrix(self, index: int, slot: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        density = self.rng.choice([0, 0.03, 0.1, 0.3, 1])
        block = self.rng.choice([1, 4])
        mask = self.rng.random((-(-rows // block), columns)) < density
        weight = self.rng.standard_normal((rows, columns)) * np.repeat(mask, block, 0)[:rows] / 4
        weight, bias = weight.astype(np.float32), self.rng.standard_normal(rows).astype(np.float32)
        result = self.loaded.cp_matrix(self.handle, ctypes.c_int64(index), slot, ctypes.c_int64(rows),
                                       ctypes.c_int64(columns), pointer(weight), pointer(bias))  # fmt: skip
        assert result == 0
        return weight, bias

    def vector(self, index: int, part: int, *shape: int) -> np.ndarray:
        values = self.rng.standard_normal(shape).astype(np.float32)
        size = ctypes.c_int64(values.size)
        assert self.loaded.cp_vector(self.handle, ctypes.c_int64(index), part, size, pointer(values)) == 0
        return values

    def forward(self, ids: np.ndarray, starts: np.ndarray) -> np.ndarray:
        out = np.empty((ids.shape[1], self.hidden), np.float32)
        counts = (ctypes.c_int64(ids.shape[1]), ctypes.c_int64(len(starts) - 1))
        columns = [pointer(row) for row in ids]
        assert self.loaded.cp_forward(self.handle, *counts, pointer(starts), *columns, pointer(out)) == 0
        return out

    def reference(self, ids: np.ndarray, starts: np.ndarray) -> np.ndarray:
        o = self.outer
        x = norm(o["words"][ids[0]] + o["positions"][ids[1]] + o["types"][ids[2]], o["scale"], o["shift"])
        if self.projection is not None:
            x = x @ self.projection[0].T + self.projection[1]
        for layer in self.layers:
            (w1, b1), (w2, b2), (w3, b3), (w4, b4) = (layer[f"m{slot}"] for slot in range(1, 5))
            qkv = x @ w1.T + b1
            context = np.zeros((len(x), w2.shape[1]))
            for first, past in pairwise(starts):
                context[first:past] = self.attend(layer, qkv[first:past])
            x = norm(x + context @ w2.T + b2, layer["p6"], layer["p7"])
            x = norm(x + np.maximum(x @ w3.T + b3, 0) @ w4.T + b4, layer["p8"], layer["p9"])
        return x

    def attend(self, layer: dict[str, Any], qkv: np.ndarray) -> np.ndarray:
        length, heads = len(qkv), layer["heads"]
        q, k, v = qkv.reshape(length, 3, heads, self.head_size).transpose(1, 2, 0, 3)
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(self.head_size)
        if self.span:
            places = np.arange(length)
            scores = scores + layer["bias"][:, places[:, None] - places + self.span - 1]
        weights = np.exp(scores - scores.max(-1, keepdims=True, initial=-np.inf))
        context = (weights / weights.sum(-1, keepdims=True)) @ v
        return context.transpose(1, 0, 2).reshape(length, heads * self.head_size)


def main() -> None:
    loaded = ctypes.CDLL(sys.argv[1])
    loaded.cp_new.restype = ctypes.c_void_p
    rng = np.random.default_rng(0)
    isas = [isa for isa in range(3) if loaded.cp_supports(ctypes.c_int64(isa))]
    for trial in range(60):
        model = Model(loaded, rng, isas[trial % len(isas)])
        for _ in range(3):
            lengths = rng.integers(1, rng.choice([3, 40, 200]), int(rng.integers(1, 9)))
            starts = np.cumsum([0, *lengths])
            ids = np.stack([rng.integers(0, limit, starts[-1]) for limit in (11, 200, 2)])
            expected = model.reference(ids, starts)
            error = np.abs(model.forward(ids, starts) - expected).max() / np.abs(expected).max()
            assert error < 1e-3, f"trial {trial}: {error}"
        loaded.cp_free(model.handle)
    print(f"{trial + 1} random encoders on instruction sets {isas}: no finding")


if __name__ == "__main__":
    main()
