"""Options of the training loop that change how a step is computed, and hardly its result."""

import json
from pathlib import Path

import pytest
from transformers import TrainingArguments

import contraprune
from contraprune.config import PruneArguments
from contraprune.jobs import resolved_options
from tiny_tasks import small_run


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """Runs a few steps without dropout; the loss parts of every step."""

    def prune(**options):
        folder = tmp_path_factory.mktemp("run")
        own = {"per_device_train_batch_size": 32, "density": 0.3, "score_init": "magnitude", "dropout": 0.0}
        quick = {"save_strategy": "no", "eval_strategy": "no"}
        contraprune.prune(**(small_run(tiny, folder, **own, **quick) | options))
        log = [json.loads(line) for line in (Path(folder) / "run" / "log.jsonl").read_text().splitlines()]
        return [{k: v for k, v in entry.items() if k.startswith("loss")} for entry in log if "grad_norm" in entry]

    return prune


@pytest.fixture(scope="module")
def plain(run):
    return run()


@pytest.fixture(scope="module")
def plain_taylor(run):
    return run(method="taylor", density=0.5, num_stages=1, score_init="saliency")


def assert_same(found, expected, tolerance):
    assert len(found) == len(expected) == 4
    for entry, reference in zip(found, expected, strict=True):
        assert entry == pytest.approx(reference, rel=tolerance, abs=tolerance)


def test_one_process_uses_one_gpu_of_several(tmp_path, monkeypatch):
    """Stock training would give each GPU a replica in a thread of its own: no hook or mask of ours is there."""
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    arguments = PruneArguments(output_dir=str(tmp_path), use_cpu=True)
    assert (TrainingArguments(output_dir=str(tmp_path), use_cpu=True).n_gpu, arguments.n_gpu) == (2, 1)
    assert arguments.train_batch_size == arguments.per_device_train_batch_size


def test_what_differs_from_our_default_is_recorded_though_it_is_that_of_transformers(tmp_path):
    usual = PruneArguments(output_dir=str(tmp_path), use_cpu=True)
    assert resolved_options((), usual)["train_sampling_strategy"] == "group_by_length"
    stock = TrainingArguments(output_dir=str(tmp_path)).train_sampling_strategy
    changed = PruneArguments(output_dir=str(tmp_path), use_cpu=True, train_sampling_strategy=stock)
    assert resolved_options((), changed)["train_sampling_strategy"] == stock == "random"


def test_bf16_gives_about_the_same_losses(run, plain):
    found = run(bf16=True)
    assert_same(found, plain, 0.03)
    assert found != plain  # it did compute in bfloat16


def test_gradient_checkpointing_gives_the_same_losses(run, plain):
    assert_same(run(gradient_checkpointing=True), plain, 1e-5)


COMPILED = {"torch_compile": True, "torch_compile_backend": "aot_eager"}


def test_a_compiled_model_gives_the_same_losses(run, plain):
    assert_same(run(**COMPILED), plain, 1e-4)


def test_a_compiled_model_draws_the_gates_of_l0_anew(run):
    compiled = run(**COMPILED, method="l0")
    assert_same(compiled, run(method="l0"), 1e-4)


def test_accumulated_batches_give_the_same_losses(run):
    # Without contrast, whose candidates are those of a batch.
    whole = run(contrast="none")
    assert_same(run(contrast="none", per_device_train_batch_size=8, gradient_accumulation_steps=4), whole, 1e-5)


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [({"bf16": True}, 0.03), ({"gradient_checkpointing": True}, 1e-5), (COMPILED, 1e-4)],
    ids=["bf16", "gradient_checkpointing", "torch_compile"],
)
def test_stages_of_heads_and_neurons_too(run, plain_taylor, options, tolerance):
    options = options | {"method": "taylor", "density": 0.5, "num_stages": 1, "score_init": "saliency"}
    assert_same(run(**options)[:4], plain_taylor, tolerance)
