"""How long a text may be: the answer of the structure table against the models' own forward passes."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig

import contraprune
from contraprune import UserError
from contraprune.config import DataConfig, EvaluationConfig
from contraprune.evaluation import evaluate_path
from contraprune.probing import ProbeConfig, probe
from contraprune.structure import most_tokens, text_length
from tiny_models import FAMILIES

LEARNED = {
    "bert": 16, "electra": 16, "albert": 16, "distilbert": 16, "deberta-v2": 16, "gpt2": 16,
    "roberta": 15, "xlm-roberta": 15, "camembert": 15,  # from pad_token_id + 1, which is 0 in the tiny models
    "mpnet": 14,
}  # fmt: skip


def runs(model, length):
    ids = torch.full((1, length), 5)
    try:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, RuntimeError):
        return False
    return True


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.endswith(("-own-keys", "-gated", "-groups"))])
def test_a_model_reads_texts_as_long_as_said_and_no_longer(name):
    family = FAMILIES[name]
    model = replace(family, config=family.config | {"max_position_embeddings": 16}).build()
    most = most_tokens(model.config)
    assert most == LEARNED.get(name)
    assert runs(model, most or 40)
    assert most is None or not runs(model, most + 1)


def test_deberta_with_relative_positions_only_reads_any_length():
    family = FAMILIES["deberta-v2"]
    relative = replace(family, config=family.config | {"position_biased_input": False, "max_position_embeddings": 16})
    learned = replace(family, config=family.config | {"max_position_embeddings": 16})
    with torch.no_grad():
        assert runs(relative.build(), 40)
        assert not runs(learned.build(), 17)
    assert most_tokens(relative.build().config) is None
    assert most_tokens(learned.build().config) == 16


def test_the_default_is_no_longer_than_every_model_and_more_is_refused():
    short, long = (AutoConfig.for_model("bert", max_position_embeddings=size) for size in (64, 512))
    models = {"teacher": long, "model": short}
    assert text_length(None, default=128, models=models) == 64
    assert text_length(None, default=128, models={"teacher": long}) == 128
    assert text_length(64, default=128, models=models) == 64
    with pytest.raises(UserError, match="--max_length: expected at most 64, the positions of model, found 65"):
        text_length(65, default=128, models=models)
    roberta = AutoConfig.for_model("roberta", max_position_embeddings=514)
    with pytest.raises(UserError, match="expected at most 512, the positions of xlm, found 513"):
        text_length(513, default=128, models={"xlm": roberta})
    unknown = AutoConfig.for_model("longformer", max_position_embeddings=16)
    assert text_length(4096, default=128, models={"longformer": unknown}) == 4096


def test_every_job_refuses_longer_texts_before_it_starts(tiny_options, tiny, tmp_path):
    message = r"--max_length: expected at most 512, the positions of .*tiny.*, found 513"
    tiny_options["max_length"] = 513
    with pytest.raises(UserError, match=message):
        contraprune.prune(**tiny_options)
    for name in ("teacher", "extra_examples", "cache_dir"):
        del tiny_options[name]
    with pytest.raises(UserError, match=message):
        contraprune.finetune(**tiny_options)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=message):
        evaluate_path(str(tiny / "teacher"), DataConfig(task="toy", max_length=513), EvaluationConfig(quiet=True))
    with pytest.raises(UserError, match=message):
        probe(str(tiny / "teacher"), ProbeConfig(tasks="rte", max_length=513), EvaluationConfig(quiet=True))
