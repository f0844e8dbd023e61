"""Distillation of a teacher's logits."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def distillation_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), averaged over the batch.

    The factor T² keeps the size of the gradient independent of the temperature. Computed in float32 at least,
    also under autocast; the teacher gets no gradient. With a single class (regression) it is zero.

    Source: Hinton et al. 2015 (arXiv 1503.02531, section 2).
    """
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    student = F.log_softmax(student_logits.to(dtype) / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.detach().to(dtype) / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def span_distillation_loss(
    student_start: Float[Tensor, "batch length"],
    student_end: Float[Tensor, "batch length"],
    teacher_start: Float[Tensor, "batch length"],
    teacher_end: Float[Tensor, "batch length"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """The mean of the distillation losses of the start and end positions of extractive question answering.

    Positions play the part of the classes in ``distillation_loss``.
    """
    start = distillation_loss(student_start, teacher_start, temperature=temperature)
    end = distillation_loss(student_end, teacher_end, temperature=temperature)
    return (start + end) / 2
