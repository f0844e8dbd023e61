"""The training loss against its parts computed one by one, and what the trainer adds to the stock one."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import AutoTokenizer, BertForSequenceClassification, DataCollatorWithPadding

from contraprune.bank import Bank, RowFile, RowSpec
from contraprune.config import ContrastConfig, PruneArguments
from contraprune.contrastive import source_loss
from contraprune.criteria import L0, Movement
from contraprune.encoding import Reader
from contraprune.masking import mask_linears
from contraprune.pruning_config import PruningConfig
from contraprune.structure import find_layers
from contraprune.trainer import EpochSampler, Knowledge, MaskedTrainer, TaskTrainer
from tiny_tasks import TWO_CLASSES

EXAMPLES = 24


def sealed(path, values, dtype="float32"):
    file = RowFile.create(path, RowSpec(rows=len(values), width=values.shape[1], dtype=dtype), in_memory=True)
    file.write(torch.arange(len(values)), values)
    file.seal({})
    return file


@pytest.fixture
def data(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny / "teacher")
    generator = np.random.default_rng(0)
    words = ["good", "bad", "film", "not", "very", "soup"]
    rows = dict(tokenizer([" ".join(generator.choice(words, generator.integers(2, 9))) for _ in range(EXAMPLES)]))
    rows |= {"labels": generator.integers(0, 2, EXAMPLES).tolist(), "idx": list(range(EXAMPLES))}
    rows["length"] = [len(ids) for ids in rows["input_ids"]]
    return tokenizer, Dataset.from_dict(rows)


def options(tiny, data, tmp_path, **arguments):
    tokenizer, dataset = data
    model = BertForSequenceClassification.from_pretrained(
        tiny / "teacher", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    defaults = {
        "num_train_epochs": 1.0,
        "use_cpu": True,
        "disable_tqdm": True,
        "eval_strategy": "no",
        "save_strategy": "no",
        "seed": 3,
    }
    return {
        "model": model,
        "args": PruneArguments(output_dir=str(tmp_path / "out"), **(defaults | arguments)),
        "train_dataset": dataset,
        "processing_class": tokenizer,
        "data_collator": DataCollatorWithPadding(tokenizer),
        "task": replace(TWO_CLASSES, evaluation={"validation": dataset.rename_column("labels", "label")}),
        "evaluation": {"validation": dataset},
    }


@pytest.fixture
def trainer(tiny, data, tmp_path):
    def make(contrast=None, **arguments):
        chosen = options(tiny, data, tmp_path, **arguments)
        model = chosen["model"]
        linears = mask_linears(
            {name: m for layer in find_layers(model) for name, m in layer.linears.items()}, learn_scores=True
        )
        labels = torch.tensor(chosen["train_dataset"]["labels"])
        torch.manual_seed(9)
        rows = {name: F.normalize(torch.randn(EXAMPLES, 32), dim=-1) for name in ("pretrained", "old", "new")}
        files = {name: sealed(tmp_path / "banks" / name, values) for name, values in rows.items()}
        return MaskedTrainer(
            contrast=contrast or ContrastConfig(extra_examples=8),
            knowledge=Knowledge(
                banks={
                    "pretrained": Bank(labels, [files["pretrained"]]),
                    "snapshots": Bank(labels, [files["old"], files["new"]]),
                    "finetuned": Bank(labels),
                },
                teacher_outputs=sealed(tmp_path / "banks" / "outputs", torch.randn(EXAMPLES, 2)),
                classes=labels,
            ),
            reader=Reader(model, pooling="cls", use_pooler=True),
            criterion=Movement(linears, PruningConfig(score_learning_rate=0.5)),
            **chosen,
        )

    return make


def first_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def test_the_loss_is_the_weighted_sum_of_every_part(trainer):
    config = ContrastConfig(
        extra_examples=8, ce_weight=0.3, kd_weight=0.7, unsupervised_weight=0.2, supervised_weight=0.05, temperature=0.2
    )
    subject = trainer(config, per_device_train_batch_size=6)
    batch = first_batch(subject)
    assert set(batch) >= {"input_ids", "attention_mask", "labels", "idx"}
    model, ids = subject.model.train(), batch["idx"]
    loss = subject.compute_loss(model, dict(batch))
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids")}
    logits, anchors = model(**inputs).logits, model.bert(**inputs).pooler_output
    teacher = subject.knowledge.teacher_outputs[ids.numpy()]
    expected = 0.3 * F.cross_entropy(logits, batch["labels"])
    soft = (teacher / 2).softmax(-1)
    expected = expected + 0.7 * 4 * (soft * (soft.log() - (logits / 2).log_softmax(-1))).sum(-1).mean()
    for number, bank in enumerate(subject.knowledge.banks.values()):
        if not bank.files:
            continue
        rng = np.random.default_rng([3, 0, 0, number])
        candidates = bank.candidates(ids, extra_examples=8, rng=rng)
        assert len(candidates.ids) == len(bank.files) * (6 + 8 // len(bank.files))
        expected = expected + source_loss(
            anchors,
            ids,
            batch["labels"],
            candidates.rows,
            candidates.ids,
            candidates.labels,
            temperature=0.2,
            unsupervised_weight=0.2,
            supervised_weight=0.05,
        )
    torch.testing.assert_close(loss, expected)
    parts = subject.mean_parts()
    assert set(parts) == {"loss_ce", "loss_kd"} | {
        f"loss_{source}_{kind}" for source in ("pretrained", "snapshots") for kind in ("supervised", "unsupervised")
    }


def test_each_batch_of_a_step_draws_other_examples_and_a_repeated_step_the_same(trainer):
    subject = trainer()
    subject.state.global_step = 4
    assert [subject._next_draw() for _ in range(3)] == [(4, 0), (4, 1), (4, 2)]
    subject.state.global_step = 5
    assert subject._next_draw() == (5, 0)


def test_scores_have_their_own_learning_rate_and_no_decay(trainer):
    subject = trainer(learning_rate=1e-3, weight_decay=0.01)
    subject.create_optimizer_and_scheduler(10)
    groups = subject.optimizer.param_groups
    scores = {id(linear.mask_scores) for linear in subject.criterion.linears.values()}
    of_scores = [group for group in groups if {id(p) for p in group["params"]} & scores]
    assert len(of_scores) == 1
    assert {id(p) for p in of_scores[0]["params"]} == scores
    assert (of_scores[0]["initial_lr"], of_scores[0]["weight_decay"]) == (0.5, 0.0)
    others = [p for group in groups if group is not of_scores[0] for p in group["params"]]
    assert len(others) + len(scores) == len(list(subject.model.parameters()))
    assert all(group["initial_lr"] == 1e-3 for group in groups if group is not of_scores[0])
    assert all(p.requires_grad for p in subject.model.parameters())


def test_scores_that_have_to_travel_learn_faster_in_a_short_run(trainer):
    """The learning rate reaches the scores by the stock training loop, which knows the number of steps."""
    subject = trainer(max_steps=4, learning_rate=1e-3, warmup_steps=0)
    subject.criterion = L0(subject.criterion.linears, PruningConfig(method="l0"))
    subject.train()
    (rate,) = [group["initial_lr"] for group in subject.optimizer.param_groups if group.get("of_scores")]
    assert rate == 50 / 4


@pytest.mark.parametrize("accumulation", [1, 3])
def test_accumulated_batches_give_the_gradient_of_the_whole_batch(tiny, data, tmp_path, accumulation):
    """Stock BERT under the stock Trainer gives N times too large a loss here."""
    losses = []

    def step(size, accumulation):
        chosen = options(
            tiny,
            data,
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="sequential",
            max_steps=1,
            learning_rate=0.1,
            warmup_steps=0,
            max_grad_norm=0.0,
            optim="sgd",
            logging_steps=1,
        )
        chosen["train_dataset"] = chosen["train_dataset"].select(range(12))
        trainer = TaskTrainer(**chosen)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
        return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}

    whole, parts = step(12, 1), step(12 // accumulation, accumulation)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, parameter in whole.items():
        torch.testing.assert_close(parts[name], parameter, rtol=1e-4, atol=1e-6)


def test_label_smoothing_is_that_of_torch(tiny, data, tmp_path):
    subject = TaskTrainer(**options(tiny, data, tmp_path, label_smoothing_factor=0.3))
    logits, labels = torch.randn(5, 2), torch.tensor([0, 1, 1, 0, 1])
    smooth = torch.full((5, 2), 0.15) + 0.7 * F.one_hot(labels, 2)
    expected = -(smooth * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(subject.task_loss(logits, {"labels": labels}), expected)


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone():
    lengths = list(range(100))

    def order(seed, epoch):
        sampler = EpochSampler(4, lengths, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    torch.manual_seed(1)
    first = order(7, 2)
    torch.manual_seed(2)
    assert order(7, 2) == first != order(7, 3)
    assert order(8, 2) != first
    assert sorted(first) == list(range(100))


def test_batches_are_of_similar_length_and_in_random_order():
    lengths = torch.randint(3, 60, (1003,), generator=torch.Generator().manual_seed(0)).tolist()
    indices = list(EpochSampler(8, lengths, seed=1))
    assert sorted(indices) == list(range(1003))
    batches = [[lengths[index] for index in indices[start : start + 8]] for start in range(0, 1003, 8)]
    assert np.mean([max(batch) - min(batch) for batch in batches[:-1]]) < 3
    longest = [max(batch) for batch in batches[:-1]]
    rising = np.mean([late > early for early, late in itertools.pairwise(longest)])
    assert 0.3 < rising < 0.7  # the stock order falls from start to end of each group of batches


def test_evaluation_reports_the_plain_cross_entropy(trainer, data):
    subject = trainer()
    _, dataset = data
    found = subject.evaluate()
    model = subject.model.eval()
    losses, correct = [], []
    for row in dataset.remove_columns(["idx", "length"]):
        single = {key: torch.tensor([value]) for key, value in row.items()}
        labels = single.pop("labels")
        with torch.no_grad():
            logits = model(**single).logits
        losses.append(F.cross_entropy(logits, labels).item())
        correct.append(logits.argmax().item() == labels.item())
    assert found["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert found["eval_accuracy"] == pytest.approx(np.mean(correct))
    assert subject.mean_parts() == {}
