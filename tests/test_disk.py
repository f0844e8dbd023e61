"""How much disk a run will need."""

import pytest
import torch

from contraprune.config import FinetuneArguments
from contraprune.disk import announce, checkpoint_bytes, most_checkpoints, readable, steps


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"save_strategy": "epoch"}, 2),  # one is kept, and the next is written beside it
        ({"save_strategy": "epoch", "save_total_limit": None}, 3),
        ({"save_strategy": "epoch", "save_total_limit": 9}, 3),
        ({"save_strategy": "epoch", "num_train_epochs": 1}, 1),
        ({"save_strategy": "steps", "save_steps": 5, "save_total_limit": None}, 2),  # of 12 steps
        ({"save_strategy": "steps", "save_steps": 0.5, "save_total_limit": None}, 2),
        ({"save_strategy": "steps", "save_steps": 1, "max_steps": 7, "save_total_limit": None}, 7),
        ({"save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 2, "save_total_limit": None}, 6),
        ({"save_strategy": "no"}, 1),  # Ctrl-C's
    ],
)
def test_checkpoints_that_are_there_at_once(settings, expected):
    common = {"output_dir": "o", "use_cpu": True, "num_train_epochs": 3, "per_device_train_batch_size": 16}
    assert most_checkpoints(FinetuneArguments(**(common | settings)), 64) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (4, 12)),
        ({"num_train_epochs": 2.5}, (4, 10)),
        ({"max_steps": 7}, (4, 7)),
        ({"gradient_accumulation_steps": 3}, (2, 6)),
    ],
)
def test_steps_of_an_epoch_and_of_the_training(settings, expected):
    common = {"output_dir": "o", "use_cpu": True, "num_train_epochs": 3, "per_device_train_batch_size": 16}
    assert steps(FinetuneArguments(**(common | settings)), 64) == expected


def test_a_checkpoint_is_the_weights_adams_state_and_the_masks():
    model = torch.nn.Sequential(torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(10, 5, bias=False))
    model[1].requires_grad_(False)
    assert checkpoint_bytes(model) == 4 * 150 + 2 * 4 * 100
    assert checkpoint_bytes(model, scored_weights=100) == 4 * 150 + 2 * 4 * 100 + 100
    with_scores = checkpoint_bytes(model, scored_weights=100, learned_scores=True)
    assert with_scores == 4 * 150 + 2 * 4 * 100 + 100 + 3 * 4 * 100


def test_scarce_space_is_said_and_what_is_there_already_counts(tmp_path, capsys):
    announce({tmp_path / "new" / "run": {"model": 10**18, "nothing": 0}})
    said = capsys.readouterr().err
    assert said.startswith(f"disk: up to 1000000 TB in {tmp_path / 'new' / 'run'} (model 1000000 TB), where ")
    assert said.endswith(" are free - NOT ENOUGH\n")
    announce({tmp_path: {"model": 1000}})
    assert "NOT ENOUGH" not in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (1_540_000, "1.5 MB"), (438e6, "438 MB"), (2.5e12, "2.5 TB")],
)
def test_sizes_have_the_unit_that_suits_them(size, expected):
    assert readable(size) == expected
