"""Which runs a study consists of."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, get_args

from transformers import TrainingArguments

from contraprune.config import ContrastConfig, Source
from contraprune.criteria import CRITERIA
from contraprune.errors import UserError
from contraprune.jobs import NOT_IDENTITY
from contraprune.pruning_config import DEFAULT_DENSITY, PruningConfig
from contraprune.settings import setting

T = TypeVar("T")

KINDS = {
    "ablation": "the method without each of its parts",
    "sparsity": "densities",
    "criteria": "pruning methods",
}
"""The studies by name, and what each varies."""

FULL = "full"
DENSITIES = "0.5,0.1,0.03"
METHODS = (*CRITERIA, "taylor")
_SHORT: dict[Source, str] = {"pretrained": "PrC", "snapshots": "SnC", "finetuned": "FiC"}


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What a study varies, and how many of its runs go on at once."""

    _argument_group_name: ClassVar[str] = "study (all other flags are those of contraprune prune)"

    seeds: str = setting("1,2,3", "Seeds, joined by commas: every variant is run with each.")
    densities: str | None = setting(
        None, f"Densities, joined by commas. Default: --density; of a sparsity study {DENSITIES}."
    )
    methods: str | None = setting(
        None, "Methods, joined by commas. Default: --method; of a criteria study all there are."
    )
    workers: int | None = setting(
        None, "Runs that go on at once on this machine, each on a GPU of its own if there are. Default: one per GPU."
    )
    storage: str | None = setting(
        None,
        "Database of the queue, as an SQLAlchemy URL, for workers on several machines. Default: a file in "
        "--output_dir, for one machine.",
    )

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers: expected at least 1, found {self.workers}")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a study: a variant with a seed.

    Attributes:
        variant: what was taken away, "full" for nothing.
        density: None where the method's own penalty decides it.
        options: the options of ``contraprune prune`` that make it this run.
    """

    variant: str
    method: str
    density: float | None
    seed: int
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Names the run's directory; the same whatever else the study varies, so that studies can be extended."""
        density = "" if self.density is None else f"-density{self.density:g}"
        variant = "" if self.variant == FULL else f"-{self.variant.replace(' ', '-')}"
        return f"{self.method}{density}{variant}-seed{self.seed}"


VARIED = frozenset(("seed", "density", "method", "run_name"))
"""Settings that differ between the runs of a study."""


def trials(
    kind: str,
    config: StudyConfig,
    pruning: PruningConfig,
    contrast: ContrastConfig,
    *,
    seed: int,
    has_classes: bool,
) -> list[Trial]:
    """Every run of a study, in the order they are started: all variants with the first seed, and so on.

    Args:
        seed: the ``--seed``, which has to be one of the seeds if it was changed.
        has_classes: whether the task's examples have classes: without, there is no supervised part to take away.

    Raises:
        UserError: a list is not one, or a flag would have no effect.
    """
    if kind not in KINDS:
        raise UserError(f"study: expected one of {', '.join(KINDS)}, found {kind}")
    densities: list[float | None] = [pruning.density]
    if varies_density(kind, config):
        densities = [*_listed("densities", config.densities or DENSITIES, _fraction, "fractions in (0, 1]")]
    methods: list[str] = [pruning.method]
    if config.methods is not None or kind == "criteria":
        methods = _listed("methods", config.methods or ",".join(METHODS), _method, f"names of {', '.join(METHODS)}")
    seeds = _listed("seeds", config.seeds, _seed, "whole numbers from 0 to 4294967295")
    usual = dataclasses.replace(pruning, density=None).density or DEFAULT_DENSITY  # which --pattern may say
    _require_listed("density", "densities", pruning.density, usual, densities)
    _require_listed("method", "methods", pruning.method, PruningConfig.method, methods)
    _require_listed("seed", "seeds", seed, TrainingArguments.seed, seeds)
    variants = _without(contrast, has_classes=has_classes) if kind == "ablation" else {FULL: {}}
    return [
        Trial(
            variant=variant,
            method=method,
            density=density,
            seed=seed,
            options={"method": method, "density": density, "seed": seed, **changes},
        )
        for seed in seeds
        for method in methods
        for density in densities
        for variant, changes in variants.items()
    ]


def varies_density(kind: str, config: StudyConfig) -> bool:
    """Whether the study says which densities its runs end at."""
    return config.densities is not None or kind == "sparsity"


def _without(contrast: ContrastConfig, *, has_classes: bool) -> dict[str, dict[str, Any]]:
    """The options that differ when each part that is there is taken away, by the variant's name."""
    sources = contrast.sources
    if not sources:
        raise UserError("--contrast none: an ablation takes the contrastive losses away one by one; name some")
    variants: dict[str, dict[str, Any]] = {FULL: {}}
    for source in get_args(Source):
        if source in sources and len(sources) > 1:
            rest = ",".join(other for other in sources if other != source)
            variants[f"without {_SHORT[source]}"] = {"contrast": rest}
    parts = {"unsupervised": contrast.unsupervised_weight > 0}
    parts["supervised"] = contrast.supervised_weight > 0 and has_classes
    if all(parts.values()):
        variants |= {f"without {part}": {f"{part}_weight": 0.0} for part in parts}
    variants["without contrast"] = {"contrast": "none"}
    if contrast.supervised_bins is not None:  # which mean nothing without the losses that have classes
        for variant in {"without supervised", "without contrast"} & variants.keys():
            variants[variant]["supervised_bins"] = None
    return variants


def _listed(flag: str, text: str, kind: Callable[[str], T], expected: str) -> list[T]:
    try:
        values = [kind(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError:
        values = []
    if not values or len(set(values)) < len(values):
        raise UserError(f"--{flag}: expected different {expected}, joined by commas, found {text}")
    return values


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise ValueError
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:
        raise ValueError
    return value


def _method(text: str) -> str:
    return METHODS[METHODS.index(text)]


def _require_listed(flag: str, flags: str, value: Any, default: Any, values: Sequence[Any]) -> None:
    if value != default and value not in values:
        raise UserError(f"--{flag} {value}: without effect in this study; name it among --{flags}")


def fixed_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of the resolved options of a run, those that all runs of one study share."""
    return {name: value for name, value in options.items() if name not in NOT_IDENTITY | VARIED}
