"""Whole runs of a tiny model of each kind of architecture, from its configuration to a batch for what was saved."""

import json

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

import contraprune
from contraprune import UserError
from contraprune.config import DataConfig, EvaluationConfig
from contraprune.evaluation import evaluate_path
from tiny_tasks import SENTIMENTS, family_models

TEXTS = ["The soup was bad, but the service was good.", "Dull."]


def of_method(method):
    stages = {"num_stages": 2, "num_train_epochs": 1, "importance_examples": 32}
    return {"method": method} | (stages if method == "taylor" else {"num_train_epochs": 2})


@pytest.mark.parametrize(
    ("family", "method"),
    [
        *((family, "movement") for family in ("distilbert", "mpnet", "deberta-v2")),
        *((family, "taylor") for family in ("distilbert", "mpnet", "deberta-v2", "modernbert", "albert")),
    ],
)
def test_other_families_run_too(tiny_options, tiny, tmp_path, family, method):
    """No pooler, no token types (DistilBERT); shared position bias (MPNet); disentangled attention (DeBERTa); fused
    matrices and local attention (ModernBERT); one layer that is run three times (ALBERT)."""
    options = tiny_options | family_models(
        tmp_path, AutoTokenizer.from_pretrained(tiny / "teacher"), family, **SENTIMENTS
    )
    results = contraprune.prune(**(options | of_method(method)))
    assert results["density"]["encoder"] == pytest.approx(0.5, abs=0.05)
    assert contraprune.load(tmp_path / "run").config.model_type == family


@pytest.mark.parametrize("method", ["movement", "taylor"])
def test_the_encoder_of_t5_runs_too(tiny_options, tiny, tmp_path, method):
    rows = [{"tokens": text.split(), "tags": ["O"] * (len(text.split()) - 1) + ["END"]} for text in TEXTS * 8]
    (tmp_path / "tags.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tags = {"id2label": {0: "END", 1: "O"}, "label2id": {"END": 0, "O": 1}}
    options = tiny_options | family_models(tmp_path, AutoTokenizer.from_pretrained(tiny / "teacher"), "t5", **tags)
    del options["task"]
    files = dict.fromkeys(("train_file", "validation_file"), str(tmp_path / "tags.jsonl"))
    results = contraprune.prune(**(options | files | of_method(method)), task_type="token_classification")
    assert results["density"]["encoder"] == pytest.approx(0.5, abs=0.05)
    assert contraprune.load(tmp_path / "run").config.model_type == "t5"


@pytest.fixture
def without_padding(tiny):
    """A tokenizer as decoders have it: no pad token, a token at the start of each text and none at its end."""
    backend = AutoTokenizer.from_pretrained(tiny / "teacher").backend_tokenizer
    backend.no_padding()
    backend.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 101)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_input_names=["input_ids", "attention_mask"],
    )


@pytest.mark.parametrize(("family", "method"), [("gpt2", "taylor"), ("llama", "taylor"), ("llama", "movement")])
def test_decoders_without_a_pad_token_run_too(tiny_options, without_padding, tmp_path, family, method):
    nameless = SENTIMENTS | {"pad_token_id": None, "eos_token_id": 102}
    options = tiny_options | family_models(tmp_path, without_padding, family, **nameless)
    results = contraprune.prune(**(options | of_method(method)))
    assert results["density"]["encoder"] == pytest.approx(0.5, abs=0.05)
    path = tmp_path / "run" / "model"
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert (tokenizer.pad_token, len(tokenizer)) == ("[SEP]", len(without_padding))
    found = [contraprune.load(path)]
    if method == "movement":
        found.append(AutoModelForSequenceClassification.from_pretrained(path).eval())
    for model in found:
        assert model.config.pad_token_id == tokenizer.eos_token_id
        with torch.no_grad():
            together = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
            alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS])
        torch.testing.assert_close(together, alone)
    data = DataConfig(task="toy", max_eval_samples=48, max_length=24)
    assert evaluate_path(str(path), data, EvaluationConfig(quiet=True)).metrics == results["metrics"]


def test_a_decoder_is_finetuned_evaluated_and_loaded_without_a_pad_token(tiny_options, without_padding, tmp_path):
    nameless = SENTIMENTS | {"pad_token_id": None, "eos_token_id": 102}
    family_models(tmp_path, without_padding, "gpt2", **nameless)
    data = DataConfig(task="toy", max_eval_samples=48, max_length=24)
    evaluate_path(str(tmp_path / "teacher"), data, EvaluationConfig(quiet=True))
    assert contraprune.load(tmp_path / "teacher").config.pad_token_id == 102
    taken = ("task", "max_train_samples", "max_eval_samples", "max_length", "disable_tqdm", "use_cpu", "output_dir")
    options = {name: tiny_options[name] for name in taken} | {"num_train_epochs": 1}
    results = contraprune.finetune(model=str(tmp_path / "pretrained"), **options)
    found = evaluate_path(str(tmp_path / "run" / "model"), data, EvaluationConfig(quiet=True))
    assert found.metrics == results["metrics"]
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["pad_token_id"] == 102


def test_a_tokenizer_without_any_token_to_pad_with_is_refused(tiny_options, without_padding, tmp_path):
    without_padding.eos_token = None
    options = tiny_options | family_models(tmp_path, without_padding, "llama", **SENTIMENTS, pad_token_id=None)
    with pytest.raises(UserError, match="teacher: expected a tokenizer with a pad or an end-of-sequence token"):
        contraprune.prune(**options)
