"""Linear layers whose weight is used as ``weight * mask``: unstructured pruning while training.

A mask never lives in a checkpoint of the result: :func:`fold` multiplies it into the weight and gives the stock
class back. While training, the parameter names are the stock ones plus ``mask_scores``, so a checkpoint of a
masked model holds the dense weights and the scores that decide between them.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from contraprune.errors import UserError


class _StraightThrough(torch.autograd.Function):
    """``weight * mask`` whose gradient passes the mask as if it were the scores (Sanh et al. 2020, eq. 2-3)."""

    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(weight, mask)
        return weight * mask

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weight, mask = ctx.saved_tensors  # type: ignore[attr-defined]
        (gradient,) = gradients
        of_weight = gradient * mask if ctx.needs_input_grad[0] else None  # type: ignore[attr-defined]
        of_scores = gradient * weight if ctx.needs_input_grad[1] else None  # type: ignore[attr-defined]
        return of_weight, of_scores, None


class MaskedLinear(nn.Linear):
    """A linear layer that computes ``x (weight * mask)^T + bias``.

    Made from an existing layer by :func:`mask_linears`, never constructed. ``mask`` is (out, in), ones and zeros
    in the weight's dtype, and is set once per optimiser step by :meth:`set_mask`. ``mask_scores`` (out, in) is
    there where the criterion learns its scores; the mask is then differentiated straight through to them.
    """

    mask: Tensor
    mask_scores: nn.Parameter | None

    def forward(self, input: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        if self.mask_scores is None:
            weight = self.weight * self.mask
        else:
            weight = _StraightThrough.apply(self.weight, self.mask_scores, self.mask)
        return F.linear(input, weight, self.bias)

    def set_mask(self, keep: Bool[Tensor, "out in"]) -> None:
        self.mask.copy_(keep)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, learned_scores={self.mask_scores is not None}"


def mask_linears(linears: Mapping[str, nn.Module], *, learn_scores: bool) -> dict[str, MaskedLinear]:
    """Turns linear layers into :class:`MaskedLinear` in place, with nothing masked yet.

    The class of the module is swapped: hooks, parameter names and references to it stay as they were.

    Args:
        linears: full name -> module, as :class:`contraprune.structure.Layer` lists them.
        learn_scores: add a parameter ``mask_scores`` of zeros.

    Raises:
        UserError: a module is of another class than ``nn.Linear`` (it could not be folded back exactly).
    """
    for name, module in linears.items():
        if type(module) is not nn.Linear:
            raise UserError(f"{name}: only torch.nn.Linear can be masked, found {type(module).__name__}")
    masked: dict[str, MaskedLinear] = {}
    for name, module in linears.items():
        module.__class__ = MaskedLinear
        assert isinstance(module, MaskedLinear)
        module.register_buffer("mask", torch.ones_like(module.weight), persistent=False)
        scores = nn.Parameter(torch.zeros_like(module.weight)) if learn_scores else None
        module.register_parameter("mask_scores", scores)
        masked[name] = module
    return masked


def masked_linears(model: nn.Module) -> dict[str, MaskedLinear]:
    """All masked layers of a model by full name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MaskedLinear)}


@torch.no_grad()
def fold(model: nn.Module) -> None:
    """Multiplies every mask into its weight and restores ``nn.Linear``, in place.

    What the mask removes becomes exactly zero, also where the weight was infinite or NaN; what it keeps is not
    touched, so the folded model gives the masked model's outputs bit for bit.
    """
    for module in masked_linears(model).values():
        module.weight.masked_fill_(module.mask == 0, 0.0)
        del module.mask
        del module.mask_scores
        module.__class__ = nn.Linear  # type: ignore[assignment]
