"""Every recipe is a configuration that the command accepts."""

from pathlib import Path

import pytest

from contraprune.cli import parse
from contraprune.pipeline import PRUNE_SETTINGS
from contraprune.tasks import TASKS

RECIPES = sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_what_its_name_says(path, tmp_path):
    flags = ["--config", str(path), "--teacher", "t", "--output_dir", str(tmp_path)]
    run, data, pruning, _, contrast, arguments = parse("prune", PRUNE_SETTINGS, flags)[: len(PRUNE_SETTINGS)]
    task, percent = path.stem.split("-")[-2:]
    assert data.task == task
    assert data.task in TASKS
    assert pruning.density == int(percent) / 100
    assert run.teacher == "t"
    assert (pruning.score_init, contrast.normalization, arguments.num_train_epochs) == ("zero", "released", 10)


def test_there_are_recipes():
    assert len(RECIPES) == 9
