"""Contrastive losses: every golden value, loops over anchors and candidates, cross-entropy, and hard cases."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import reference
from contraprune.contrastive import source_loss, source_terms
from contraprune.distillation import distillation_loss
from contraprune.pooling import pool


def from_bank(bank, labels, drawn):
    """The candidate rows of the drawn examples, their ids and their labels; ``bank`` is (examples, R, dim)."""
    repeats = bank.shape[1]
    row_ids = drawn.repeat_interleave(repeats)
    return bank[drawn].flatten(0, 1), row_ids, None if labels is None else labels[row_ids]


def random_case(seed, *, batch=6, examples=12, repeats=1, dim=5, classes=3):
    """Arguments of ``source_loss``, float64, with an example that occurs twice in the batch."""
    generator = torch.Generator().manual_seed(seed)
    bank = torch.randn(examples, repeats, dim, dtype=torch.float64, generator=generator)
    labels = torch.randint(classes, (examples,), generator=generator)
    ids = torch.randint(examples, (batch,), generator=generator)
    ids[-1] = ids[0]
    drawn = torch.cat([ids, torch.randperm(examples, generator=generator)[: examples // 3]])
    anchors = 3 * torch.randn(batch, dim, dtype=torch.float64, generator=generator)
    return anchors.requires_grad_(), ids, labels[ids], *from_bank(F.normalize(bank, dim=-1), labels, drawn)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_released_code(golden, dtype):
    files = sorted((golden / "contrastive").glob("*.npz"))
    assert len(files) == 24
    suffix, tolerance = ("_f64", 1e-12) if dtype == torch.float64 else ("", 1e-6)
    for file in files:
        values = dict(np.load(file))
        mean = str(values["alignrep"]).startswith("mean")
        given = torch.from_numpy(values["all_output" if mean else "pooled_output"]).to(dtype).requires_grad_()
        anchors = pool(given, torch.from_numpy(values["attention_mask"]), pooling="mean") if mean else given
        ids = torch.from_numpy(values["idx"])
        supervised = "labels_bank" in values
        bank_labels = torch.from_numpy(values["labels_bank"]) if supervised else None
        drawn = torch.cat([ids, torch.from_numpy(values["extra_idx"])])
        loss = source_loss(
            anchors,
            ids,
            torch.from_numpy(values["labels"]) if supervised else None,
            *from_bank(torch.from_numpy(values["bank"]).to(dtype), bank_labels, drawn),
            temperature=values["temperature"].item(),
            unsupervised_weight=values["w_unsup"].item(),
            supervised_weight=values["w_sup"].item() if supervised else 0.0,
            normalization="released",
        )
        assert loss.item() == pytest.approx(values[f"loss{suffix}"].item(), rel=tolerance), file.name
        expected = torch.from_numpy(values[f"grad{suffix}"])
        (gradient,) = torch.autograd.grad(loss, given)
        assert (gradient - expected).norm() <= 1e-5 * expected.norm(), file.name


def test_total_loss_of_a_transformers_model_equals_the_released_code(golden):
    values = {key: torch.from_numpy(value) for key, value in np.load(golden / "tiny_bert_importance.npz").items()}
    student, teacher = (reference.golden_bert(golden, name) for name in ("student", "teacher"))
    inputs = {name: values[name][:8] for name in ("input_ids", "attention_mask", "token_type_ids")}
    output = student.bert(**inputs)
    anchors = pool(
        output.last_hidden_state,
        inputs["attention_mask"],
        pooling="cls",
        pooler_output=output.pooler_output,
    )
    logits, ids, labels = student.classifier(output.pooler_output), torch.arange(8), values["labels"]
    loss = 0.1 * F.cross_entropy(logits, labels[:8])
    loss = loss + 0.9 * distillation_loss(logits, teacher(**inputs).logits, temperature=1.0)
    for call, source in enumerate(("pretrained", "finetuned", "snaps")):
        drawn = torch.cat([ids, values[f"total_loss_first8/extra_idx_call{call}"]])
        loss = loss + source_loss(
            anchors,
            ids,
            labels[:8],
            *from_bank(values[f"bank_{source}"], labels, drawn),
            temperature=0.1,
            unsupervised_weight=0.3,
            supervised_weight=3.0,
            normalization="released",
        )
    assert loss.item() == pytest.approx(values["total_loss_first8"].item(), rel=1e-6)
    loss.backward()
    for name, parameter in {
        "classifier": student.classifier.weight,
        "pooler": student.bert.pooler.dense.weight,
        "layer0_query": student.bert.encoder.layer[0].attention.self.query.weight,
    }.items():
        expected = values[f"total_loss_first8/grad_{name}"]
        assert (parameter.grad - expected).norm() <= 1e-5 * expected.norm(), name


@pytest.mark.parametrize("normalization", ["supcon", "released"])
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_loops_over_anchors_and_candidates(normalization, repeats, seed):
    case = random_case(seed, repeats=repeats)
    arguments = {"temperature": 0.3, "normalization": normalization}
    for ours, loop in zip(
        source_terms(*case, **arguments), reference.contrastive_terms(*case, **arguments), strict=True
    ):
        assert ours.item() == pytest.approx(loop.item(), rel=1e-12)
        gradients = (torch.autograd.grad(value, case[0], retain_graph=True)[0] for value in (ours, loop))
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("normalization", ["supcon", "released"])
def test_without_labels_only_the_unsupervised_term_is_left(normalization):
    anchors, ids, labels, rows, row_ids, row_labels = random_case(0)
    arguments = {"temperature": 0.3, "normalization": normalization}
    expected, _ = reference.contrastive_terms(anchors, ids, None, rows, row_ids, None, **arguments)
    for no_labels in ((None, row_labels), (None, None), (labels, None)):
        loss = source_loss(
            anchors,
            ids,
            no_labels[0],
            rows,
            row_ids,
            no_labels[1],
            unsupervised_weight=0.5,
            supervised_weight=7.0,
            **arguments,
        )
        assert loss.item() == pytest.approx(0.5 * expected.item(), rel=1e-12)


def test_one_positive_per_anchor_is_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    anchors = torch.randn(4, 5, generator=generator)
    rows = F.normalize(torch.randn(7, 5, generator=generator), dim=-1)
    z, ids = F.normalize(anchors, dim=-1), torch.arange(4)
    logits = z @ torch.cat([z, rows]).T / 0.2
    logits[ids, ids] = -torch.inf
    terms = source_terms(anchors, ids, None, rows, torch.arange(7), None, temperature=0.2)
    torch.testing.assert_close(terms.unsupervised, F.cross_entropy(logits, 4 + ids))


def test_weights_switch_and_scale_the_terms():
    case = random_case(3)
    terms = source_terms(*case, temperature=0.3)
    for by_id, by_label in itertools.product((0.0, 0.3), (0.0, 3.0)):
        loss = source_loss(*case, temperature=0.3, unsupervised_weight=by_id, supervised_weight=by_label)
        assert loss.item() == pytest.approx((by_id * terms.unsupervised + by_label * terms.supervised).item())
        loss.backward()
    assert source_terms(*case, temperature=0.3, unsupervised=False).unsupervised == 0
    assert source_terms(*case, temperature=0.3, supervised=False).supervised == 0


def test_the_norm_of_anchors_does_not_matter_and_only_they_get_gradients():
    anchors, ids, labels, rows, row_ids, row_labels = random_case(4)
    rows.requires_grad_()
    arguments = {"temperature": 0.3, "unsupervised_weight": 1.0, "supervised_weight": 1.0}
    loss = source_loss(anchors, ids, labels, rows, row_ids, row_labels, **arguments)
    scaled = source_loss(7 * anchors, ids, labels, rows, row_ids, row_labels, **arguments)
    torch.testing.assert_close(loss, scaled)
    loss.backward()
    assert rows.grad is None
    assert anchors.grad.abs().sum() > 0


def test_an_anchor_without_positives_is_left_out_of_the_mean():
    anchors, ids, labels, rows, row_ids, row_labels = random_case(5, batch=3)
    ids, labels = torch.tensor([100, 101, int(row_ids[0])]), torch.tensor([50, 51, int(row_labels[0])])
    terms = source_terms(anchors, ids, labels, rows, row_ids, row_labels, temperature=0.3)
    z = F.normalize(anchors.detach(), dim=-1)
    log_p = F.log_softmax(z[2] @ torch.cat([z[:2], rows]).T / 0.3, dim=-1)
    pad = torch.zeros(2, dtype=torch.bool)
    assert terms.unsupervised.item() == pytest.approx(-log_p[torch.cat([pad, row_ids == ids[2]])].mean().item())
    assert terms.supervised.item() == pytest.approx(-log_p[torch.cat([pad, row_labels == labels[2]])].mean().item())


@pytest.mark.parametrize("normalization", ["supcon", "released"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("rows", [0, 4])
def test_no_positive_anywhere_is_zero_with_zero_gradient(normalization, batch, rows):
    anchors = torch.randn(batch, 5, requires_grad=True)
    loss = source_loss(
        anchors,
        torch.arange(batch),
        torch.arange(batch),
        F.normalize(torch.randn(rows, 5), dim=-1),
        100 + torch.arange(rows),
        100 + torch.arange(rows),
        temperature=0.1,
        unsupervised_weight=1.0,
        supervised_weight=1.0,
        normalization=normalization,
    )
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(anchors.grad, torch.zeros_like(anchors))


@pytest.mark.parametrize("normalization", ["supcon", "released"])
def test_certain_positives_give_zero_and_not_nan(normalization):
    anchors = torch.eye(2).requires_grad_()
    ids = torch.arange(2)
    loss = source_loss(
        anchors,
        ids,
        ids,
        torch.eye(2),
        ids,
        ids,
        temperature=1e-3,
        unsupervised_weight=1.0,
        supervised_weight=1.0,
        normalization=normalization,
    )
    loss.backward()
    assert loss.item() == 0
    assert anchors.grad.isfinite().all()


def test_only_the_released_normalisation_ignores_certain_pairs():
    anchors, ids = torch.eye(3)[:2], torch.tensor([0, 1])
    undecided = torch.tensor([0.0, 0.6, 0.8])  # a positive of anchor 1 and a stranger look the same
    rows, row_ids = torch.stack([torch.eye(3)[0], undecided, undecided]), torch.tensor([0, 1, 9])
    loss = {
        normalization: source_terms(
            anchors, ids, None, rows, row_ids, None, temperature=1e-3, normalization=normalization
        ).unsupervised.item()
        for normalization in ("supcon", "released")
    }
    assert loss == pytest.approx({"supcon": math.log(2) / 2, "released": math.log(2)})


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_half_precision_banks_and_anchors_are_computed_in_float32(stored):
    anchors, ids, labels, rows, row_ids, row_labels = random_case(6)
    weights = {"temperature": 0.1, "unsupervised_weight": 0.3, "supervised_weight": 3.0}
    anchors, rows = anchors.detach().to(stored), rows.to(stored)
    loss = source_loss(anchors, ids, labels, rows, row_ids, row_labels, **weights)
    exact = source_loss(anchors.float(), ids, labels, rows.float(), row_ids, row_labels, **weights)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, exact)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = source_loss(anchors.float(), ids, labels, rows, row_ids, row_labels, **weights)
    assert torch.equal(autocast, exact)


def test_neighbouring_large_ids_are_not_confused():
    big = 2**53  # float64 cannot tell it from the next integer
    anchors, rows = torch.eye(2), torch.eye(2)
    arguments = {"temperature": 1.0, "supervised": False}
    apart = source_terms(anchors, torch.tensor([big, 7]), None, rows, torch.tensor([big + 1, 8]), None, **arguments)
    assert apart.unsupervised == 0
    same = source_terms(anchors, torch.tensor([big, 7]), None, rows, torch.tensor([big, 8]), None, **arguments)
    assert same.unsupervised > 0


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation wrote to new memory."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        memory = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, torch.Tensor)}
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in memory:
            self.elements = max(self.elements, result.numel())
        return result


def test_nothing_is_larger_than_the_similarities():
    case = random_case(7, batch=16, examples=600, repeats=3, dim=40)
    with LargestTensor() as largest:
        source_loss(*case, temperature=0.1, unsupervised_weight=1.0, supervised_weight=1.0).backward()
    assert largest.elements == 16 * (16 + len(case[3]))
