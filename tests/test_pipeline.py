"""Whole runs of a tiny model: the promised zeros, files, resumption and refusals."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

import contraprune
from contraprune import UserError, sources
from contraprune.bank import RowFile
from contraprune.callbacks import GradualPruning
from contraprune.criteria import CRITERIA
from contraprune.criteria.penalised import Penalised
from contraprune.structure import find_layers
from contraprune.tasks import toy
from contraprune.trainer import MaskedTrainer


def weights(run):
    return load_file(Path(run) / "model" / "model.safetensors")


def pruned_matrices(run):
    model = AutoModelForSequenceClassification.from_pretrained(Path(run) / "model")
    return {name: m.weight for layer in find_layers(model) for name, m in layer.linears.items()}


@pytest.mark.parametrize(
    ("method", "density"), [("movement", 0.1), ("magnitude", 0.03), ("magnitude", 1.0), ("fisher", 0.1), ("smp", 0.2)]
)
def test_every_matrix_has_exactly_the_promised_zeros(tiny_options, method, density):
    results = contraprune.prune(**tiny_options, method=method, density=density)
    matrices = pruned_matrices(tiny_options["output_dir"])
    assert len(matrices) == 12
    kept = {name: int(torch.count_nonzero(matrix)) for name, matrix in matrices.items()}
    assert kept == {name: int(density * matrix.numel()) for name, matrix in matrices.items()}
    total = sum(matrix.numel() for matrix in matrices.values())
    assert results["density"]["encoder"] == sum(kept.values()) / total
    teacher = load_file(Path(tiny_options["teacher"]) / "model.safetensors")
    everything = sum(tensor.numel() for tensor in teacher.values())
    assert results["parameters"]["before"] == everything
    nonzero = sum(int(torch.count_nonzero(tensor)) for tensor in weights(tiny_options["output_dir"]).values())
    assert results["parameters"]["after"] == nonzero
    assert results["density"]["total"] == nonzero / everything


@pytest.mark.parametrize("method", ["soft_movement", "l0"])
@pytest.mark.parametrize(
    ("changes", "steered"),
    [({"density": 0.1}, (3, 11)), ({"density": 0.5, "freeze_masks": 0.0}, (3, 13)), ({"score_init": "zero"}, (3, 11))],
)
def test_a_penalty_ends_at_the_density_over_all_matrices(tiny_options, method, changes, steered):
    results = contraprune.prune(**tiny_options, method=method, **changes)
    matrices = pruned_matrices(tiny_options["output_dir"])
    kept = sum(int(torch.count_nonzero(matrix)) for matrix in matrices.values())
    total = sum(matrix.numel() for matrix in matrices.values())
    assert kept == int(changes.get("density", 0.1) * total)
    assert results["density"]["encoder"] == kept / total
    log = [json.loads(line) for line in (Path(tiny_options["output_dir"]) / "log.jsonl").read_text().splitlines()]
    entries = [entry for entry in log if "loss" in entry]
    assert [entry["density"] for entry in entries][-1] == kept / total
    assert [entry["step"] for entry in entries if "penalty" in entry] == list(range(*steered))
    for entry in entries:
        parts = {name.removeprefix("loss_"): value for name, value in entry.items() if name.startswith("loss_")}
        weights = {"ce": 0.1, "kd": 0.9}
        weights |= {name: 0.1 if "unsupervised" in name else 0.005 for name in parts if "supervised" in name}
        assert entry["loss"] == pytest.approx(sum(weights[name] * value for name, value in parts.items()), rel=1e-4)


def test_a_penalty_of_fixed_weight_ends_where_it_ends(tiny_options):
    options = {"method": "soft_movement", "final_threshold": 0.5, "score_learning_rate": 0.1}
    densities = []
    for final_penalty in (1.0, 1e5):
        results = contraprune.prune(**tiny_options, **options, final_penalty=final_penalty, overwrite=True)
        assert results["density"]["target"] is None
        matrices = pruned_matrices(tiny_options["output_dir"])
        kept = sum(int(torch.count_nonzero(matrix)) for matrix in matrices.values())
        assert results["density"]["encoder"] == kept / sum(matrix.numel() for matrix in matrices.values())
        densities.append(results["density"]["encoder"])
    assert densities[1] < 0.5 * densities[0] < 0.5


@pytest.mark.parametrize("method", sorted(CRITERIA))
def test_patterns_hold_in_the_saved_model(tiny_options, tmp_path, method):
    for number, (settings, density) in enumerate(
        [({"pattern": "2:4"}, 0.5), ({"pattern": "2:4", "density": 0.1}, 0.1), ({"block": "4x1", "density": 0.2}, 0.2)]
    ):
        options = tiny_options | {"output_dir": str(tmp_path / f"run{number}"), "num_train_epochs": 2}
        contraprune.prune(**options, method=method, **settings)
        units = []  # of each matrix: which weights, or blocks, are there
        for matrix in pruned_matrices(options["output_dir"]).values():
            kept = matrix != 0
            if "pattern" in settings:
                assert kept.view(-1, 4).sum(1).max() <= 2
                units.append(kept.flatten())
            else:
                blocks = kept.view(kept.shape[0] // 4, 4, -1)
                assert torch.equal(blocks.any(1), blocks.all(1))
                units.append(blocks.any(1).flatten())
        for unit in [torch.cat(units)] if issubclass(CRITERIA[method], Penalised) else units:
            assert int(unit.sum()) == int(density * unit.numel())


def test_static_pruning_leaves_the_teachers_weights_as_they_were(tiny_options):
    contraprune.prune(**tiny_options, method="smp")
    teacher = load_file(Path(tiny_options["teacher"]) / "model.safetensors")
    found = weights(tiny_options["output_dir"])
    changed = set()
    for name, tensor in found.items():
        kept = tensor != 0
        if not torch.equal(tensor[kept], teacher[name][kept]):
            changed.add(name)
    assert changed == {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}


def test_global_scope_keeps_the_density_over_all_matrices_but_not_of_each(tiny_options):
    contraprune.prune(**tiny_options, scope="global", method="magnitude", density=0.2)
    matrices = pruned_matrices(tiny_options["output_dir"])
    kept = [int(torch.count_nonzero(matrix)) for matrix in matrices.values()]
    assert sum(kept) == int(0.2 * sum(matrix.numel() for matrix in matrices.values()))
    assert len({count / matrix.numel() for count, matrix in zip(kept, matrices.values(), strict=True)}) > 1


def test_result_files_say_what_happened(tiny_options):
    results = contraprune.prune(**tiny_options, unsupervised_weight=0.3, supervised_weight=0.02)
    run = Path(tiny_options["output_dir"])
    assert json.loads((run / "results.json").read_text()) == results
    left = [
        "README.md", "SHA256SUMS", "config.yaml", "log.jsonl", "model", "report.html", "representations.json",
        "results.json",
    ]  # fmt: skip
    assert sorted(path.name for path in run.iterdir()) == left
    assert results["metrics"].keys() == results["teacher_metrics"].keys() == {"accuracy"}
    assert results["retained"] == results["metrics"]["accuracy"] / results["teacher_metrics"]["accuracy"]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [entry for entry in log if "loss" in entry]
    assert [entry["step"] for entry in losses] == list(range(1, 13))
    sources = ("pretrained", "snapshots", "finetuned")
    of_terms = {"unsupervised": 0.3, "supervised": 0.02}
    weight = {"ce": 0.1, "kd": 0.9} | {f"{s}_{kind}": value for s in sources for kind, value in of_terms.items()}
    for entry in losses:
        parts = {name: entry[f"loss_{name}"] for name in weight if f"loss_{name}" in entry}
        with_snapshots = entry["step"] > 4
        assert set(weight) - set(parts) == (set() if with_snapshots else {n for n in weight if "snapshots" in n})
        assert entry["loss"] == pytest.approx(sum(weight[name] * value for name, value in parts.items()), rel=1e-4)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["density"] == 0.1
    assert config["run"]["command"] == "prune"
    assert not any("token" in key for key in config)


def test_without_contrast_there_is_no_contrastive_loss(tiny_options):
    contraprune.prune(**tiny_options, contrast="none")
    log = (Path(tiny_options["output_dir"]) / "log.jsonl").read_text()
    assert "loss_kd" in log
    assert "supervised" not in log


_STOCK = """
import sys, json, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
batch = AutoTokenizer.from_pretrained(sys.argv[1])(json.loads(sys.argv[2]), padding=True, return_tensors="pt")
with torch.no_grad():
    print(json.dumps(model(**batch).logits.tolist()))
assert "contraprune" not in sys.modules
"""


def test_the_result_loads_in_a_process_without_contraprune_and_predicts_the_same(tiny_options):
    contraprune.prune(**tiny_options)
    path = str(Path(tiny_options["output_dir"]) / "model")
    texts = ["The soup was bad, but the service was good.", "Nobody claims that the film is dull."]
    batch = AutoTokenizer.from_pretrained(path)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = contraprune.load(tiny_options["output_dir"])(**batch).logits
    command = [sys.executable, "-c", _STOCK, path, json.dumps(texts)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-6)


def test_the_metrics_are_those_of_stock_transformers_on_the_saved_model(tiny_options):
    results = contraprune.prune(**tiny_options)
    path = Path(tiny_options["output_dir"]) / "model"
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    rows = list(toy.load(0)["validation"].values)[:48]
    right = 0
    for row in rows:
        with torch.no_grad():
            batch = tokenizer(row["text"], truncation=True, max_length=24, return_tensors="pt")
            predicted = model.config.id2label[int(model(**batch).logits.argmax())]
        right += predicted == row["label"]
    assert results["metrics"]["accuracy"] == right / 48


def test_a_teacher_whose_labels_are_ordered_otherwise_gives_the_same_run(tiny_options, tiny, tmp_path):
    tiny_options |= {"method": "magnitude"}  # saliency draws labels, in the model's order
    expected = contraprune.prune(**tiny_options)
    teacher = BertForSequenceClassification.from_pretrained(tiny / "teacher")
    with torch.no_grad():
        for parameter in (teacher.classifier.weight, teacher.classifier.bias):
            parameter.copy_(parameter.flip(0))
    teacher.config.id2label, teacher.config.label2id = {0: "Positive", 1: "Negative"}, {"Positive": 0, "Negative": 1}
    teacher.save_pretrained(tmp_path / "turned")
    AutoTokenizer.from_pretrained(tiny / "teacher").save_pretrained(tmp_path / "turned")
    turned = tiny_options | {"teacher": str(tmp_path / "turned"), "output_dir": str(tmp_path / "turned_run")}
    found = contraprune.prune(**turned)
    assert found["teacher_metrics"] == expected["teacher_metrics"]
    assert found["metrics"] == expected["metrics"]
    model = contraprune.load(tmp_path / "turned_run")
    assert model.config.id2label == {0: "Positive", 1: "Negative"}


def test_fixed_models_are_encoded_once_and_the_run_is_reproducible(tiny_options, tmp_path):
    contraprune.prune(**tiny_options)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.rows")}
    assert sorted(path.stem for path in files) == ["outputs"] + ["representations"] * 2
    contraprune.prune(**(tiny_options | {"output_dir": str(tmp_path / "again")}))
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.rows")}
    first, second = weights(tiny_options["output_dir"]), weights(tmp_path / "again")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_other_seeds_are_answered_from_the_same_cache(tiny_options, tmp_path):
    """The head of the pre-trained model is new with every seed; what it encodes does not depend on it."""
    toy.write(tmp_path / "data", seed=0)  # generated rows would differ with the seed
    options = tiny_options | {"data_dir": str(tmp_path / "data"), "num_train_epochs": 1}
    contraprune.prune(**options, seed=1)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.rows")}
    assert len(files) == 3
    contraprune.prune(**(options | {"output_dir": str(tmp_path / "again")}), seed=2)
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.rows")}


def test_only_one_run_at_a_time_writes_to_the_cache(tiny_options, tmp_path, monkeypatch):
    locked = []

    class Lock(FileLock):
        def __enter__(self):
            locked.append(Path(self.lock_file).stem)
            return super().__enter__()

        def __exit__(self, *error):
            locked.append(None)
            super().__exit__(*error)

    written = []
    create = RowFile.create.__func__

    def recorded(cls, path, spec, **options):
        written.append((path.parent.name, locked[-1] if locked else None))
        return create(cls, path, spec, **options)

    monkeypatch.setattr(sources, "FileLock", Lock)
    monkeypatch.setattr(RowFile, "create", classmethod(recorded))
    contraprune.prune(**tiny_options)
    cached = [(key, lock) for key, lock in written if not key.startswith("snapshot")]
    assert len(cached) == 3
    assert all(key == lock for key, lock in cached)


@pytest.mark.parametrize("stop_at", [3, 5, 11])  # before the first snapshot, after the first epoch, with frozen masks
@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    tiny_options, tmp_path, monkeypatch, stop_at, accumulation
):
    options = tiny_options | {
        "save_strategy": "steps",
        "save_steps": 1,
        "per_device_train_batch_size": 16 // accumulation,
        "gradient_accumulation_steps": accumulation,
    }
    contraprune.prune(**(options | {"output_dir": str(tmp_path / "whole")}))
    interrupt_at(stop_at, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        contraprune.prune(**options)
    monkeypatch.undo()
    contraprune.prune(**options)
    expected, found = weights(tmp_path / "whole"), weights(options["output_dir"])
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    logs = [(folder / "log.jsonl").read_text().splitlines() for folder in (tmp_path / "whole", tmp_path / "run")]
    losses = [[json.loads(line).get("loss") for line in log if "grad_norm" in line] for log in logs]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("stop_at", [5, 11])  # while the masks change, and when they are frozen
@pytest.mark.parametrize("method", ["fisher", "smp", "soft_movement", "l0"])
def test_every_criterion_resumes_to_the_same_weights(tiny_options, tmp_path, monkeypatch, method, stop_at):
    options = tiny_options | {"method": method, "save_strategy": "steps", "save_steps": 1, "density": 0.3}
    contraprune.prune(**(options | {"output_dir": str(tmp_path / "whole")}))
    with monkeypatch.context() as patched:
        interrupt_at(stop_at, patched)
        with pytest.raises(KeyboardInterrupt):
            contraprune.prune(**options)
    contraprune.prune(**options)
    expected, found = weights(tmp_path / "whole"), weights(options["output_dir"])
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    logs = [(folder / "log.jsonl").read_text().splitlines() for folder in (tmp_path / "whole", tmp_path / "run")]
    losses = [[json.loads(line).get("loss") for line in log if "grad_norm" in line] for log in logs]
    assert losses[0] == losses[1]


def interrupt_at(step, patched):
    step_end = GradualPruning.on_step_end

    def interrupted(self, args, state, control, **kwargs):
        step_end(self, args, state, control, **kwargs)
        if state.global_step == step:
            raise KeyboardInterrupt

    patched.setattr(GradualPruning, "on_step_end", interrupted)


def test_a_finished_run_is_not_repeated_and_a_different_one_is_refused(tiny_options):
    results = contraprune.prune(**tiny_options)
    model = Path(tiny_options["output_dir"]) / "model" / "model.safetensors"
    written = model.stat().st_mtime_ns
    assert contraprune.prune(**tiny_options) == results
    assert model.stat().st_mtime_ns == written
    with pytest.raises(UserError, match=r"holds a run with other settings \(density was 0\.1, now 0\.2\)"):
        contraprune.prune(**tiny_options, density=0.2)
    assert model.stat().st_mtime_ns == written
    changed = contraprune.prune(**tiny_options, density=0.2, overwrite=True)
    assert changed["density"]["target"] == 0.2


def test_frozen_embeddings_stay_the_teachers(tiny_options):
    name = "bert.embeddings.word_embeddings.weight"
    teacher = load_file(Path(tiny_options["teacher"]) / "model.safetensors")[name]
    contraprune.prune(**tiny_options, freeze_embeddings=True)
    assert torch.equal(weights(tiny_options["output_dir"])[name], teacher)
    contraprune.prune(**tiny_options, overwrite=True)
    assert not torch.equal(weights(tiny_options["output_dir"])[name], teacher)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"method": "magnitude", "score_init": "zero"},
            "--score_init zero: only with --method movement, soft_movement",
        ),
        (
            {"method": "movement", "final_threshold": 0.2},
            "--final_threshold 0.2: only with --method soft_movement, not",
        ),
        ({"method": "l0", "final_threshold": 0.2}, "--final_threshold 0.2: only with --method soft_movement, not"),
        (
            {"method": "movement", "final_penalty": 9.0},
            "--final_penalty 9.0: only with --method soft_movement, l0, not",
        ),
        ({"method": "soft_movement", "scope": "global"}, "--scope global: only with --method movement"),
        ({"method": "taylor", "pattern": "2:4"}, "--pattern 2:4: only for pruning single weights"),
        ({"method": "taylor", "prune_warmup": 0.2}, "--prune_warmup 0.2: only for pruning single weights"),
        ({"method": "taylor", "final_penalty": 9.0}, "--final_penalty 9.0: only for pruning single weights"),
        ({"method": "movement", "fisher_decay": 0.5}, "--fisher_decay 0.5: only with --method fisher, not"),
        ({"method": "smp", "freeze_embeddings": True}, "--freeze_embeddings True: --method smp trains no embeddings"),
        ({"pattern": "2:4", "density": 0.6}, "--density: expected at most 0.5 with --pattern 2:4, found 0.6"),
        ({"pattern": "4:2"}, "--pattern: expected N:M with 0 < N < M, such as 2:4, found 4:2"),
        ({"block": "4"}, "--block: expected RxC, rows x columns of two weights or more, such as 4x1, found 4"),
        ({"block": "4x1", "pattern": "2:4"}, "--block: expected only one of --pattern and --block, found 4x1"),
        ({"block": "3x1"}, "--block 3x1: bert.encoder.layer.0.attention.self.query of 32 x 32 weights does not divide"),
        ({"method": "l0", "final_penalty": 9.0, "density": 0.1}, "--final_penalty: expected only without --density"),
        ({"method": "moovement"}, r"--method: expected one of .* \(did you mean movement\?\)"),
    ],
)
def test_settings_without_effect_or_sense_are_refused(tiny_options, settings, message):
    with pytest.raises(UserError, match=message):
        contraprune.prune(**tiny_options, **settings)


def test_a_foreign_directory_is_left_alone(tiny_options, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="not empty, and not a run of contraprune"):
            contraprune.prune(**tiny_options, overwrite=overwrite)
    assert (tmp_path / "run" / "thesis.tex").read_text() == "mine"


def test_a_diverging_run_stops_and_says_so(tiny_options, monkeypatch):
    monkeypatch.setattr(MaskedTrainer, "task_loss", lambda self, outputs, inputs: outputs.sum() * float("nan"))
    with pytest.raises(UserError, match=r"diverged in step 1 of 12: the loss is nan \(ce nan, kd \d"):
        contraprune.prune(**tiny_options)
    assert not (Path(tiny_options["output_dir"]) / "model").exists()


def test_other_tokenizers_and_other_sizes_are_refused(tiny_options, minilm):
    with pytest.raises(UserError, match="expected a model fine-tuned from"):
        contraprune.prune(**(tiny_options | {"model": minilm}))


def test_finetuning_keeps_label_names_and_learns_its_training_data(tiny_options, tiny, tmp_path):
    options = {key: tiny_options[key] for key in ("task", "max_length", "disable_tqdm", "use_cpu", "output_dir")}
    options |= {"max_train_samples": 8, "max_eval_samples": 8, "num_train_epochs": 40, "learning_rate": 4e-3}
    options["logging_steps"] = 1
    results = contraprune.finetune(model=str(tiny / "pretrained"), **options)
    model = contraprune.load(tmp_path / "run")
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert results["method"] == "finetune"
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry for entry in log if "loss" in entry][-1]["loss"] < 0.2
