"""Fisher saliency against a loop over examples."""

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from transformers import AutoTokenizer, BertForSequenceClassification, DataCollatorWithPadding

from contraprune.masking import mask_linears
from contraprune.saliency import fisher_saliency
from contraprune.structure import find_layers
from tiny_tasks import TWO_CLASSES

TEXTS = ["a good film", "the soup was not bad at all", "no", "dull dull dull and long"]


@pytest.fixture
def subject(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny / "teacher")
    rows = dict(tokenizer(TEXTS)) | {"labels": [0] * 4, "idx": list(range(4))}
    rows["length"] = [len(ids) for ids in rows["input_ids"]]
    model = BertForSequenceClassification.from_pretrained(tiny / "teacher").train()
    linears = mask_linears(
        {name: m for layer in find_layers(model) for name, m in layer.linears.items()}, learn_scores=True
    )
    return model, linears, tokenizer, datasets.Dataset.from_dict(rows)


def rate(model, linears, tokenizer, dataset, *, accelerator=None, **settings):
    defaults = {"examples": 4, "batch_size": 1, "temperature": 2.0, "seed": 5}
    return fisher_saliency(
        model,
        linears,
        TWO_CLASSES,
        dataset,
        collator=DataCollatorWithPadding(tokenizer),
        accelerator=accelerator or Accelerator(cpu=True),
        progress=False,
        **(defaults | settings),
    )


def test_it_is_the_squared_weight_times_the_mean_squared_gradient(subject):
    model, linears, tokenizer, _ = subject
    found = rate(*subject)
    assert model.training
    model.eval()
    generator = torch.Generator().manual_seed(5)
    order = torch.randperm(4, generator=generator).tolist()
    order.sort(key=lambda index: len(tokenizer(TEXTS[index])["input_ids"]), reverse=True)  # hardly any padding
    squares = {name: torch.zeros_like(linear.weight) for name, linear in linears.items()}
    for number, index in enumerate(order):
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence([5, number]).generate_state(1)[0]))
        logits = model(**tokenizer(TEXTS[index], return_tensors="pt")).logits / 2.0
        label = int(torch.rand(1, 1, generator=generator) > logits.softmax(-1)[0, 0])
        for name, linear in linears.items():
            loss = F.cross_entropy(logits, torch.tensor([label]))
            (gradient,) = torch.autograd.grad(loss, linear.weight, retain_graph=True)
            squares[name] += gradient**2
    for name, linear in linears.items():
        torch.testing.assert_close(found[name], linear.weight.detach() ** 2 * squares[name] / 4, rtol=1e-4, atol=1e-12)


def test_it_is_seeded_and_leaves_no_gradients(subject):
    model = subject[0]
    state = torch.get_rng_state()
    first, again, other = (rate(*subject, examples=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("examples", "processes"), [(4, 2), (3, 2), (4, 3), (2, 4)])
def test_any_number_of_processes_find_the_same(subject, monkeypatch, examples, processes):
    """The sums of all processes, put together by hand, are what one process finds; some have fewer batches, or none."""
    whole = rate(*subject, examples=examples)
    monkeypatch.setattr(Accelerator, "num_processes", processes)
    parts = []
    for rank in range(processes):
        monkeypatch.setattr(Accelerator, "process_index", rank)
        parts.append(rate(*subject, examples=examples, accelerator=Accelerator(cpu=True)))
    for name, expected in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), expected)
        assert expected.any()
