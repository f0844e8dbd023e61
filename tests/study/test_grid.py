"""Which runs a study has, and which flags it refuses."""

import pytest

from contraprune.config import ContrastConfig
from contraprune.errors import UserError
from contraprune.pruning_config import PruningConfig
from contraprune.study.grid import METHODS, StudyConfig, trials


def asked(kind, *, pruning=None, contrast=None, seed=42, has_classes=True, **config):
    return trials(
        kind,
        StudyConfig(**config),
        PruningConfig(**(pruning or {})),
        ContrastConfig(**(contrast or {})),
        seed=seed,
        has_classes=has_classes,
    )


def options_by_variant(found):
    usual = {"method", "density", "seed"}
    return {trial.variant: {key: value for key, value in trial.options.items() if key not in usual} for trial in found}


def test_an_ablation_takes_each_part_away():
    found = asked("ablation", seeds="3")
    assert options_by_variant(found) == {
        "full": {},
        "without PrC": {"contrast": "snapshots,finetuned"},
        "without SnC": {"contrast": "pretrained,finetuned"},
        "without FiC": {"contrast": "pretrained,snapshots"},
        "without unsupervised": {"unsupervised_weight": 0.0},
        "without supervised": {"supervised_weight": 0.0},
        "without contrast": {"contrast": "none"},
    }
    assert {trial.options["seed"] for trial in found} == {3}


def test_an_ablation_takes_away_only_what_is_there():
    of_two = asked("ablation", seeds="1", contrast={"contrast": "pretrained,finetuned", "supervised_weight": 0.0})
    assert options_by_variant(of_two) == {
        "full": {},
        "without PrC": {"contrast": "finetuned"},
        "without FiC": {"contrast": "pretrained"},
        "without contrast": {"contrast": "none"},
    }
    without_classes = asked("ablation", seeds="1", has_classes=False)
    assert not any("supervised" in trial.variant for trial in without_classes)
    assert len(asked("ablation", seeds="1", contrast={"contrast": "finetuned"})) == 4


def test_an_ablation_takes_the_bins_of_numbers_away_with_the_losses_that_need_them():
    found = options_by_variant(asked("ablation", seeds="1", contrast={"supervised_bins": 3}))
    assert found["without supervised"] == {"supervised_weight": 0.0, "supervised_bins": None}
    assert found["without contrast"] == {"contrast": "none", "supervised_bins": None}
    assert not any("supervised_bins" in found[variant] for variant in ("full", "without PrC", "without unsupervised"))


def test_a_study_is_every_combination_and_names_do_not_depend_on_what_else_varies():
    found = asked("sparsity", seeds="1,2", densities="0.5, 0.03", methods="movement,taylor")
    combinations = {(t.options["method"], t.options["density"], t.options["seed"]) for t in found}
    assert combinations == {(m, d, s) for m in ("movement", "taylor") for d in (0.5, 0.03) for s in (1, 2)}
    assert len({trial.name for trial in found}) == len(found) == 8
    assert [trial.seed for trial in found] == [1] * 4 + [2] * 4
    alone = asked("sparsity", seeds="2", densities="0.03")
    assert [trial.name for trial in alone] == ["movement-density0.03-seed2"]
    assert alone[0] in found
    assert asked("ablation", seeds="1")[1].name == "movement-density0.1-without-PrC-seed1"


def test_what_a_study_varies_by_default():
    assert [trial.density for trial in asked("sparsity", seeds="1")] == [0.5, 0.1, 0.03]
    assert tuple(trial.method for trial in asked("criteria", seeds="1")) == METHODS
    assert {trial.density for trial in asked("criteria", seeds="1", pruning={"density": 0.2})} == {0.2}


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("magic", {}, "study: expected one of ablation, sparsity, criteria, found magic"),
        ("ablation", {"seeds": "1,x"}, "--seeds: expected different whole numbers from 0 to 4294967295, joined by"),
        ("ablation", {"seeds": ""}, "--seeds: expected different whole numbers"),
        ("ablation", {"seeds": "1,-1"}, "--seeds: expected different whole numbers from 0"),
        ("ablation", {"seeds": "1,1"}, "--seeds: expected different whole numbers"),
        ("sparsity", {"densities": "0.5,2"}, "--densities: expected different fractions in"),
        ("criteria", {"methods": "movement,magic"}, "--methods: expected different names of movement"),
        ("sparsity", {"pruning": {"density": 0.2}}, "--density 0.2: without effect in this study; name it"),
        ("criteria", {"methods": "taylor", "pruning": {"method": "magnitude"}}, "--method magnitude: without effect"),
        ("ablation", {"seed": 7}, "--seed 7: without effect in this study; name it among --seeds"),
        ("ablation", {"contrast": {"contrast": "none"}}, "--contrast none: an ablation takes"),
        ("ablation", {"workers": 0}, "--workers: expected at least 1, found 0"),
    ],
)  # fmt: skip
def test_lists_that_are_none_and_flags_without_effect_are_refused(kind, options, message):
    with pytest.raises(UserError) as error:
        asked(kind, **options)
    assert str(error.value).startswith(message)
