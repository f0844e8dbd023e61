"""Losses of every kind of task, against torch, scipy and loops over examples."""

import math

import pytest
import torch
import torch.nn.functional as F

from contraprune.objectives import Draws, Embedding, ManyLabels, OneLabel, Span, TokenLabels, Value
from contraprune.processes import Part

MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softly(values, temperature):
    return (values / temperature).softmax(-1)


def divergence(teacher, student):
    """KL of two probability vectors, element by element."""
    return sum(t * math.log(t / s) for t, s in zip(teacher.tolist(), student.tolist(), strict=True))


CASES = {
    "one_label": (OneLabel(), draw(3, 4), {"labels": torch.tensor([3, 0, 2])}),
    "value": (Value(), draw(3, 1), {"labels": torch.tensor([0.5, 4.0, 2.0])}),
    "many_labels": (ManyLabels(), draw(3, 5), {"labels": torch.tensor([[1, 0, 0, 1, 0], [0] * 5, [1] * 5])}),
    "token_labels": (
        TokenLabels(),
        draw(3, 6, 4),
        {"labels": torch.tensor([[-100, 1, 3, -100, -100, -100], [-100] * 6, [0, 1, 2, 3, -100, 2]])},
    ),
    "span": (
        Span(),
        draw(3, 6, 2),
        {"start_positions": torch.tensor([1, 0, 4]), "end_positions": torch.tensor([3, 0, 5])},
    ),
    "embedding": (Embedding(), draw(3, 7), {}),
}


@pytest.fixture(params=CASES)
def case(request):
    objective, outputs, targets = CASES[request.param]
    return objective, outputs, {"attention_mask": MASK, **targets}


def test_targets_are_named(case):
    objective, _, batch = case
    assert set(batch) == {"attention_mask", *objective.targets}


def test_one_label_smoothed():
    objective, logits, batch = CASES["one_label"]
    smooth = torch.full((3, 4), 0.05) + 0.8 * F.one_hot(batch["labels"], 4)
    expected = -(smooth * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(objective.loss(logits, batch, label_smoothing=0.2), expected)


def test_value_is_the_mean_squared_error():
    objective, outputs, batch = CASES["value"]
    errors = [(a - b) ** 2 for a, b in zip(outputs[:, 0].tolist(), batch["labels"].tolist(), strict=True)]
    assert objective.loss(outputs, batch).item() == pytest.approx(sum(errors) / 3, rel=1e-6)


def test_many_labels_are_so_many_coins():
    objective, logits, batch = CASES["many_labels"]
    losses = [
        math.log1p(math.exp(-logit if label else logit))
        for logit, label in zip(logits.flatten().tolist(), batch["labels"].flatten().tolist(), strict=True)
    ]
    assert objective.loss(logits, batch).item() == pytest.approx(sum(losses) / 15, rel=1e-5)


def test_many_labels_distil_each_coin():
    objective, logits, batch = CASES["many_labels"]
    teacher = draw(3, 5, seed=1)
    total = 0.0
    for a, b in zip(teacher.flatten(), logits.flatten(), strict=True):
        coins = [torch.stack([p, 1 - p]) for p in (torch.sigmoid(a / 2), torch.sigmoid(b / 2))]
        total += 4 * divergence(*coins) / 15
    assert objective.distillation(logits, teacher, batch, temperature=2.0).item() == pytest.approx(total, rel=1e-5)


def test_token_labels_average_over_labelled_tokens():
    objective, logits, batch = CASES["token_labels"]
    teacher = draw(3, 6, 4, seed=1)
    losses, divergences = [], []
    for row in range(3):
        for token in range(6):
            label = int(batch["labels"][row, token])
            if label != -100:
                losses.append(-math.log(softly(logits[row, token], 1)[label]))
                divergences.append(9 * divergence(softly(teacher[row, token], 3), softly(logits[row, token], 3)))
    assert objective.loss(logits, batch).item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    found = objective.distillation(logits, teacher, batch, temperature=3.0).item()
    assert found == pytest.approx(sum(divergences) / len(divergences), rel=1e-5)


def test_a_batch_without_a_labelled_token_has_no_loss():
    logits = draw(1, 6, 4).requires_grad_()
    batch = {"labels": torch.full((1, 6), -100), "attention_mask": MASK[:1]}
    objective = TokenLabels()
    losses = [
        objective.loss(logits, batch),
        objective.distillation(logits, draw(1, 6, 4), batch, temperature=1.0),
        objective.sampled_loss(logits, batch, temperature=1.0, draws=Draws(torch.Generator())),
    ]
    assert [loss.item() for loss in losses] == [0, 0, 0]
    torch.stack(losses).sum().backward()
    assert not logits.grad.any()


def test_span_averages_start_and_end_over_real_positions():
    objective, logits, batch = CASES["span"]
    teacher = draw(3, 6, 2, seed=1)
    losses, divergences = [], []
    for row in range(3):
        real = MASK[row].bool()
        for side, name in enumerate(objective.targets):
            position = int(batch[name][row])
            losses.append(-math.log(softly(logits[row, real, side], 1)[position]))
            soft = [softly(values[row, real, side], 2) for values in (teacher, logits)]
            divergences.append(4 * divergence(*soft))
    batch = {**batch, "attention_mask": MASK}
    assert objective.loss(logits, batch).item() == pytest.approx(sum(losses) / 6, rel=1e-5)
    found = objective.distillation(logits, teacher, batch, temperature=2.0).item()
    assert found == pytest.approx(sum(divergences) / 6, rel=1e-4)


def test_embedding_compares_directions():
    objective, vectors, _ = CASES["embedding"]
    teacher = draw(3, 7, seed=1)
    cosines = [
        sum(a * b for a, b in zip(x.tolist(), y.tolist(), strict=True)) / (x.norm() * y.norm()).item()
        for x, y in zip(vectors, teacher, strict=True)
    ]
    found = objective.distillation(vectors, teacher, {}, temperature=1.0).item()
    assert found == pytest.approx(1 - sum(cosines) / 3, rel=1e-5)
    scaled = objective.distillation(3 * vectors, teacher, {}, temperature=1.0).item()
    assert scaled == pytest.approx(found, rel=1e-5)


def test_a_model_equal_to_its_teacher_has_nothing_to_distil(case):
    objective, outputs, batch = case
    outputs = outputs.clone().requires_grad_()
    loss = objective.distillation(outputs, outputs.detach().clone(), batch, temperature=2.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(outputs.grad, torch.zeros_like(outputs), rtol=0, atol=1e-6)


def test_padding_changes_nothing(case):
    objective, outputs, batch = case
    if not objective.per_token:
        pytest.skip("outputs per example")
    longer = {"attention_mask": F.pad(MASK, (0, 3)), **{name: batch[name] for name in objective.targets}}
    if "labels" in longer:
        longer["labels"] = F.pad(batch["labels"], (0, 3), value=-100)
    teacher = draw(*outputs.shape, seed=1)
    padded, padded_teacher = (F.pad(values, (0, 0, 0, 3), value=7.0) for values in (outputs, teacher))
    torch.testing.assert_close(objective.loss(padded, longer), objective.loss(outputs, batch))
    torch.testing.assert_close(
        objective.distillation(padded, padded_teacher, longer, temperature=2.0),
        objective.distillation(outputs, teacher, batch, temperature=2.0),
    )


def test_sampled_targets_follow_the_predictions(case):
    """The mean gradient of the loss at targets drawn from the model's own predictions is zero."""
    objective, outputs, batch = case
    draws = Draws(torch.Generator().manual_seed(0))
    outputs = outputs.clone().requires_grad_()
    gradients = []
    for _ in range(4000):
        loss = objective.sampled_loss(outputs, batch, temperature=1.0, draws=draws)
        (gradient,) = torch.autograd.grad(loss, outputs)
        gradients.append(gradient)
    stacked = torch.stack(gradients)
    assert stacked.abs().mean() > 0.01
    error = stacked.std(dim=0) / math.sqrt(len(gradients))
    assert (stacked.mean(dim=0).abs() <= 5 * error + 1e-7).all()


def test_a_seed_draws_the_same(case):
    objective, outputs, batch = case
    losses = [
        objective.sampled_loss(outputs, batch, temperature=2.0, draws=Draws(torch.Generator().manual_seed(seed))).item()
        for seed in (1, 1)
    ]
    assert losses[0] == losses[1]


def test_parts_of_a_batch_draw_what_the_whole_draws(case):
    objective, outputs, batch = case
    if isinstance(objective, TokenLabels):
        pytest.skip("its rows are tokens")

    def loss(rows, part):
        chosen = {name: column[rows] for name, column in batch.items()}
        draws = Draws(torch.Generator().manual_seed(3), part)
        return objective.sampled_loss(outputs[rows], chosen, temperature=1.0, draws=draws)

    first = loss(slice(0, 2), Part(first=0, size=2, of=3))
    last = loss(slice(2, 3), Part(first=2, size=1, of=3))
    torch.testing.assert_close(2 / 3 * first + 1 / 3 * last, loss(slice(0, 3), None))
