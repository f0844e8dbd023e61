"""Structured pruning in stages: what is left, that it resumes, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import contraprune
from contraprune import UserError, prediction
from contraprune.config import StructuredConfig
from contraprune.criteria.taylor import keep_after_removal
from contraprune.pruning_config import PruningConfig
from contraprune.shrinking import shrink
from contraprune.structure import find_layers
from contraprune.structured import StageRunner, plan_stages
from contraprune.trainer import ContrastTrainer
from tiny_models import FAMILIES


@pytest.fixture
def options(tiny_options):
    return tiny_options | {"method": "taylor", "density": 0.5, "num_stages": 2, "importance_examples": 32}


def sizes(model):
    layers = find_layers(model)
    return [layer.heads.num_heads for layer in layers], [layer.neurons.num_neurons for layer in layers]


def plan(density=0.5, **settings):
    layers = find_layers(FAMILIES["bert"].build())  # 3 layers of 4 heads and 20 neurons
    return plan_stages(layers, PruningConfig(method="taylor", density=density), StructuredConfig(**settings))


def test_stages_reach_the_density_in_equal_or_given_steps():
    assert [(s.percent, s.heads, s.neurons) for s in plan(num_stages=2)] == [(25, 3, 15), (50, 3, 15)]
    assert [(s.percent, s.heads, s.neurons) for s in plan(stages="10,50")] == [(10, 1, 6), (50, 5, 24)]
    assert sum(s.heads for s in plan(0.25, num_stages=9)) == 9


def test_heads_and_neurons_can_have_their_own_targets():
    stages = plan(num_stages=3, head_density=0.75, neuron_density=0.1)
    assert sum(s.heads for s in stages) == 3
    assert sum(s.neurons for s in stages) == 54


def test_density_one_removes_nothing():
    assert [(s.heads, s.neurons) for s in plan(1.0, num_stages=2)] == [(0, 0), (0, 0)]


def test_a_density_without_a_head_for_every_layer_says_so():
    with pytest.raises(UserError, match=r"--density 0.1: every one of the 3 layers keeps at least one of its heads"):
        plan(0.1)
    assert sum(s.heads for s in plan(0.1, head_density=0.25)) == 9


@pytest.mark.parametrize("stages", ["50,10", "10,10", "ten", "", "10,120", "0,50"])
def test_stages_must_rise(stages):
    with pytest.raises(UserError, match="--stages: expected rising percentages"):
        StructuredConfig(stages=stages)


def test_stages_and_their_number_exclude_each_other():
    with pytest.raises(UserError, match="--num_stages 3: only without --stages"):
        StructuredConfig(stages="10,50", num_stages=3)


def test_stages_must_end_at_the_density():
    with pytest.raises(UserError, match=r"--stages 10,60: ends at 60 % removed, but --density 0.5 removes 50 %"):
        plan(stages="10,60")


@pytest.mark.parametrize("divisor", [5, 12])
def test_every_layer_keeps_a_multiple_of_neurons(options, divisor):
    """What the first stage is off by, the second makes up for."""
    results = contraprune.prune(**options, neuron_divisor=divisor)
    stages = [stage["neurons"] for stage in results["stages"]]
    assert all(layer % divisor == 0 or layer == 32 for stage in stages for layer in stage)
    assert len({layer for stage in stages for layer in stage}) > 2
    for stage, planned in zip(stages, (96, 64), strict=True):  # of 4 layers of 32
        assert abs(sum(stage) - planned) <= divisor / 2
    assert sizes(contraprune.load(options["output_dir"]))[1] == stages[-1]


def test_a_model_with_an_emptied_layer_can_be_pruned_again_by_a_divisor():
    model = FAMILIES["bert"].build()
    layers = find_layers(model)
    keep = [torch.ones(20).bool(), torch.zeros(20).bool(), torch.arange(20) < 16]
    shrink(model, layers, [torch.ones(4).bool()] * 3, keep)
    pruning = PruningConfig(method="taylor", density=0.5)
    stages = plan_stages(find_layers(model), pruning, StructuredConfig(num_stages=1, neuron_divisor=8))
    assert [stage.neurons for stage in stages] == [18]
    importance = [torch.rand(20), torch.rand(0), torch.rand(16)]
    left = [int(mask.sum()) for mask in keep_after_removal(importance, 18, keep_at_least=0, divisor=8)]
    assert left[1] == 0
    assert left[0] in (0, 8, 16, 20)
    assert left[2] in (0, 8, 16)


def test_where_an_ffn_has_to_stay_a_multiple_of_it_does():
    layers = find_layers(FAMILIES["gpt2"].build())
    width = layers[0].neurons.num_units
    assert not layers[0].neurons.may_be_empty
    structured = StructuredConfig(head_density=0.5, neuron_density=0.1, neuron_divisor=4)
    with pytest.raises(UserError, match=f"every one of the {len(layers)} layers keeps at least 4 of its neurons"):
        plan_stages(layers, PruningConfig(method="taylor", density=0.5), structured)
    kept = keep_after_removal([torch.rand(width) for _ in layers], width, keep_at_least=4, divisor=4)
    assert all(int(mask.sum()) >= 4 and int(mask.sum()) % 4 == 0 for mask in kept)


def test_a_divisor_of_more_than_a_layer_is_refused():
    with pytest.raises(
        UserError, match="--neuron_divisor: expected at most 20, the neurons of the widest layer, found"
    ):
        plan(neuron_divisor=32)
    with pytest.raises(UserError, match="--neuron_divisor: expected at least 1, found 0"):
        plan(neuron_divisor=0)


def test_units_are_rated_with_the_teachers_head_where_the_models_own_is_random(options, monkeypatch):
    heads = []
    rate = StageRunner.rate_units

    def rated(self, stage, trainer, layers):
        heads.append(self.prepared.model.classifier.weight.detach().clone())
        return rate(self, stage, trainer, layers)

    monkeypatch.setattr(StageRunner, "rate_units", rated)
    contraprune.prune(**options, start_from="pretrained", contrast="none")
    teacher = load_file(Path(options["teacher"]) / "model.safetensors")
    assert torch.equal(heads[0], teacher["classifier.weight"])
    assert not torch.equal(heads[1], heads[0])


def test_importance_that_overflowed_is_refused(options):
    with pytest.raises(UserError, match="stage 1: the importance of heads and neurons is not a number"):
        contraprune.prune(**options, ce_weight=1e39, contrast="none")


def test_stages_alone_say_the_density(options):
    results = contraprune.prune(
        **{key: options[key] for key in options if key not in ("density", "num_stages")}, stages="25,50"
    )
    assert results["density"]["target"] == 0.5
    assert [stage["removed_percent"] for stage in results["stages"]] == [25, 50]
    assert [sum(stage["heads"]) for stage in results["stages"]] == [6, 4]


def test_a_run_of_a_run_directory_starts_from_its_model(options, tmp_path):
    contraprune.prune(**options)
    again = options | {"teacher": options["output_dir"], "output_dir": str(tmp_path / "again")}
    results = contraprune.prune(**again)
    assert [sum(stage["heads"]) for stage in results["stages"]] == [3, 2]


def test_a_run_removes_units_for_good_and_reports_every_stage(options):
    results = contraprune.prune(**options)
    model = contraprune.load(options["output_dir"])
    heads, neurons = sizes(model)
    assert (sum(heads), sum(neurons)) == (4, 64)
    assert min(heads) >= 1
    assert [sum(stage["heads"]) for stage in results["stages"]] == [6, 4]
    assert (results["stages"][-1]["heads"], results["stages"][-1]["neurons"]) == (heads, neurons)
    assert results["parameters"]["after"] == sum(p.numel() for p in model.parameters())
    assert results["parameters"]["after"] < results["parameters"]["before"]
    assert results["density"]["encoder"] == pytest.approx(0.5, abs=0.01)
    assert results["stages"][-1]["metrics"] == results["metrics"]
    run = Path(options["output_dir"])
    left = [
        "README.md", "SHA256SUMS", "config.yaml", "log.jsonl", "model", "report.html", "representations.json",
        "results.json",
    ]  # fmt: skip
    assert sorted(path.name for path in run.iterdir()) == left
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {entry["stage"] for entry in log} == {"stage-01", "stage-02"}
    first, second = ([e for e in log if e["stage"] == f"stage-0{n}" and "loss" in e] for n in (1, 2))
    assert not any("snapshots" in key for entry in first for key in entry)
    assert all("loss_snapshots_unsupervised" in entry for entry in second)


@pytest.mark.parametrize(("stage", "at_step", "divisor"), [(1, 2, 1), (2, 0, 8), (2, 3, 1)])
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    options, tmp_path, monkeypatch, stage, at_step, divisor
):
    options = options | {"save_strategy": "steps", "save_steps": 1, "neuron_divisor": divisor}
    contraprune.prune(**(options | {"output_dir": str(tmp_path / "whole")}))
    step = ContrastTrainer.training_step
    trainings = set()

    def interrupted(self, *arguments, **keywords):
        trainings.add(id(self))
        if len(trainings) == stage and self.state.global_step == at_step:
            raise KeyboardInterrupt
        return step(self, *arguments, **keywords)

    monkeypatch.setattr(ContrastTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        contraprune.prune(**options)
    monkeypatch.undo()
    contraprune.prune(**options)
    expected, found = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "run"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    logs = [(tmp_path / run / "log.jsonl").read_text().splitlines() for run in ("whole", "run")]
    losses = [[(e["stage"], e["step"], e["loss"]) for e in map(json.loads, log) if "grad_norm" in e] for log in logs]
    assert losses[0] == losses[1]


def test_a_stage_rates_batches_of_similar_length_saves_no_last_checkpoint_and_evaluates_once(options, monkeypatch):
    widths, evaluations, checkpoints = [], [], []
    rate, evaluate, save = ContrastTrainer.loss_for_importance, prediction.evaluate, ContrastTrainer._save_checkpoint

    def rated(self, outputs, inputs, part, draw):
        if draw[0] == 1:
            widths.append(inputs["input_ids"].shape[1])
        return rate(self, outputs, inputs, part, draw)

    def evaluated(*arguments, **keywords):
        evaluations.append(arguments)
        return evaluate(*arguments, **keywords)

    def saved(self, *arguments, **keywords):
        checkpoints.append(self.state.global_step)
        return save(self, *arguments, **keywords)

    monkeypatch.setattr(ContrastTrainer, "loss_for_importance", rated)
    monkeypatch.setattr(ContrastTrainer, "_save_checkpoint", saved)
    monkeypatch.setattr("contraprune.trainer.evaluate", evaluated)
    monkeypatch.setattr("contraprune.jobs.evaluate", evaluated)
    results = contraprune.prune(**(options | {"contrast": "none", "num_train_epochs": 2, "eval_strategy": "epoch"}))
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) > 1
    steps = json.loads((Path(options["output_dir"]) / "log.jsonl").read_text().splitlines()[-1])["step"]
    assert checkpoints == [steps // 2] * 2  # one after the first epoch of each stage
    assert len(evaluations) == 1 + 2 * 2 + 1  # the teacher, every epoch, and what was saved
    assert all(stage["metrics"] for stage in results["stages"])


@pytest.mark.parametrize("strategy", ["no", "epoch"])
def test_every_stage_reports_metrics_whether_or_not_training_evaluates(options, strategy):
    results = contraprune.prune(**options, contrast="none", eval_strategy=strategy)
    assert results["stages"][-1]["metrics"] == results["metrics"]
    assert len(results["stages"]) == 2


def test_dropout_and_frozen_embeddings_hold_in_every_stage_and_after_a_resume(options, monkeypatch):
    step = ContrastTrainer.training_step
    seen = []

    def watched(self, model, *arguments, **keywords):
        dropouts = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
        seen.append((dropouts, model.get_input_embeddings().weight.requires_grad))
        if len(seen) == 7:  # the first batches of the second stage
            raise KeyboardInterrupt
        return step(self, model, *arguments, **keywords)

    monkeypatch.setattr(ContrastTrainer, "training_step", watched)
    chosen = options | {"contrast": "none", "num_train_epochs": 1, "freeze_embeddings": True}
    with pytest.raises(KeyboardInterrupt):
        contraprune.prune(**chosen)
    contraprune.prune(**chosen)
    assert len(seen) > 8
    assert all(entry == ({0.0}, False) for entry in seen)
    config = json.loads((Path(options["output_dir"]) / "model" / "config.json").read_text())
    assert config["hidden_dropout_prob"] == 0.1


def test_a_pruned_model_can_be_pruned_again(options, tmp_path):
    contraprune.prune(**options, contrast="none")
    again = options | {"teacher": str(tmp_path / "run" / "model"), "output_dir": str(tmp_path / "again")}
    results = contraprune.prune(**(again | {"num_stages": 1}))
    heads, neurons = sizes(contraprune.load(tmp_path / "again"))
    assert (sum(heads), sum(neurons)) == (2, 32)
    assert results["stages"][0]["heads"] == heads


def test_settings_of_the_other_kind_of_pruning_are_refused(options):
    with pytest.raises(UserError, match=r"--scope global: only for pruning single weights"):
        contraprune.prune(**options, scope="global")
    with pytest.raises(UserError, match=r"--num_stages 2: only with --method taylor, not with magnitude"):
        contraprune.prune(**(options | {"method": "magnitude"}))
