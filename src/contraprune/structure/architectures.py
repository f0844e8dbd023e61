"""What is particular to each architecture of transformers: one entry per ``config.model_type``."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What has to be known about one ``config.model_type``. Paths start at the layer unless stated."""

    layer: str  # path of a layer from the base model, with * for a number
    attention: str  # module that splits features into heads
    head_size: str  # its attribute with the size of a head
    queries_keys_values: tuple[str, ...]  # paths from ``attention``, queries first; variants may lack some
    attention_output: str
    ffn_input: tuple[str, ...]  # matrices that produce neurons; variants may lack some
    ffn_output: str
    attention_blocks: int = 1  # query, key and value fused in one matrix, one block after the other: 3
    ffn_blocks: int = 1  # gate and up fused in one matrix, one block after the other: 2
    head_counts: tuple[str, ...] = ()  # attributes of ``attention``: the number of heads …
    head_widths: tuple[str, ...] = ()  # … and the number of features of all its heads
    ffn: str = ""  # module with the attributes neuron_counts
    neuron_counts: tuple[str, ...] = ()
    shared_position_bias: bool = False  # see HeadGroup
    heads_may_be_empty: bool = True
    neurons_may_be_empty: bool = True
    learned_positions: bool = False  # config.max_position_embeddings of them: no text can be longer
    positions_skip_padding: bool = False  # they count from padding_idx + 1 and leave padding out
    padding_idx: int | None = None  # where it is not the configuration's pad_token_id


_BERT = Architecture(
    layer="encoder.layer.*",
    attention="attention.self",
    head_size="attention_head_size",
    queries_keys_values=("query", "key", "value"),
    attention_output="attention.output.dense",
    head_counts=("num_attention_heads",),
    head_widths=("all_head_size",),
    ffn_input=("intermediate.dense",),
    ffn_output="output.dense",
    learned_positions=True,
)
_LLAMA = Architecture(
    layer="layers.*",
    attention="self_attn",
    head_size="head_dim",
    queries_keys_values=("q_proj", "k_proj", "v_proj"),
    attention_output="self_attn.o_proj",
    ffn="mlp",
    ffn_input=("mlp.gate_proj", "mlp.up_proj"),
    ffn_output="mlp.down_proj",
    neuron_counts=("intermediate_size",),
)
ARCHITECTURES: dict[str, Architecture] = {
    **dict.fromkeys(["bert", "electra"], _BERT),
    **dict.fromkeys(["camembert", "roberta", "xlm-roberta"], replace(_BERT, positions_skip_padding=True)),
    **dict.fromkeys(["llama", "mistral", "nomic_bert", "eurobert", "qwen2", "qwen3"], _LLAMA),
    **dict.fromkeys(["gemma", "gemma2", "gemma3_text"], _LLAMA),
    "albert": replace(
        _BERT,
        layer="encoder.albert_layer_groups.*.albert_layers.*",
        attention="attention",
        attention_output="attention.dense",
        ffn_input=("ffn",),
        ffn_output="ffn_output",
    ),
    "deberta-v2": replace(
        _BERT,
        queries_keys_values=("query_proj", "key_proj", "value_proj", "pos_key_proj", "pos_query_proj"),
        heads_may_be_empty=False,
    ),
    "distilbert": Architecture(
        layer="transformer.layer.*",
        attention="attention",
        head_size="attention_head_size",
        queries_keys_values=("q_lin", "k_lin", "v_lin"),
        attention_output="attention.out_lin",
        head_counts=("n_heads",),
        ffn_input=("ffn.lin1",),
        ffn_output="ffn.lin2",
        learned_positions=True,
    ),
    "gpt2": Architecture(
        layer="h.*",
        attention="attn",
        head_size="head_dim",
        queries_keys_values=("c_attn",),
        attention_blocks=3,
        attention_output="attn.c_proj",
        head_counts=("num_heads",),
        head_widths=("split_size",),
        ffn_input=("mlp.c_fc",),
        ffn_output="mlp.c_proj",
        heads_may_be_empty=False,
        neurons_may_be_empty=False,
        learned_positions=True,
    ),
    "modernbert": Architecture(
        layer="layers.*",
        attention="attn",
        head_size="head_dim",
        queries_keys_values=("Wqkv",),
        attention_blocks=3,
        attention_output="attn.Wo",
        ffn_input=("mlp.Wi",),
        ffn_blocks=2,
        ffn_output="mlp.Wo",
    ),
    "mpnet": replace(
        _BERT,
        attention="attention.attn",
        queries_keys_values=("q", "k", "v"),
        attention_output="attention.attn.o",
        shared_position_bias=True,
        positions_skip_padding=True,
        padding_idx=1,
    ),
    "t5": Architecture(  # the encoder; a decoder, where there is one, is left alone
        layer="encoder.block.*",
        attention="layer.0.SelfAttention",
        head_size="key_value_proj_dim",
        queries_keys_values=("q", "k", "v"),
        attention_output="layer.0.SelfAttention.o",
        head_counts=("n_heads",),
        head_widths=("inner_dim",),
        ffn_input=tuple(f"layer.1.DenseReluDense.{name}" for name in ("wi", "wi_0", "wi_1")),
        ffn_output="layer.1.DenseReluDense.wo",
        shared_position_bias=True,
    ),
}
