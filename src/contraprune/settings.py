"""How settings are declared and checked: one dataclass field each, refused with one line."""

import dataclasses
from collections.abc import Sequence
from dataclasses import field
from typing import Any

from contraprune.errors import UserError


def setting(default: Any, help: str) -> Any:
    """A dataclass field with its default and the help of its flag."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def require(ok: bool, flag: str, expected: str, found: object) -> None:
    """Raises the UserError of a flag's value unless ``ok``."""
    if not ok:
        raise UserError(f"--{flag}: expected {expected}, found {found}")


def changed(config: Any, names: Sequence[str]) -> list[str]:
    """Those of the fields ``names`` of ``config`` that do not have their default."""
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    return [name for name in names if getattr(config, name) != defaults[name]]


def refuse_unless_default(config: Any, names: Sequence[str], reason: str) -> None:
    """Refuses settings that would have no effect.

    Raises:
        UserError: one of the fields ``names`` of ``config`` was changed from its default.
    """
    for name in changed(config, names):
        raise UserError(f"--{name} {getattr(config, name)}: {reason}")
