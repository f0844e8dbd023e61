"""The engine's computation in torch, for machines where the package was built without a compiler. Slower."""

import math
import warnings
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from contraprune.engine.bias import distance_bias
from contraprune.engine.families import EncoderSpec, LayerSpec
from contraprune.engine.native import Values, out_of_range
from contraprune.engine.tokens import Tokens
from contraprune.errors import UserError

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "tanh": torch.tanh,
}
_SPARSE_BELOW = 0.1  # density from which on torch's sparse product is the faster one


class _Linear:
    def __init__(self, name: str, values: Values) -> None:
        weight = torch.from_numpy(values(f"{name}.weight"))
        self.bias = torch.from_numpy(values(f"{name}.bias"))
        sparse = weight.numel() > 0 and int(torch.count_nonzero(weight)) < _SPARSE_BELOW * weight.numel()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            self.weight = weight.to_sparse_csr() if sparse else weight

    def __call__(self, x: Float[Tensor, "tokens in"]) -> Float[Tensor, "tokens out"]:
        if self.weight.layout == torch.strided:
            return F.linear(x, self.weight, self.bias)
        return (self.weight @ x.T).T + self.bias


class TorchEncoder:
    """An encoder in torch, with the interface of the compiled one."""

    isa = "torch"

    def __init__(self, spec: EncoderSpec, values: Values) -> None:
        self._spec = spec

        def parameters(name: str) -> tuple[Tensor, Tensor]:
            return torch.from_numpy(values(f"{name}.weight")), torch.from_numpy(values(f"{name}.bias"))

        names = (spec.word_embeddings, spec.position_embeddings, spec.type_embeddings)
        self._tables = [torch.from_numpy(values(f"{name}.weight")) for name in names if name]
        self._norm = parameters(spec.embedding_norm)
        self._projection = _Linear(spec.projection, values) if spec.projection else None
        self._layers = [
            (
                layer,
                {
                    name: _Linear(getattr(layer, name), values)
                    for name in ("queries", "keys", "values", "attention_output", "ffn_input", "ffn_output")
                },
                parameters(layer.attention_norm),
                parameters(layer.ffn_norm),
                self._bias(layer, values),
            )
            for layer in spec.layers
        ]

    def _bias(self, layer: LayerSpec, values: Values) -> Tensor | None:
        if self._spec.relative_bias is None:
            return None
        table = values(f"{self._spec.relative_bias}.weight")
        return torch.from_numpy(distance_bias(table, layer.kept_heads, self._spec.positions))

    @torch.inference_mode()
    def __call__(self, tokens: Tokens) -> Float[Tensor, "tokens hidden"]:
        """See :class:`contraprune.engine.tokens.Encoder`."""
        starts = tokens.starts.tolist()
        for ids, table in zip(tokens.columns, self._tables, strict=False):
            if len(ids) and (ids.min() < 0 or ids.max() >= len(table)):
                raise UserError(out_of_range(self._spec))
        x = sum(table[torch.from_numpy(ids)] for ids, table in zip(tokens.columns, self._tables, strict=False))
        assert isinstance(x, Tensor)
        x = self._normalise(x, self._norm)
        if self._projection is not None:
            x = self._projection(x)
        activation = _ACTIVATIONS[self._spec.activation]
        for layer, linear, attention_norm, ffn_norm, bias in self._layers:
            projected = [linear[name](x) for name in ("queries", "keys", "values")]
            context = torch.cat(
                [
                    self._attend(layer, [part[first:past] for part in projected], bias)
                    for first, past in pairwise(starts)
                ]
                or [projected[0]]
            )
            x = self._normalise(x + linear["attention_output"](context), attention_norm)
            x = self._normalise(x + linear["ffn_output"](activation(linear["ffn_input"](x))), ffn_norm)
        return x.clone()

    def _attend(self, layer: LayerSpec, projected: list[Tensor], bias: Tensor | None) -> Tensor:
        length, size = len(projected[0]), self._spec.head_size
        queries, keys, values = (part.view(length, layer.heads, size).transpose(0, 1) for part in projected)
        scores = queries @ keys.transpose(1, 2) / math.sqrt(size)
        if bias is not None:
            places = torch.arange(length)
            scores = scores + bias[:, places[:, None] - places + self._spec.positions - 1]
        return (scores.softmax(dim=-1) @ values).transpose(0, 1).reshape(length, layer.heads * size)

    def _normalise(self, x: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), *norm, eps=self._spec.norm_eps)
