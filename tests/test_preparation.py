"""What cannot be pruned as asked is refused as soon as the models are there."""

import numpy as np
import pytest
from transformers import AutoTokenizer

import contraprune
from contraprune import UserError, jobs, prediction, sources
from contraprune.bank import RowFile
from contraprune.jobs import Job
from tiny_tasks import SENTIMENTS, family_models


@pytest.fixture
def nothing_read(monkeypatch):
    """Fails what reads the data: with the tokenizer, the teacher, or either model for its bank."""

    def refused(*args, **options):
        raise AssertionError("the check came too late")

    for owner, name in ((Job, "encode_for"), (Job, "evaluate"), (sources, "encode")):
        monkeypatch.setattr(owner, name, refused)


_TWO_LAYERS = "every one of the 2 layers keeps at least one of its heads"


@pytest.mark.usefixtures("nothing_read")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block": "3x1"}, "--block 3x1: bert.encoder.layer.0.attention.self.query of 32 x 32 weights does not divide"),
        ({"pattern": "1:3", "method": "magnitude"}, "--pattern 1:3: .* of 32 x 32 weights does not divide by it"),
        ({"method": "soft_movement", "density": 0.001}, "--density 0.001: soft movement keeps 0.5 % of every matrix"),
        ({"method": "soft_movement", "block": "16x32", "density": 0.3}, "--density 0.3: soft movement keeps 0.5 %"),
        ({"method": "taylor", "density": 0.1}, f"--density 0.1: {_TWO_LAYERS}.* raise --density or --head_density"),
        ({"method": "taylor", "density": 0.5, "head_density": 0.1}, f"{_TWO_LAYERS}.* raise --density or --head_dens"),
        ({"method": "taylor", "density": 0.5, "stages": "10,20"}, "--stages 10,20: ends at 20 % removed, but"),
    ],
)
def test_before_anything_is_read(tiny_options, settings, message):
    with pytest.raises(UserError, match=message):
        contraprune.prune(**tiny_options, **settings)


@pytest.mark.usefixtures("nothing_read")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "movement"}, r"transformer.h.0.attn.c_attn: only torch.nn.Linear can be masked, found Conv1D"),
        (
            {"method": "taylor", "neuron_density": 0.01},
            "every one of the 3 layers keeps at least one of its neurons.* raise --density or --neuron_density",
        ),
    ],
)
def test_what_gpt2_does_not_allow_too(tiny_options, tiny, tmp_path, settings, message):
    options = tiny_options | family_models(
        tmp_path, AutoTokenizer.from_pretrained(tiny / "teacher"), "gpt2", **SENTIMENTS
    )
    with pytest.raises(UserError, match=message):
        contraprune.prune(**options, **settings)


@pytest.mark.usefixtures("nothing_read")
def test_the_model_that_is_pruned_is_the_one_that_is_checked(tiny_options, tiny, tmp_path):
    """A teacher whose matrices divide by the block, pruned from a pre-trained model whose do not."""
    tokenizer = AutoTokenizer.from_pretrained(tiny / "teacher")
    options = tiny_options | family_models(tmp_path, tokenizer, "bert", **SENTIMENTS, intermediate_size=20)
    wide = family_models(tmp_path / "wide", tokenizer, "bert", **SENTIMENTS, intermediate_size=21)
    options |= {"block": "4x1", "model": wide["model"]}
    with pytest.raises(UserError, match=r"--block 4x1: .*intermediate.dense of 21 x 24 weights does not divide"):
        contraprune.prune(**options, start_from="pretrained")
    with pytest.raises(AssertionError, match="too late"):  # it passes, and the run goes on
        contraprune.prune(**options, overwrite=True)


def test_a_teacher_that_names_its_labels_wrongly_is_refused(tiny_options, monkeypatch):
    def turned(model, task, encoded, *arguments, **options):
        return [np.eye(2)[1 - label] for label in encoded["labels"]], 0.0

    monkeypatch.setattr(prediction, "predict", turned)
    with pytest.raises(UserError, match=r"teacher: its outputs are read as .* correct id2label in its config\.json"):
        contraprune.prune(**tiny_options)


@pytest.mark.parametrize(("steps", "taken"), [(20, 4), (6, 1)])
def test_banks_are_planned_for_the_snapshots_that_max_steps_gives(tiny_options, monkeypatch, capsys, steps, taken):
    """Four steps an epoch; two epochs would give one snapshot."""
    made = []
    create = RowFile.create.__func__

    def created(cls, path, spec, *, in_memory):
        made.append((path.parent.name, in_memory))
        return create(cls, path, spec, in_memory=in_memory)

    monkeypatch.setattr(RowFile, "create", classmethod(created))
    limit = 4 * 64 * 32 * 2  # bytes of four banks
    contraprune.prune(**(tiny_options | {"num_train_epochs": 2}), max_steps=steps, bank_memory_gb=limit / 1e9)
    snapshots = [in_memory for name, in_memory in made if name.startswith("snapshot")]
    assert len(snapshots) == taken
    assert set(snapshots) == {taken + 2 <= 4}
    assert f"snapshots {taken * 4} kB" in capsys.readouterr().err


def test_nodes_that_find_different_checkpoints_are_told(tiny_options, monkeypatch):
    monkeypatch.setattr(jobs, "gather_object", lambda found: [*found, "checkpoint-3"])
    with pytest.raises(UserError, match=r"--output_dir .*: not every process finds the same checkpoint there; an "):
        contraprune.prune(**tiny_options)
