"""Matrix products of float32 on a CPU, by the faster of the two libraries that torch has for them.

torch multiplies float32 matrices with MKL, which reaches half the rate of oneDNN on AMD processors. Told that bfloat16
inside of a product is good enough, it takes oneDNN instead; and oneDNN, on a processor without matrix units for
bfloat16 (AMX), multiplies in float32 all the same. Whether it does is found out by multiplying.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

# Of a product, relative to its size: float32 stays below a tenth of it, bfloat16 is a hundred times above.
_ERROR = 1e-5
_SHAPES = ((320, 384, 384), (32, 384, 4096), (512, 64, 512))  # (rows, inner, columns)
_SETTING: Any = getattr(torch.backends.mkldnn, "matmul", None)  # torch < 2.9 has none
_STOCK = _SETTING and _SETTING.fp32_precision


class _Switch:
    """Which library multiplies at this moment."""

    allowed = True

    def on(self, *_: Any) -> None:
        _SETTING.fp32_precision = "bf16"

    def off(self, *_: Any) -> None:
        _SETTING.fp32_precision = _STOCK


_switch = _Switch()


@contextmanager
def stock_products() -> Iterator[None]:
    """Leaves torch's own choice, for comparison."""
    before, _switch.allowed = _switch.allowed, False
    try:
        yield
    finally:
        _switch.allowed = before


def linear(input: Float[Tensor, "... in"], weight: Float[Tensor, "out in"]) -> Float[Tensor, "... out"]:
    """``F.linear``, by the faster library in both directions."""
    if not _applies(input):
        return F.linear(input, weight)
    _switch.on()
    output = F.linear(input, weight)
    _after(None, (), output)
    return output


@contextmanager
def fast_products(model: nn.Module) -> Iterator[None]:
    """Meanwhile the linear layers of a model on a CPU multiply by the faster library, in both directions.

    Only they: attention multiplies many small matrices, for which oneDNN is slower. The layers get hooks, which go at
    the end; nothing else of the model changes, and results differ from the stock ones by float32's rounding.
    """
    with ExitStack() as hooks:
        if _applies(next(model.parameters(), None)):
            for module in model.modules():
                if isinstance(module, nn.Linear):
                    hooks.callback(module.register_forward_pre_hook(_switch.on).remove)
                    hooks.callback(module.register_forward_hook(_after, always_call=True).remove)
        yield


def _applies(tensor: Tensor | None) -> bool:
    on_cpu = tensor is not None and tensor.device.type == "cpu"
    return on_cpu and _switch.allowed and other_library_is_exact() and _SETTING.fp32_precision == _STOCK


@cache
def other_library_is_exact() -> bool:
    """Whether there is another library here, whose products of float32 are as exact.

    A setting of the user's own stays: then there is none.
    """
    if _STOCK not in ("none", "ieee") or _SETTING.fp32_precision != _STOCK:
        return False
    differ = False
    for rows, inner, columns in _SHAPES:
        draws = torch.Generator().manual_seed(0)
        left = torch.randn(rows, inner, generator=draws)
        right = torch.randn(inner, columns, generator=draws)
        stock = left @ right
        _switch.on()
        other = left @ right
        _switch.off()
        exact = left.double() @ right.double()
        if (other - exact).norm() > _ERROR * exact.norm():
            return False
        differ |= not torch.equal(other, stock)  # no bit differs: the same library
    return differ


def _after(module: nn.Module | None, inputs: Any, output: Tensor | None) -> None:
    """Ends the product, and has its gradients computed in the same way."""
    _switch.off()
    node = None if output is None else output.grad_fn
    while node is not None and node.name() in ("ViewBackward0", "UnsafeViewBackward0"):
        node = node.next_functions[0][0]
    if node is not None and node.name() in ("AddmmBackward0", "MmBackward0"):
        node.register_prehook(_switch.on)
        node.register_hook(_switch.off)
