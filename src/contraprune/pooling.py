"""From token representations to one representation per example."""

from typing import Literal

from jaxtyping import Float, Shaped
from torch import Tensor

Pooling = Literal["cls", "mean"]


def pool(
    last_hidden_state: Float[Tensor, "batch length dim"],
    attention_mask: Shaped[Tensor, "batch length"],
    *,
    pooling: Pooling,
    pooler_output: Float[Tensor, "batch dim"] | None = None,
) -> Float[Tensor, "batch dim"]:
    """The sentence representation that contrastive pruning compares, not normalised.

    ``"cls"`` is the model's ``pooler_output`` where it has one and it is given, else the first token;
    ``"mean"`` is the mean over the tokens whose ``attention_mask`` is not zero (zero for a row without any).

    Source: CAP (arXiv 2112.07198, section 3.2) and its released code.
    """
    if pooling == "cls":
        return last_hidden_state[:, 0] if pooler_output is None else pooler_output
    weights = (attention_mask != 0).to(last_hidden_state.dtype).unsqueeze(-1)
    return (last_hidden_state * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)
