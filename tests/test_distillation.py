"""Distillation: golden values of the released code, a plain loop, and SciPy."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

import reference
from contraprune.distillation import distillation_loss, span_distillation_loss


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_classification_equals_the_released_code(golden, temperature):
    case = f"cls_T{temperature}"
    values = np.load(golden / "kd_loss.npz")
    student = torch.from_numpy(values[f"{case}/student"]).requires_grad_()
    teacher = torch.from_numpy(values[f"{case}/teacher"])
    loss = distillation_loss(student, teacher, temperature=temperature)
    assert loss.item() == pytest.approx(values[f"{case}/loss"].item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient, torch.from_numpy(values[f"{case}/grad_student"]), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_spans_equal_the_released_code(golden, temperature):
    case = f"qa_T{temperature}"
    values = np.load(golden / "kd_loss.npz")
    names = ("student_start", "student_end", "teacher_start", "teacher_end")
    logits = {name: torch.from_numpy(values[f"{case}/{name}"]) for name in names}
    loss = span_distillation_loss(**logits, temperature=temperature)
    assert loss.item() == pytest.approx(values[f"{case}/loss"].item(), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_equals_the_loop_and_scipy(temperature):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    teacher = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    loss = distillation_loss(student, teacher, temperature=temperature).item()
    loop = reference.distillation(student.tolist(), teacher.tolist(), temperature)
    assert loss == pytest.approx(loop, rel=1e-12)
    p_student, p_teacher = (
        scipy.special.softmax(logits.numpy() / temperature, axis=-1) for logits in (student, teacher)
    )
    entropies = scipy.stats.entropy(p_teacher, p_student, axis=-1)
    assert loss == pytest.approx(temperature**2 * entropies.mean(), rel=1e-12)


def test_no_gradient_reaches_the_teacher_and_none_flows_when_both_agree():
    student = torch.randn(4, 3, requires_grad=True)
    teacher = student.detach().clone().requires_grad_()
    loss = distillation_loss(student, teacher, temperature=2.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad.abs().max() < 1e-6
    assert teacher.grad is None


def test_half_precision_logits_are_computed_in_float32():
    student, teacher = torch.randn(4, 3).bfloat16(), torch.randn(4, 3).bfloat16()
    loss = distillation_loss(student, teacher, temperature=2.0)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, distillation_loss(student.float(), teacher.float(), temperature=2.0))


def test_certain_teacher_and_student_stay_finite():
    student = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = distillation_loss(student, torch.tensor([[-1e4, 1e4]]), temperature=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert student.grad.isfinite().all()
