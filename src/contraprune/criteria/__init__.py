"""Criteria of unstructured pruning, by the name of ``--method``."""

import inspect

from contraprune.criteria.base import Criterion, Ranking
from contraprune.criteria.fisher import Fisher
from contraprune.criteria.l0 import L0
from contraprune.criteria.magnitude import Magnitude
from contraprune.criteria.movement import Movement
from contraprune.criteria.penalised import Penalised
from contraprune.criteria.smp import StaticModelPruning
from contraprune.criteria.soft_movement import SoftMovement

__all__ = [
    "CRITERIA",
    "L0",
    "Criterion",
    "Fisher",
    "Magnitude",
    "Movement",
    "Penalised",
    "Ranking",
    "SoftMovement",
    "StaticModelPruning",
    "register",
]

CRITERIA: dict[str, type[Criterion]] = {
    "movement": Movement,
    "soft_movement": SoftMovement,
    "magnitude": Magnitude,
    "fisher": Fisher,
    "smp": StaticModelPruning,
    "l0": L0,
}


def register(name: str, criterion: type[Criterion]) -> None:
    """Makes a criterion of your own usable as ``contraprune.prune(method=name)``; see docs/add-a-criterion.md.

    Raises:
        ValueError: another criterion has the name.
        TypeError: not a subclass of :class:`Criterion`, or one with abstract methods left.
    """
    if not (inspect.isclass(criterion) and issubclass(criterion, Criterion)):
        raise TypeError(f"{name}: expected a subclass of contraprune.criteria.Criterion, found {criterion!r}")
    if inspect.isabstract(criterion):
        missing = ", ".join(sorted(criterion.__abstractmethods__))
        raise TypeError(f"{name}: {criterion.__name__} has to define {missing}")
    if name == "taylor" or CRITERIA.get(name, criterion) is not criterion:
        raise ValueError(f"{name}: another criterion has this name")
    CRITERIA[name] = criterion
