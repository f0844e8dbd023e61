"""Magnitude pruning (Han et al. 2015; gradual: Zhu and Gupta 2017): the largest weights stay."""

from jaxtyping import Float
from torch import Tensor

from contraprune.criteria.base import Ranking


class Magnitude(Ranking):
    """Importance is ``|weight|``. Costs nothing and knows nothing of the task beyond the weights."""

    def importance(self, name: str) -> Float[Tensor, "out in"]:
        return self.linears[name].weight.abs()
