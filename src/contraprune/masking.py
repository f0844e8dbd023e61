"""Linear layers whose weight is used as ``weight * mask``: unstructured pruning while training.

A mask never lives in a checkpoint of the result: :func:`fold` multiplies it into the weight and gives the stock
class back. While training, the parameter names are the stock ones plus ``mask_scores``, so a checkpoint of a
masked model holds the dense weights and the scores that decide between them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from contraprune.errors import UserError


class _StraightThrough(torch.autograd.Function):
    """``weight * mask`` whose gradient passes the mask as if it were the scores (Sanh et al. 2020, eq. 2-3)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scores: Tensor | None, mask: Tensor, dense: bool) -> Tensor:
        ctx.save_for_backward(weight, mask)
        ctx.dense = dense
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, mask = ctx.saved_tensors
        (gradient,) = gradients
        of_scores = gradient * weight if ctx.needs_input_grad[1] else None
        of_weight = None
        if ctx.needs_input_grad[0]:
            # In place: nobody else has this gradient, because only one product uses the masked weight.
            of_weight = gradient if ctx.dense else gradient.mul_(mask)
        return of_weight, of_scores, None, None


class MaskedLinear(nn.Linear):
    """A linear layer that computes ``x (weight * mask)^T + bias``.

    Made from an existing layer by :func:`mask_linears`, never constructed. ``mask`` (out, in) is zero where the weight
    is removed and one where it stays, in bytes, or any factor, as a float; it is set once per optimiser step by
    :meth:`set_mask`. ``mask_scores`` (out, in) is there where the criterion learns its scores; the mask is then
    differentiated straight through to them. With ``dense_gradients``, ``weight.grad`` is the gradient with respect
    to ``weight * mask`` everywhere, until :meth:`drop_masked_gradient`. A ``sampler`` gives the mask of one training
    batch, differentiable in the scores; in evaluation it is not used.
    """

    mask: Tensor
    mask_scores: nn.Parameter | None
    dense_gradients: bool
    sampler: Callable[[], Tensor] | None

    def forward(self, input: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        if self.training and self.sampler is not None:
            weight = self.weight * self.sampler()
        elif self.mask_scores is None and not self.dense_gradients:
            weight = self.weight * self.mask
        else:
            weight = _StraightThrough.apply(self.weight, self.mask_scores, self.mask, self.dense_gradients)
        return F.linear(input, weight, self.bias)

    def set_mask(self, mask: Bool[Tensor, "out in"] | Float[Tensor, "out in"]) -> None:
        """What the weight is multiplied with from now on: true or one to keep it, false or zero to remove it."""
        # Booleans as the bytes they are, which floats are multiplied with directly.
        mask = mask.view(torch.uint8) if mask.dtype == torch.bool else mask.to(self.weight.dtype)
        if mask.dtype == self.mask.dtype:
            self.mask.copy_(mask)
        else:
            self.mask = mask.clone()

    def drop_masked_gradient(self) -> None:
        """Sets ``weight.grad`` to zero where the mask is, after a dense one was looked at."""
        if self.dense_gradients and self.weight.grad is not None:
            self.weight.grad.mul_(self.mask)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, learned_scores={self.mask_scores is not None}"


def mask_linears(
    linears: Mapping[str, nn.Module], *, learn_scores: bool, dense_gradients: bool = False
) -> dict[str, MaskedLinear]:
    """Turns linear layers into :class:`MaskedLinear` in place, with nothing masked yet.

    The class of the module is swapped: hooks, parameter names and references to it stay as they were.

    Args:
        linears: full name -> module, as :class:`contraprune.structure.Layer` lists them.
        learn_scores: add a parameter ``mask_scores`` of zeros.
        dense_gradients: leave the gradients of masked weights in ``weight.grad``.

    Raises:
        UserError: a module is of another class than ``nn.Linear`` (it could not be folded back exactly).
    """
    check_maskable(linears)
    masked: dict[str, MaskedLinear] = {}
    for name, module in linears.items():
        module.__class__ = MaskedLinear
        assert isinstance(module, MaskedLinear)
        module.register_buffer("mask", torch.ones_like(module.weight, dtype=torch.uint8), persistent=False)
        scores = nn.Parameter(torch.zeros_like(module.weight)) if learn_scores else None
        module.register_parameter("mask_scores", scores)
        module.dense_gradients = dense_gradients
        module.sampler = None
        masked[name] = module
    return masked


def check_maskable(linears: Mapping[str, nn.Module]) -> None:
    """Refuses layers that :func:`mask_linears` cannot mask.

    Raises:
        UserError: a module is of another class than ``nn.Linear`` (it could not be folded back exactly).
    """
    for name, module in linears.items():
        if type(module) is not nn.Linear:
            raise UserError(f"{name}: only torch.nn.Linear can be masked, found {type(module).__name__}")


def masked_linears(model: nn.Module) -> dict[str, MaskedLinear]:
    """All masked layers of a model by full name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MaskedLinear)}


@torch.no_grad()
def fold(model: nn.Module) -> None:
    """Multiplies every mask into its weight and restores ``nn.Linear``, in place.

    What the mask removes becomes exactly zero, also where the weight was infinite or NaN; the folded model gives the
    masked model's outputs in evaluation bit for bit.
    """
    for module in masked_linears(model).values():
        module.weight.mul_(module.mask).masked_fill_(module.mask == 0, 0.0)
        del module.mask, module.mask_scores, module.dense_gradients, module.sampler
        module.__class__ = nn.Linear  # type: ignore[assignment]
