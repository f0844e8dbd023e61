"""Criteria of unstructured pruning, by the name of ``--method``."""

from contraprune.criteria.base import Criterion
from contraprune.criteria.magnitude import Magnitude
from contraprune.criteria.movement import Movement

CRITERIA: dict[str, type[Criterion]] = {"movement": Movement, "magnitude": Magnitude}
