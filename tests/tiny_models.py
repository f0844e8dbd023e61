"""A tiny random model of every supported family, with weights large enough that every head matters."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification

_SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 20}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_COMMON = {"vocab_size": 61, "num_labels": 3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GROUPED = {"num_key_value_heads": 4, "num_attention_heads": 8, "head_dim": 6}


@dataclass(frozen=True, kw_only=True)
class Family:
    """How to configure a tiny model, and what the structure table should find in it."""

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=lambda: _SIZES | _NO_DROPOUT)
    layers: int = 3
    has_sdpa: bool = True
    auto_class: Any = AutoModelForSequenceClassification
    runs_in_float64: bool = True  # eagerly too
    matrix_scale: float = 0.3  # T5 does not scale its attention scores
    vector_mean: float = 1.0  # of biases and norm weights; Gemma adds one to the latter itself

    def build(self, attention: str = "eager", seed: int = 0) -> nn.Module:
        """The model in eval mode, float32."""
        config = AutoConfig.for_model(self.model_type, **(_COMMON | self.sizes | self.config))
        model = self.auto_class.from_config(config, attn_implementation=attention)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            one_dimensional = parameter.dim() == 1
            parameter.data = self.vector_mean + 0.2 * noise if one_dimensional else self.matrix_scale * noise
        return model.eval()


_DISTILBERT = {"dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 20}
_DISTILBERT_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
_ALBERT = {"embedding_size": 10, "classifier_dropout_prob": 0.0}
_T5 = {"d_model": 24, "d_kv": 6, "d_ff": 20, "num_layers": 3, "num_heads": 4, "dropout_rate": 0.0}
_T5_CLASSIFIER = {"classifier_dropout": 0.0, "relative_attention_num_buckets": 8}
_GPT2 = {"n_embd": 24, "n_layer": 3, "n_head": 4, "n_inner": 20}
_GPT2_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_DEBERTA = {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]}

FAMILIES: dict[str, Family] = {
    name: Family(model_type=name) for name in ("bert", "roberta", "xlm-roberta", "camembert", "electra")
}
FAMILIES |= {
    "distilbert": Family(model_type="distilbert", sizes=_DISTILBERT, config=_DISTILBERT_DROPOUT),
    "albert": Family(model_type="albert", config=_ALBERT, layers=1),
    "albert-2-groups": Family(
        model_type="albert",
        config=_ALBERT | {"num_hidden_groups": 2, "inner_group_num": 2, "num_hidden_layers": 4},
        layers=4,
    ),
    "mpnet": Family(model_type="mpnet", has_sdpa=False),
    "deberta-v2": Family(
        model_type="deberta-v2",
        config=_DEBERTA | {"share_att_key": True, "conv_kernel_size": 3},
        has_sdpa=False,
    ),
    "deberta-v2-own-keys": Family(model_type="deberta-v2", config=_DEBERTA | {"share_att_key": False}, has_sdpa=False),
    # In float64 its eager attention masks with float64's lowest number, which is -inf in its float32 softmax.
    "modernbert": Family(model_type="modernbert", config={"local_attention": 4}, runs_in_float64=False),
    "nomic_bert": Family(model_type="nomic_bert"),
    "eurobert": Family(model_type="eurobert", config=_GROUPED),
    "t5": Family(
        model_type="t5",
        sizes=_T5,
        config=_T5_CLASSIFIER,
        auto_class=AutoModelForTokenClassification,
        matrix_scale=0.2,
    ),
    "t5-gated": Family(
        model_type="t5",
        sizes=_T5,
        config=_T5_CLASSIFIER | {"feed_forward_proj": "gated-gelu"},
        auto_class=AutoModelForTokenClassification,
        matrix_scale=0.2,
    ),
    "gpt2": Family(model_type="gpt2", sizes=_GPT2, config=_GPT2_DROPOUT),
}
FAMILIES |= {name: Family(model_type=name, config=_GROUPED) for name in ("llama", "mistral", "qwen2", "qwen3")}
FAMILIES |= {
    name: Family(model_type=name, config=_GROUPED, vector_mean=0.0, has_sdpa=name != "gemma2")
    for name in ("gemma", "gemma2", "gemma3_text")
}


def batch(seed: int = 1) -> dict[str, Tensor]:
    """Four sequences of 9, 7, 4 and 9 tokens, padded on the right: input_ids, attention_mask (4, 9)."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(9) < torch.tensor([[9], [7], [4], [9]])).long()
    ids = torch.randint(3, 61, (4, 9), generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask}
