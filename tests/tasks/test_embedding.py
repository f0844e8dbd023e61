"""Sentence embeddings: texts, scores, whole runs, and the result in the sentence-transformers package."""

import json
import math
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from scipy.stats import pearsonr, spearmanr
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

import contraprune
from contraprune import UserError
from contraprune.callbacks import GradualPruning
from contraprune.cli import main
from contraprune.config import DataConfig, EvaluationConfig
from contraprune.evaluation import evaluate_path
from contraprune.gates import attach_gates
from contraprune.inspection import summarise
from contraprune.pooling import Pooling
from contraprune.prediction import predict
from contraprune.structured import StageRunner
from contraprune.tasks import toy
from tasks.test_classification import failure, load
from tasks.test_files import write
from tasks.test_sentences import NORMALIZE, POOLING, TRANSFORMER, directory

PAIRS = [
    {"sentence1": "a", "sentence2": "b", "score": 4},
    {"sentence1": "b", "sentence2": "B", "score": 0.5},
    {"sentence1": "c", "sentence2": "a", "score": 2.25},
]


def texts_of(task):
    return list(task.train["text"])


# ---- texts and pairs ----


def own(tmp_path, train, validation=PAIRS, **flags):
    files = {
        "train_file": write(tmp_path / "t.jsonl", train),
        "validation_file": write(tmp_path / "v.jsonl", validation),
    }
    return load(task_type="embedding", **files, **flags)


def test_pairs_lend_both_texts_and_a_text_is_trained_on_once(tmp_path):
    task = own(tmp_path, PAIRS)
    assert texts_of(task) == ["a", "b", "B", "c"]
    assert list(task.train["idx"]) == [0, 1, 2, 3]
    assert task.evaluation["validation"].to_list() == [
        {"text1": "a", "text2": "b", "label": 4.0, "idx": 0},
        {"text1": "b", "text2": "B", "label": 0.5, "idx": 1},
        {"text1": "c", "text2": "a", "label": 2.25, "idx": 2},
    ]
    assert (task.main_metric, task.label_names, task.objective.targets) == ("spearman", (), ())


def test_training_texts_need_no_label_and_may_stand_in_another_column(tmp_path):
    single = [{"text": "x"}, {"text": "y"}, {"text": "x"}]
    assert texts_of(own(tmp_path, single)) == ["x", "y"]
    assert texts_of(own(tmp_path, [{"body": "x", "text": "no"}], text_columns=["body"])) == ["x"]
    renamed = [{"s": row["sentence1"], "t": row["sentence2"], "how": row["score"]} for row in PAIRS]
    for columns in (["s", "t"], ["s,t"]):
        task = own(tmp_path, single, renamed, text_columns=columns, label_column="how")
        assert texts_of(task) == ["x", "y"]
        assert task.evaluation["validation"]["label"][2] == 2.25


def test_a_named_task_with_a_similarity(data):
    task = load(task="stsb", task_type="embedding", data_dir=str(data / "glue" / "stsb"))
    rows = [json.loads(line) for line in (data / "glue" / "stsb" / "train.jsonl").read_text().splitlines()]
    assert set(texts_of(task)) == {row[column] for row in rows for column in ("sentence1", "sentence2")}
    assert len(texts_of(task)) == len(set(texts_of(task)))
    assert len(task.evaluation["validation"]) == 1500
    plain = load(task="stsb", data_dir=str(data / "glue" / "stsb"))
    assert plain.fingerprint != task.fingerprint


def test_a_named_task_needs_similarities_only_of_the_pairs_that_are_scored(tmp_path):
    rows = [{"sentence1": "a", "sentence2": "b", "label": -1.0}]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "validation.jsonl", [{**rows[0], "label": 3.0}])
    assert texts_of(load(task="stsb", task_type="embedding", data_dir=tmp_path)) == ["a", "b"]
    file = write(tmp_path / "validation.jsonl", rows)
    expected = "expected a number from 0 to 5, found -1, which marks unlabelled rows such as GLUE's test splits"
    message = failure(task="stsb", task_type="embedding", data_dir=tmp_path)
    assert message == f"{file}, line 1: column 'label': {expected}"


ONE_FILE = ({"text": "x"},)


@pytest.mark.parametrize(
    ("validation", "flags", "message"),
    [
        ([{"text": "x", "score": 1}], {}, "expected pairs of texts to score embeddings with, found one column 'text'"),
        ([{"sentence1": "x", "sentence2": "y"}], {}, "expected a column 'label', found columns"),
        ([{"sentence1": "x", "sentence2": "y", "label": "yes"}], {}, "column 'label': expected a number, found 'yes'"),
        (PAIRS, {"text_columns": ["body"]}, "expected a column 'body', found columns 'text'"),
        (PAIRS, {"text_columns": ["sentence1", "sentence3"]}, "expected a column 'sentence3', found columns"),
        ([{"text": "x", "text2": "y", "score": 1}], {"text_columns": ["text"]}, "found one column 'text'"),
    ],
)
def test_pairs_that_cannot_be_scored(tmp_path, validation, flags, message):
    files = {
        "train_file": write(tmp_path / "t.jsonl", list(ONE_FILE)),
        "validation_file": write(tmp_path / "v.jsonl", validation),
    }
    assert message in failure(task_type="embedding", **files, **flags)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "sst2"}, "--task_type embedding: expected a --task of pairs with a similarity (stsb), found sst2"),
        ({"task": "qqp"}, "--task_type embedding: expected a --task of pairs with a similarity (stsb), found qqp"),
        ({"task": "toy"}, "--task_type embedding: expected a --task of pairs with a similarity (stsb), found toy"),
        ({"task": "stsb", "task_type": "regression"}, "--task_type: expected without --task, found with --task stsb"),
        ({"task": "stsb", "label_column": "x"}, "--label_column: expected without --task, found with --task stsb"),
    ],
)
def test_named_tasks_that_cannot_be_used(changes, message):
    assert failure(**({"task_type": "embedding"} | changes)).startswith(message)


# ---- scores ----


@pytest.fixture
def task(tmp_path):
    return own(tmp_path, PAIRS, [{"sentence1": a, "sentence2": b, "score": s} for a, b, s in SCORED])


SCORED = [("a", "b", 5), ("b", "c", 3), ("c", "d", 0), ("d", "a", 4), ("a", "a", 1)]


def test_scores_are_correlations_of_the_cosine_of_both_texts(task):
    rows = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32) * 3
    vectors = dict(zip("abcd", rows, strict=True))
    cosines = [
        sum(x * y for x, y in zip(vectors[a], vectors[b], strict=True))
        / (sum(x * x for x in vectors[a]) * sum(y * y for y in vectors[b])) ** 0.5
        for a, b, _ in SCORED
    ]
    scores = task.metrics(list(rows), Dataset.from_dict({}), task.evaluation["validation"])
    expected = [score for *_, score in SCORED]
    assert scores["spearman"] == pytest.approx(spearmanr(cosines, expected).statistic, abs=1e-6)
    assert scores["pearson"] == pytest.approx(pearsonr(cosines, expected).statistic, abs=1e-6)


def test_vectors_that_are_all_the_same_or_zero_score_nothing(task):
    for rows in (np.ones((4, 3)), np.zeros((4, 3))):
        scores = task.metrics(list(rows), Dataset.from_dict({}), task.evaluation["validation"])
        assert scores == {"pearson": 0.0, "spearman": 0.0}


def test_each_text_is_encoded_once(task, tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny / "pretrained")
    encoded = task.encode(task.evaluation["validation"], tokenizer, max_length=16)
    assert [tokenizer.decode(ids, skip_special_tokens=True) for ids in encoded["input_ids"]] == ["a", "b", "c", "d"]
    assert list(encoded["idx"]) == [0, 1, 2, 3]
    assert list(encoded["length"]) == [3, 3, 3, 3]


def test_real_scores_are_those_of_sentence_transformers(data, minilm):
    rows = [json.loads(line) for line in (data / "glue" / "stsb" / "validation.jsonl").read_text().splitlines()[:64]]
    encoder = SentenceTransformer(minilm, device="cpu")
    first, second = (encoder.encode([row[name] for row in rows]) for name in ("sentence1", "sentence2"))
    expected = spearmanr((first * second).sum(axis=1), [row["label"] for row in rows]).statistic
    assert evaluate(minilm, data / "glue" / "stsb", 64)["spearman"] == pytest.approx(expected, abs=1e-6)


def evaluate(model, folder, rows):
    settings = DataConfig(task="stsb", task_type="embedding", data_dir=str(folder), max_eval_samples=rows)
    return evaluate_path(str(model), settings, EvaluationConfig(quiet=True)).metrics


# ---- whole runs ----

METHODS = {
    "movement": {"density": 0.3},
    "magnitude": {"density": 0.3},
    "smp": {"density": 0.3},
    "taylor": {"density": 0.5, "num_stages": 2, "importance_examples": 32},
}


@pytest.fixture
def pairs(tmp_path):
    """A folder with files of 24 training and 16 scored pairs."""
    texts = [row["text"] for row in toy.generate(80, 1)]
    scores = np.random.default_rng(0).integers(0, 6, 40).tolist()
    rows = [
        {"sentence1": a, "sentence2": b, "label": score}
        for a, b, score in zip(texts[:40], texts[40:], scores, strict=True)
    ]
    folder = tmp_path / "pairs"
    folder.mkdir()
    write(folder / "train.jsonl", rows[:24])
    write(folder / "validation.jsonl", rows[24:])
    return folder


@pytest.fixture
def encoder_options(tiny, pairs, tmp_path):
    """Options of a run of nine steps that prunes the bare encoder with its own embeddings as teacher."""
    return {
        "model": str(tiny / "pretrained"),
        "teacher": str(tiny / "pretrained"),
        "task": "stsb",
        "task_type": "embedding",
        "data_dir": str(pairs),
        "max_length": 24,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 16,
        "extra_examples": 16,
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "cache_dir": str(tmp_path / "cache"),
        "output_dir": str(tmp_path / "run"),
    }


def weights(run):
    return load_file(Path(run) / "model" / "model.safetensors")


def our_embeddings(path, texts):
    """Unit vectors of the texts, by what evaluation does."""
    rows = [{"sentence1": text, "sentence2": texts[0], "score": 0} for text in texts]
    pairs = write(Path(path).parent / "texts.jsonl", rows)
    model, tokenizer = contraprune.load(path), AutoTokenizer.from_pretrained(path)
    task = load(task_type="embedding", validation_file=pairs, need_train=False).for_model(model.config, str(path))
    encoded = task.encode(task.evaluation["validation"], tokenizer, max_length=128)
    vectors, _ = predict(model, task, encoded, task.collator(tokenizer), batch_size=4, progress=False)
    return normalize(torch.from_numpy(np.stack(vectors)), dim=-1).numpy()


TEXTS = ["The soup was bad, but the service was good.", "Nobody claims that the film is dull.", "Fine."]


@pytest.mark.parametrize("method", METHODS)
def test_a_pruned_encoder_is_as_it_was_for_sentence_transformers(encoder_options, pairs, tiny, method):
    results = contraprune.prune(**encoder_options, method=method, **METHODS[method])
    model = Path(encoder_options["output_dir"]) / "model"
    assert results["density"]["encoder"] == pytest.approx(METHODS[method]["density"], abs=0.01)
    assert results["teacher_metrics"] == evaluate(tiny / "pretrained", pairs, None)
    assert results["metrics"] == evaluate(model, pairs, None)
    assert next(iter(results["metrics"])) == "spearman"
    assert results["metrics"] != results["teacher_metrics"]
    encoder = SentenceTransformer(str(model), device="cpu", trust_remote_code=method == "taylor")
    ours = our_embeddings(model, TEXTS)
    np.testing.assert_allclose(encoder.encode(TEXTS), ours, atol=1e-5)
    before = SentenceTransformer(str(tiny / "pretrained"), device="cpu").encode(TEXTS, normalize_embeddings=True)
    assert np.abs(before - ours).max() > 1e-2
    layers = summarise(contraprune.load(encoder_options["output_dir"])).layers
    assert sum(layer.density for layer in layers) == pytest.approx(2 * (1 if method == "taylor" else 0.3), abs=0.01)
    if method != "taylor":
        stock = AutoModel.from_pretrained(model).state_dict()
        assert all(torch.equal(stock[name], tensor) for name, tensor in weights(model.parent).items())
    if method == "smp":  # only masks learn
        untouched = AutoModel.from_pretrained(tiny / "pretrained").state_dict()
        for name, tensor in weights(model.parent).items():
            assert name.startswith("pooler.") or torch.equal(tensor, untouched[name] * (tensor != 0)), name


def test_the_loss_is_the_teachers_vectors_and_each_source_once(encoder_options, caplog):
    results = contraprune.prune(**encoder_options, unsupervised_weight=0.3, kd_weight=0.7)
    assert "--model and --teacher are the same model: contrasting with snapshots,finetuned" in caplog.text
    assert "supervised contrast is off" not in caplog.text
    assert results["contrast"] == ["snapshots", "finetuned"]
    log = (Path(encoder_options["output_dir"]) / "log.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in log]
    losses = [entry for entry in entries if "loss" in entry]
    assert len(losses) == 9
    weight = {"kd": 0.7, "finetuned_unsupervised": 0.3, "snapshots_unsupervised": 0.3}
    for entry in losses:
        parts = {name.removeprefix("loss_"): value for name, value in entry.items() if name.startswith("loss_")}
        assert set(weight) - set(parts) == (set() if entry["step"] > 3 else {"snapshots_unsupervised"})
        assert entry["loss"] == pytest.approx(sum(weight[name] * value for name, value in parts.items()), rel=1e-4)
    assert not any("eval_loss" in entry for entry in entries)
    assert any("eval_spearman" in entry for entry in entries)


def test_another_pretrained_model_is_a_source_of_its_own(encoder_options, tiny, tmp_path, caplog):
    model = AutoModel.from_pretrained(tiny / "pretrained")
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight.mul_(0.5)
    model.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny / "pretrained").save_pretrained(tmp_path / "other")
    results = contraprune.prune(**(encoder_options | {"model": str(tmp_path / "other"), "num_train_epochs": 1}))
    assert results["contrast"] == ["pretrained", "snapshots", "finetuned"]
    assert "same model" not in caplog.text
    assert "loss_pretrained_unsupervised" in (tmp_path / "run" / "log.jsonl").read_text()


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(encoder_options, tmp_path, monkeypatch):
    options = encoder_options | {"save_strategy": "steps", "save_steps": 1}
    contraprune.prune(**(options | {"output_dir": str(tmp_path / "whole")}))
    step_end = GradualPruning.on_step_end

    def interrupted(self, args, state, control, **kwargs):
        step_end(self, args, state, control, **kwargs)
        if state.global_step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(GradualPruning, "on_step_end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        contraprune.prune(**options)
    monkeypatch.undo()
    contraprune.prune(**options)
    expected, found = weights(tmp_path / "whole"), weights(options["output_dir"])
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture
def encoder(tiny, tmp_path):
    """Makes a sentence-transformers directory of the tiny encoder."""

    def make(settings, *, modules=(TRANSFORMER, POOLING), **files):
        path = tmp_path / "encoder"
        shutil.copytree(tiny / "pretrained", path)
        pooling = {"word_embedding_dimension": 32, **settings}
        return directory(path, {"modules.json": list(modules), "1_Pooling/config.json": pooling, **files})

    return make


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_every_pooling_is_that_of_sentence_transformers(encoder, pooling):
    path = encoder({"pooling_mode": pooling})
    expected = SentenceTransformer(path, device="cpu").encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(our_embeddings(path, TEXTS), expected, atol=1e-5)


def test_pooling_prompt_and_case_outlast_the_pruning(encoder_options, encoder, tmp_path):
    settings = {"prompts": {"it": "It Is Said: "}, "default_prompt_name": "it", "similarity_fn_name": "dot"}
    path = encoder(
        {"pooling_mode_cls_token": True},
        **{"config_sentence_transformers.json": settings, "sentence_bert_config.json": {"do_lower_case": True}},
    )
    contraprune.prune(**(encoder_options | {"model": path, "teacher": path}), method="magnitude", density=0.3)
    model = tmp_path / "run" / "model"
    found = SentenceTransformer(str(model), device="cpu")
    assert (found.similarity_fn_name, len(found), found[1].pooling_mode) == ("dot", 2, "cls")
    vectors = found.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(our_embeddings(model, TEXTS), vectors, atol=1e-5)
    assert np.abs(found.encode(TEXTS, normalize_embeddings=True, prompt="") - vectors).max() > 1e-3
    norms = np.linalg.norm(found.encode(TEXTS), axis=1)
    assert np.abs(norms - 1).max() > 0.1  # no Normalize before, none now


# ---- rating heads and neurons ----


def test_a_model_that_equals_its_teacher_still_tells_its_units_apart(encoder_options, monkeypatch):
    """Its distillation has no gradient; units are rated by the curvature of it, here by finite differences."""
    found = []
    rate = StageRunner.rate_units

    def compared(self, stage, trainer, layers):
        importance = rate(self, stage, trainer, layers)
        units = torch.cat([*importance.heads, *importance.neurons])
        found.append((units, _slopes(self.prepared.model, trainer, layers)))
        return importance

    monkeypatch.setattr(StageRunner, "rate_units", compared)
    options = {"contrast": "none", "method": "taylor", "density": 0.5, "num_stages": 1, "num_train_epochs": 1}
    options |= {"normalize_importance": False, "per_device_train_batch_size": 1, "kd_weight": 0.5}
    contraprune.prune(**(encoder_options | options))
    rated, slopes = found[0]
    per_text = rated / (48 * 0.5 * math.sqrt(2 / math.pi))  # the mean |x| of a normal x, 48 texts, kd_weight
    assert spearmanr(per_text, slopes).statistic > 0.9
    assert (per_text / slopes).median().item() == pytest.approx(1, abs=0.2)


def _slopes(model, trainer, layers):
    """How far the unit vectors turn per change of each gate, from one minus their cosine, x²/2 for a small angle x."""
    rows = trainer.train_dataset.remove_columns(["length", "idx"])
    batch = trainer.data_collator([rows[index] for index in range(len(rows))])

    def vectors():
        return trainer.task.outputs(model(**batch), batch).double()

    slopes = []
    with torch.no_grad(), attach_gates(model.eval(), layers) as gates:
        whole = vectors()
        for gate in [*gates.heads, *gates.neurons]:
            for unit in range(len(gate)):
                gate.data[unit] = 0.8
                cosine = torch.cosine_similarity(whole, vectors(), dim=-1).mean()
                slopes.append(math.sqrt(2 * max(0, 1 - cosine)) / 0.2)
                gate.data[unit] = 1
    return torch.tensor(slopes)


# ---- refusals ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ce_weight": 0.5}, "--ce_weight 0.5: without effect on stsb, which has no labels"),
        ({"supervised_weight": 0.1}, "--supervised_weight 0.1: without effect on stsb"),
        ({"supervised_bins": 3}, "--supervised_bins 3: without effect on stsb"),
        ({"kd_temperature": 1.0}, "--kd_temperature 1.0: without effect on stsb"),
        ({"pooling": "cls"}, "--pooling cls: without effect on embeddings: the model says how it pools"),
        ({"label_smoothing_factor": 0.1}, "--label_smoothing_factor 0.1: only for tasks with classes, not for stsb"),
    ],
)
def test_settings_without_effect_are_refused_and_nothing_is_written(encoder_options, changes, message):
    with pytest.raises(UserError) as caught:
        contraprune.prune(**encoder_options, **changes)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not Path(encoder_options["output_dir"]).exists()


def test_there_is_nothing_to_finetune(encoder_options, tmp_path):
    taken = ("model", "task", "task_type", "data_dir", "max_length", "disable_tqdm", "use_cpu", "output_dir")
    with pytest.raises(UserError, match=r"^--task_type embedding: there is nothing to fine-tune on"):
        contraprune.finetune(**{name: encoder_options[name] for name in taken})
    assert not (tmp_path / "run").exists()


def test_the_commands(tiny, pairs, capsys):
    flags = ["--task", "stsb", "--task_type", "embedding", "--data_dir", str(pairs)]
    assert main(["evaluate", str(tiny / "pretrained"), *flags, "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == evaluate(tiny / "pretrained", pairs, None)
    assert main(["inspect", str(tiny / "pretrained")]) == 0
    assert "BertModel" in capsys.readouterr().out


def test_encoders_with_more_than_pooling_are_refused(encoder_options, encoder):
    dense = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    path = encoder({}, modules=(TRANSFORMER, POOLING, dense, NORMALIZE))
    with pytest.raises(UserError, match="other modules cannot be pruned with it; found Transformer, Pooling, Dense"):
        contraprune.prune(**(encoder_options | {"model": path, "teacher": path}))


def test_a_pretrained_model_without_encoder_weights_is_refused(encoder_options, tiny, tmp_path):
    """Of a bare encoder every weight is the encoder's; only the pooler may be new."""
    tensors = load_file(tiny / "pretrained" / "model.safetensors")
    for gone, message in (("pooler.", None), ("encoder.layer.1.attention.", "its weights lack 10 parameters")):
        path = tmp_path / gone.partition(".")[0]
        shutil.copytree(tiny / "pretrained", path)
        left = {name: tensor for name, tensor in tensors.items() if not name.startswith(gone)}
        save_file(left, path / "model.safetensors", metadata={"format": "pt"})
        options = encoder_options | {"model": str(path), "num_train_epochs": 1, "overwrite": True}
        if message is None:
            assert "pretrained" in contraprune.prune(**options)["contrast"]
        else:
            with pytest.raises(UserError, match=message):
                contraprune.prune(**options)
