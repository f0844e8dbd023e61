"""Dropout that is set on a finished model, for every family."""

import pytest
import torch

from contraprune.dropout import set_dropout
from tiny_models import FAMILIES, batch

EVERY_DROPOUT = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "hidden_dropout", "attention_dropout", "dropout",
    "seq_classif_dropout", "classifier_dropout", "classifier_dropout_prob", "dropout_rate", "resid_pdrop",
    "embd_pdrop", "attn_pdrop", "embedding_dropout", "mlp_dropout",
)  # fmt: skip


def with_dropout(family, attention):
    """The family's model, with half of everything dropped while training."""
    plain = family.build(attention)
    config = plain.config
    for name in EVERY_DROPOUT:
        if isinstance(getattr(config, name, None), float):
            setattr(config, name, 0.5)
    model = family.auto_class.from_config(config, attn_implementation=attention)
    model.load_state_dict(plain.state_dict())
    return plain, model


def has_dropout(family):
    """Of Gemma, Llama, Mistral and Qwen only the attention has any, and none of their configurations by default."""
    return family.model_type in {
        "bert",
        "roberta",
        "distilbert",
        "albert",
        "mpnet",
        "deberta-v2",
        "t5",
        "gpt2",
        "llama",
    }


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_without_dropout_a_model_in_training_computes_what_it_computes_in_evaluation(name, attention):
    family = FAMILIES[name]
    if attention == "sdpa" and not family.has_sdpa:
        pytest.skip("the family has no sdpa attention")
    plain, model = with_dropout(family, attention)
    rows = batch()
    with torch.no_grad():
        expected = plain(**rows).logits
        model.train()
        if has_dropout(family):
            assert not torch.allclose(model(**rows).logits, expected, atol=1e-3)
        set_dropout(model, 0.0)
        torch.testing.assert_close(model(**rows).logits, expected, rtol=1e-5, atol=1e-5)


def test_the_configuration_keeps_its_dropout():
    _, model = with_dropout(FAMILIES["bert"], "sdpa")
    set_dropout(model, 0.0)
    assert model.config.hidden_dropout_prob == 0.5
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
