"""Encoding a data set against one forward pass per sentence."""

from dataclasses import replace

import datasets
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoTokenizer, BertForSequenceClassification, DataCollatorWithPadding
from transformers.models.distilbert import DistilBertConfig, DistilBertForSequenceClassification

from contraprune.encoding import Reader, encode, longest_first, pack_tokens, unpack_tokens
from tiny_tasks import TWO_CLASSES

TEXTS = ["short", "a rather longer sentence about nothing", "two words", "the same length of words here"]


@pytest.fixture
def encoded(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny / "teacher")
    rows = dict(tokenizer(TEXTS))
    rows |= {"idx": list(range(len(TEXTS))), "labels": [0, 1, 0, 1], "length": [len(ids) for ids in rows["input_ids"]]}
    return tokenizer, datasets.Dataset.from_dict(rows)


def run(model, reader, tokenizer, dataset, order=()):
    passes = encode(
        model,
        reader,
        replace(TWO_CLASSES, label_order=order),
        dataset,
        collator=DataCollatorWithPadding(tokenizer),
        batch_size=3,
        accelerator=Accelerator(cpu=True),
        description="",
        progress=False,
    )
    return list(passes)


def one_by_one(model, tokenizer, pooling, use_pooler):
    for text in TEXTS:
        with torch.no_grad():
            batch = tokenizer(text, return_tensors="pt")
            output = model.base_model(**batch)
            logits = model(**batch).logits[0]
        if pooling == "mean":
            z = output.last_hidden_state[0].mean(dim=0)
        else:
            z = output.pooler_output[0] if use_pooler else output.last_hidden_state[0, 0]
        yield z / z.norm(), logits


def test_the_longest_text_comes_first_and_equals_keep_their_order():
    assert longest_first([3, 7, 3, 9, 1]) == [3, 1, 0, 2, 4]


@pytest.mark.parametrize(("pooling", "use_pooler"), [("cls", True), ("cls", False), ("mean", True)])
def test_rows_are_those_of_single_sentences_in_eval_mode(tiny, encoded, pooling, use_pooler):
    tokenizer, dataset = encoded
    model = BertForSequenceClassification.from_pretrained(tiny / "teacher").train()
    reader = Reader(model, pooling=pooling, use_pooler=use_pooler)
    state = torch.get_rng_state()
    batches = run(model, reader, tokenizer, dataset)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    ids = torch.cat([batch.ids for batch in batches])
    assert sorted(ids.tolist()) == [0, 1, 2, 3]
    model.eval()
    expected = list(one_by_one(model, tokenizer, pooling, use_pooler))
    z, logits = (torch.cat([getattr(b, name) for b in batches]) for name in ("representations", "outputs"))
    torch.testing.assert_close(z, torch.stack([expected[i][0] for i in ids]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, torch.stack([expected[i][1] for i in ids]), rtol=1e-4, atol=1e-5)


def test_outputs_are_in_the_order_of_the_labels(tiny, encoded):
    tokenizer, dataset = encoded
    model = BertForSequenceClassification.from_pretrained(tiny / "teacher")
    reader = Reader(model, pooling="mean", use_pooler=False)
    plain, turned = (run(model, reader, tokenizer, dataset, order) for order in ((), (1, 0)))
    assert torch.equal(plain[0].outputs.flip(-1), turned[0].outputs)


@pytest.mark.parametrize("side", ["right", "left"])
def test_outputs_per_token_come_back_from_their_rows(side):
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 1, 3]
    mask = torch.stack([torch.arange(6) < n if side == "right" else torch.arange(6) >= 6 - n for n in lengths]).long()
    outputs = torch.randn(3, 6, 2, generator=generator)
    rows = pack_tokens(outputs, mask, tokens=8)
    assert rows.shape == (3, 16)
    for row, tokens, real in zip(rows, outputs, mask.bool(), strict=True):
        assert row[: 2 * int(real.sum())].tolist() == tokens[real].flatten().tolist()
        assert not row[2 * int(real.sum()) :].any()
    assert torch.equal(unpack_tokens(rows, mask, width=2), outputs * mask.unsqueeze(-1))
    shorter = mask[:, :5] if side == "right" else mask[:, 1:]  # padded to another length
    expected = (outputs * mask.unsqueeze(-1))[:, :5] if side == "right" else (outputs * mask.unsqueeze(-1))[:, 1:]
    assert torch.equal(unpack_tokens(rows, shorter, width=2), expected)


def test_a_model_without_pooler_is_read_at_its_first_token(encoded):
    tokenizer, _ = encoded
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=16, n_layers=1, n_heads=2, hidden_dim=16)
    model = DistilBertForSequenceClassification(config).eval()
    reader = Reader(model, pooling="cls", use_pooler=True)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    model(**batch)
    expected = model.distilbert(**batch).last_hidden_state[:, 0]
    model(**batch)
    torch.testing.assert_close(reader.take(batch["attention_mask"]), expected)


def test_gradients_flow_through_what_is_read_and_removal_ends_it(tiny, encoded):
    tokenizer, _ = encoded
    model = BertForSequenceClassification.from_pretrained(tiny / "teacher")
    reader = Reader(model, pooling="cls", use_pooler=True)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    model(**batch)
    reader.take(batch["attention_mask"]).sum().backward()
    assert model.bert.encoder.layer[0].attention.self.query.weight.grad.abs().sum() > 0
    reader.remove()
    model(**batch)
    with pytest.raises(AttributeError):
        reader.take(batch["attention_mask"])
