import copy
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers.utils.hub
from huggingface_hub import HfApi, ModelCard
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertModel,
    PreTrainedModel,
    T5ForConditionalGeneration,
)

from contraprune.errors import UserError
from contraprune.files import SUMS
from contraprune.modeling_contraprune import resize
from contraprune.remote_code import declare_shapes
from contraprune.saving import load, load_for_finetuning, load_pretrained, load_tokenizer, save_model
from contraprune.shrinking import shapes, shrink
from contraprune.structure import find_layers
from test_shrinking import random_masks
from tiny_models import FAMILIES, Family, batch
from without_contraprune import train

CODE = "modeling_contraprune.py"
UNSEALED = shutil.ignore_patterns(SUMS)  # for a copy that is edited
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def built(family: Family) -> PreTrainedModel:
    return family.build("sdpa" if family.has_sdpa else "eager")


def slimmed(family: Family) -> PreTrainedModel:
    """Different heads and neurons in each layer, none in the last FFN where the architecture permits."""
    model = built(family)
    layers = find_layers(model)
    heads, neurons = random_masks(layers)
    if layers[-1].neurons.may_be_empty:
        neurons[-1][:] = False
    shrink(model, layers, heads, neurons)
    return model


def uniformly_slimmed(family: Family, heads: bool) -> PreTrainedModel:
    """Eleven neurons of each FFN are left, and half the heads where asked for."""
    model = built(family)
    layers = find_layers(model)
    keep = [torch.arange(layer.heads.num_heads) % 2 >= (1 if heads else 0) for layer in layers]
    shrink(model, layers, keep, [torch.arange(layer.neurons.num_neurons) < 11 for layer in layers])
    return model


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(**batch()).logits


def config_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text())


def integers(model: nn.Module) -> list[dict[str, int]]:
    return [{name: value for name, value in vars(m).items() if type(value) is int} for m in model.modules()]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert") / "model"
    save_model(slimmed(FAMILIES["bert"]), None, path)
    return path


# ---- with contraprune ----


@every_family
def test_loads_exactly_what_was_saved(family: Family, tmp_path: Path) -> None:
    model = slimmed(family)
    expected, record, text = logits(model), shapes(model), str(model)
    original = built(family).config.to_dict()
    save_model(model, None, tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors", SUMS, CODE}
    config = config_of(tmp_path / "model")
    assert config["contraprune"] == {"format": 1, **record}
    assert config["model_type"] == original["model_type"]
    sizes = (
        "num_attention_heads",
        "n_heads",
        "num_heads",
        "n_head",
        "intermediate_size",
        "hidden_dim",
        "d_ff",
        "n_inner",
    )
    assert {n: config[n] for n in sizes if n in config} == {n: original[n] for n in sizes if n in original}

    loaded = load(tmp_path / "model")
    assert torch.equal(logits(loaded), expected)
    assert torch.equal(logits(model), expected)
    assert type(loaded) is type(model)
    assert type(loaded).__name__ == type(built(family)).__name__ == config["architectures"][0]
    assert str(loaded) == str(model) == text
    by_the_table = built(family)
    resize(by_the_table, record)
    assert integers(loaded) == integers(by_the_table)
    saved = set(model.state_dict())
    assert saved == set(by_the_table.state_dict())


@every_family
def test_sizes_that_the_stock_config_can_say_need_no_code(family: Family, tmp_path: Path) -> None:
    model = uniformly_slimmed(family, heads=False)
    expected = logits(model)
    save_model(model, None, tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors", SUMS}
    config = config_of(tmp_path / "model")
    assert not {"contraprune", "auto_map"} & set(config)
    assert 11 in (config.get(name) for name in ("intermediate_size", "hidden_dim", "d_ff", "n_inner"))
    for loaded in (family.auto_class.from_pretrained(tmp_path / "model").eval(), load(tmp_path / "model")):
        assert torch.equal(logits(loaded), expected)
        assert type(loaded).__module__.startswith("transformers.models")


@every_family
def test_uniform_heads_need_code_unless_the_config_has_a_head_size(family: Family, tmp_path: Path) -> None:
    model = uniformly_slimmed(family, heads=True)
    expected = logits(model)
    save_model(model, None, tmp_path / "model")
    config = config_of(tmp_path / "model")
    plain = "contraprune" not in config
    # T5's has one, but its heads index the position bias that all layers share.
    assert plain == (family.model_type not in ("albert", "t5") and "head_dim" in config)
    assert plain != (tmp_path / "model" / CODE).exists()
    if plain:
        layer = find_layers(model)[0]
        assert config["num_attention_heads"] == layer.heads.num_heads * layer.heads.queries_per_head
        assert config.get("num_key_value_heads", layer.heads.num_heads) == layer.heads.num_heads
        stock = family.auto_class.from_pretrained(tmp_path / "model").eval()
        assert torch.equal(logits(stock), expected)
    assert torch.equal(logits(load(tmp_path / "model")), expected)


def test_a_model_of_its_own_config_stays_as_it_is(tmp_path: Path) -> None:
    model = built(FAMILIES["bert"])
    before, state = model.config.to_dict(), torch.get_rng_state()
    declare_shapes(model)
    assert model.config.to_dict() == before
    assert type(model).__module__ == "transformers.models.bert.modeling_bert"
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_differs_in_more_than_heads_and_neurons_is_refused() -> None:
    model = slimmed(FAMILIES["bert"])
    model.classifier = nn.Linear(24, 5)
    with pytest.raises(UserError, match=r"classifier.weight: expected the shape \[3, 24\] .*, found \[5, 24\]"):
        declare_shapes(model)


def test_the_encoder_of_an_encoder_decoder(tmp_path: Path) -> None:
    config = copy.deepcopy(FAMILIES["t5"].build().config)
    config.num_decoder_layers, config.is_encoder_decoder = 2, True
    model = T5ForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()
    layers = find_layers(model)
    shrink(model, layers, *random_masks(layers))
    save_model(model, None, tmp_path / "model")
    inputs = batch() | {"decoder_input_ids": batch()["input_ids"]}
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "model")(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("name", ["bert", "mpnet", "t5", "llama"])
def test_prunes_a_pruned_model_again(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    model = slimmed(family)
    for stage in range(2):
        save_model(model, None, tmp_path / str(stage))
        model = load(tmp_path / str(stage))
        layers = find_layers(model)
        keep = [torch.arange(layer.heads.num_heads) > 0 for layer in layers]
        keep[-1][:] = True
        before = shapes(model)
        shrink(model, layers, keep, [torch.arange(layer.neurons.num_neurons) % 3 > 0 for layer in layers])
        assert shapes(model) != before
    expected = logits(model)
    save_model(model, None, tmp_path / "result")
    assert torch.equal(logits(load(tmp_path / "result")), expected)
    assert config_of(tmp_path / "result")["contraprune"]["layers"] == shapes(model)["layers"]


def test_goes_back_to_a_plain_config_once_the_sizes_are_uniform(tmp_path: Path) -> None:
    family = FAMILIES["bert"]
    model = built(family)
    layers, full = find_layers(model), [torch.ones(4).bool()] * 3
    shrink(model, layers, full, [torch.arange(20) < n for n in (12, 15, 9)])
    save_model(model, None, tmp_path / "model")
    assert "contraprune" in config_of(tmp_path / "model")
    model = load(tmp_path / "model")
    shrink(model, find_layers(model), full, [torch.arange(n) < 9 for n in (12, 15, 9)])
    save_model(model, None, tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [SUMS, "config.json", "model.safetensors"]
    assert not {"contraprune", "auto_map"} & set(config_of(tmp_path / "model"))
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(logits(stock), logits(model))


def test_the_head_size_is_written_where_a_config_left_it_to_be_computed(tmp_path: Path) -> None:
    config = {"num_key_value_heads": 4, "num_attention_heads": 8, "hidden_size": 32}
    model = uniformly_slimmed(Family(model_type="qwen2", config=config), heads=True)
    save_model(model, None, tmp_path / "model")
    found = config_of(tmp_path / "model")
    assert "contraprune" not in found
    assert [found[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim")] == [4, 2, 4]
    assert torch.equal(logits(load(tmp_path / "model")), logits(model))


def test_no_neurons_in_any_layer_can_be_said(tmp_path: Path) -> None:
    model = built(FAMILIES["bert"])
    layers = find_layers(model)
    shrink(model, layers, [torch.ones(4).bool()] * 3, [torch.zeros(20).bool()] * 3)
    save_model(model, None, tmp_path / "model")
    assert config_of(tmp_path / "model")["intermediate_size"] == 0
    assert torch.equal(logits(load(tmp_path / "model")), logits(model))


def test_no_heads_in_any_layer_need_code(tmp_path: Path) -> None:
    model = built(FAMILIES["llama"])
    layers = find_layers(model)
    shrink(model, layers, [torch.zeros(4).bool()] * 3, [torch.ones(20).bool()] * 3)
    save_model(model, None, tmp_path / "model")
    assert config_of(tmp_path / "model")["num_attention_heads"] == 8
    assert torch.equal(logits(load(tmp_path / "model")), logits(model))


def test_loads_into_another_task_and_into_the_bare_encoder(bert: Path) -> None:
    task = load(bert)
    encoder = load_pretrained(AutoModel, str(bert)).eval()
    assert type(encoder).__name__ == "BertModel"
    with torch.no_grad():
        expected = task.bert(**batch())[0]
        assert torch.equal(encoder(**batch())[0], expected)
        assert torch.equal(load_pretrained(BertModel, str(bert)).eval()(**batch())[0], expected)
    reader, new = load_for_finetuning(transformers.AutoModelForQuestionAnswering, str(bert))
    assert sorted(new) == ["qa_outputs.bias", "qa_outputs.weight"]
    assert shapes(reader) == shapes(task)
    labelled = load_pretrained(AutoModelForSequenceClassification, str(bert), id2label={0: "a", 1: "b", 2: "c"})
    assert labelled.config.id2label == {0: "a", 1: "b", 2: "c"}
    with pytest.raises(UserError, match="AutoModelForSeq2SeqLM has no model of type 'bert'"):
        load_pretrained(transformers.AutoModelForSeq2SeqLM, str(bert))


def test_copies_and_pickles_of_a_loaded_model(bert: Path) -> None:
    model = load(bert)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is type(model)
        assert torch.equal(logits(other), logits(model))


def test_plain_save_pretrained_of_a_loaded_model(bert: Path, tmp_path: Path) -> None:
    load(bert).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in bert.iterdir()} - {SUMS}
    for name in ("config.json", CODE):
        assert (tmp_path / name).read_bytes() == (bert / name).read_bytes()
    assert torch.equal(logits(load(tmp_path)), logits(load(bert)))


def test_push_to_hub_up_to_the_commit(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def commit(api: HfApi, repo_id: str, operations: list[Any], **options: Any) -> None:
        for operation in operations:
            shutil.copy(operation.path_or_fileobj, tmp_path / operation.path_in_repo)

    def repo(api: HfApi, repo_id: str, **options: Any) -> Any:
        return SimpleNamespace(repo_id=repo_id)

    monkeypatch.setattr(HfApi, "create_commit", commit)
    monkeypatch.setattr(HfApi, "create_repo", repo)
    monkeypatch.setattr(transformers.utils.hub, "create_and_tag_model_card", lambda *_, **__: ModelCard("# Pruned"))
    load(bert).push_to_hub("somebody/pruned")
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", CODE, "README.md"}
    assert torch.equal(logits(load(tmp_path)), logits(load(bert)))


def test_a_plain_trainer_goes_on_with_a_loaded_model(bert: Path, tmp_path: Path) -> None:
    whole = train(load(bert), tmp_path, resume=False)
    checkpoint = tmp_path / "checkpoint-2"
    assert (checkpoint / CODE).is_file()
    halfway = logits(load(checkpoint))
    resumed = train(load(bert), tmp_path, resume=True)
    assert torch.equal(logits(resumed), logits(whole))
    assert torch.equal(logits(load(tmp_path / "checkpoint-4")), logits(whole))
    assert not torch.equal(halfway, logits(whole))


def test_checkpoints_of_a_trainer_while_pruning(tmp_path: Path) -> None:
    """A model that is not loaded but in the middle of pruning saves itself whole, once declared."""
    model = slimmed(FAMILIES["bert"])
    declare_shapes(model)
    trained = train(model, tmp_path, resume=False)
    assert torch.equal(logits(load(tmp_path / "checkpoint-4")), logits(trained))


def test_shrinking_without_declaring_is_found_out_on_loading(bert: Path, tmp_path: Path) -> None:
    model = load(bert)
    layers = find_layers(model)
    shrink(model, layers, [torch.arange(layer.heads.num_heads) > 0 for layer in layers], random_masks(layers)[1])
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"expected the shape \[.*\] of config.json, found \["):
        load(tmp_path)


# ---- records that somebody edited ----


@pytest.fixture(scope="module")
def mpnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mpnet") / "model"
    save_model(slimmed(FAMILIES["mpnet"]), None, path)
    return path


def _layer(**changes: Any) -> Callable[[dict], None]:
    return lambda record: record["layers"]["encoder.layer.0"].update(changes)


def _heads(**changes: Any) -> Callable[[dict], None]:
    return lambda record: record["heads"].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_layer(heads=5), "heads: expected 0 to 4, found 5"),
        (_layer(heads=-1), "heads: expected 0 to 4, found -1"),
        (_layer(neurons=10**300), "neurons: expected 0 to 20, found 10000"),
        (_layer(neurons="two"), "neurons: expected 0 to 20, found 'two'"),
        (_layer(neurons=3.0), "neurons: expected 0 to 20, found 3.0"),
        (_layer(heads=True), "heads: expected 0 to 4, found True"),
        (_layer(heads=None), "heads: expected 0 to 4, found None"),
        (_layer(neurons=1), r"intermediate.dense.bias: expected the shape \[1\] of config.json, found \["),
        (_layer(kept_heads=[0, 9]), "kept_heads: expected 2 ascending numbers below 4, found"),
        (_layer(kept_heads=[1, 0]), "kept_heads"),
        (_layer(kept_heads=[1]), "kept_heads"),
        (_layer(kept_heads=[False, True]), "kept_heads"),
        (_layer(kept_heads="01"), "kept_heads"),
        (_layer(kept_heads=None), "kept_heads"),
        (
            lambda r: r["layers"].update({"../../etc": {"heads": 1, "neurons": 1}}),
            r"layers: expected encoder.layer.0 to",
        ),
        (lambda r: r["layers"].pop("encoder.layer.1"), "layers: expected"),
        (lambda r: r["layers"].update({"encoder.layer.1": 7}), "encoder.layer.1: expected heads and neurons, found 7"),
        (lambda r: r.update(layers=[1]), r"layers: expected .* found \[1\]"),
        (_heads(attributes={"attention.attn.forward": 1}), "heads: expected the matrices of MPNet"),
        (
            lambda r: r["heads"]["consumed_by"].update({"attention.attn.o": 6.0}),
            "heads: expected the matrices of MPNet",
        ),
        (_heads(produced_by={"../x": 6}), "heads: expected the matrices of MPNet"),
        (_heads(module="x" * 10_000), "heads: expected the matrices of MPNet"),
        (lambda r: r.pop("neurons"), "neurons: expected the matrices of MPNetForSequenceClassification, found None"),
        (lambda r: r.update(format=2), "format: expected 1, which this version of contraprune reads, found 2"),
        (dict.clear, "format: expected 1"),
    ],
)
def test_an_edited_record_is_the_users_to_fix(
    change: Callable[[dict], object], message: str, mpnet: Path, tmp_path: Path
) -> None:
    shutil.copytree(mpnet, tmp_path / "model", ignore=UNSEALED)
    config = config_of(mpnet)
    assert config["contraprune"]["layers"]["encoder.layer.0"]["heads"] == 2
    change(config["contraprune"])
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    for read in (load, lambda path: load_pretrained(AutoModelForSequenceClassification, str(path))):
        with pytest.raises(UserError, match=message) as caught:
            read(tmp_path / "model")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500
        assert str(tmp_path / "model") in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"contraprune": None},
        {"contraprune": "sizes"},
        {"num_attention_heads": 2},
        {"num_attention_heads": 0},
        {"num_hidden_layers": 2},
        {"hidden_size": "wide"},
        {"model_type": "bert"},
        {"architectures": ["MPNetModel", 3], "model_type": "gpt2"},
    ],
)
def test_an_edited_config_is_the_users_to_fix(changes: dict[str, Any], mpnet: Path, tmp_path: Path) -> None:
    shutil.copytree(mpnet, tmp_path / "model", ignore=UNSEALED)
    (tmp_path / "model" / "config.json").write_text(json.dumps(config_of(mpnet) | changes))
    with pytest.raises(UserError) as caught:
        load(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_code_in_a_directory_is_not_run_nor_handed_on(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "model", ignore=UNSEALED)
    ran = tmp_path / "ran"
    evil = f"open({str(ran)!r}, 'w')\n" + (bert / CODE).read_text()
    for name in (CODE, "evil.py"):
        (tmp_path / "model" / name).write_text(evil)
    config = config_of(bert)
    config["auto_map"] |= {"AutoConfig": "evil.BertConfig", "AutoModel": "evil.BertModel", "AutoTokenizer": "evil.T"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    expected = logits(load(bert))
    for model in (
        load(tmp_path / "model"),
        load_pretrained(AutoModelForSequenceClassification, str(tmp_path / "model")).eval(),
    ):
        assert torch.equal(logits(model), expected)
    load_pretrained(AutoModel, str(tmp_path / "model"))
    assert not ran.exists()
    model.save_pretrained(tmp_path / "again")
    assert "evil" not in (tmp_path / "again" / "config.json").read_text()
    assert (tmp_path / "again" / CODE).read_bytes() == (bert / CODE).read_bytes()


def test_code_is_not_run_even_if_a_prompt_would_be_answered_with_yes(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    shutil.copytree(bert, tmp_path / "model", ignore=UNSEALED)
    ran = tmp_path / "ran"
    (tmp_path / "model" / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    config = config_of(bert)
    del config["contraprune"]
    config |= {"model_type": "vit", "auto_map": {"AutoModelForSeq2SeqLM": "evil.Model", "AutoTokenizer": "evil.T"}}
    tokenizer = {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", None]}}
    for name, content in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        (tmp_path / "model" / name).write_text(json.dumps(content))
    for read in (
        lambda path: load_pretrained(transformers.AutoModelForSeq2SeqLM, path),
        load_tokenizer,
    ):
        with pytest.raises(UserError, match="not a model that transformers can load"):
            read(str(tmp_path / "model"))
    assert not ran.exists()
