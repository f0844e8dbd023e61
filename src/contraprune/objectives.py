"""What a kind of task trains its outputs on: targets, a teacher's outputs, or targets drawn from the model itself.

Outputs are float32: ``(batch, width)``, or ``(batch, length, width)`` of a head that answers for every token. A
batch is what the model read (``attention_mask`` is used here) with its target columns. Every loss is a mean over
the examples (or tokens) of the batch, so that it does not depend on how much padding there is.
"""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from contraprune.distillation import distillation_loss, span_distillation_loss
from contraprune.processes import Part

Batch = Mapping[str, Tensor]

# Stands for minus infinity where a position cannot be chosen, and keeps differences of log-probabilities finite.
_IMPOSSIBLE = -1e4


@dataclass(frozen=True)
class Draws:
    """Random numbers for the rows of a batch; those of a part of a batch are the rows of what the whole would draw.

    Attributes:
        generator: of the CPU, whatever the device of the outputs.
        part: of a batch that processes share; None where this one has the whole. Rows are then examples.
    """

    generator: torch.Generator
    part: Part | None = None

    def uniform(self, like: Tensor) -> Tensor:
        """Between zero and one, of the shape of ``like``, float32."""
        return self._draw(torch.rand, like).to(like.device)

    def normal(self, like: Tensor) -> Tensor:
        """With mean zero and variance one, of the shape and type of ``like``."""
        return self._draw(torch.randn, like).to(like.device, like.dtype)

    def _draw(self, draw: Callable[..., Tensor], like: Tensor) -> Tensor:
        if self.part is None:
            return draw(like.shape, generator=self.generator)
        whole = draw((self.part.of, *like.shape[1:]), generator=self.generator)
        return whole[self.part.first :][: self.part.size]


class Objective(abc.ABC):
    """The losses of one kind of task.

    Attributes:
        targets: the columns of a batch that hold the targets; none where a model learns from its teacher alone.
        per_token: whether outputs are ``(batch, length, width)``.
        smooths_labels: whether ``label_smoothing`` means anything.
        softens: whether a ``temperature`` means anything.
    """

    targets: ClassVar[tuple[str, ...]] = ("labels",)
    per_token: ClassVar[bool] = False
    smooths_labels: ClassVar[bool] = False
    softens: ClassVar[bool] = True

    @abc.abstractmethod
    def loss(self, outputs: Tensor, batch: Batch, *, label_smoothing: float = 0.0) -> Float[Tensor, ""]:
        """The loss against the targets of the batch."""

    @abc.abstractmethod
    def distillation(self, outputs: Tensor, teacher: Tensor, batch: Batch, *, temperature: float) -> Float[Tensor, ""]:
        """The loss against a teacher's outputs of the same shape; the teacher gets no gradient."""

    @abc.abstractmethod
    def sampled_loss(self, outputs: Tensor, batch: Batch, *, temperature: float, draws: Draws) -> Float[Tensor, ""]:
        """The loss against targets drawn from the model's own, softened predictions.

        The squared gradient of its expectation is the diagonal of the Fisher information; unlike the gradient
        at the true targets it does not vanish where the model fits the training set.

        Args:
            temperature: divides the logits, for the draw and in the loss; without effect on real values.
            draws: where the random numbers come from.
        """


@final
class OneLabel(Objective):
    """One class per example; outputs ``(batch, classes)`` are logits, ``labels`` is ``(batch,)`` long."""

    smooths_labels = True

    def loss(self, outputs: Tensor, batch: Batch, *, label_smoothing: float = 0.0) -> Float[Tensor, ""]:
        return F.cross_entropy(outputs, batch["labels"], label_smoothing=label_smoothing)

    def distillation(self, outputs: Tensor, teacher: Tensor, batch: Batch, *, temperature: float) -> Float[Tensor, ""]:
        return distillation_loss(outputs, teacher, temperature=temperature)

    def sampled_loss(self, outputs: Tensor, batch: Batch, *, temperature: float, draws: Draws) -> Float[Tensor, ""]:
        softened = outputs / temperature
        return F.cross_entropy(softened, _drawn_classes(softened, draws))


@final
class Value(Objective):
    """One real number per example (regression); outputs ``(batch, 1)``, ``labels`` is ``(batch,)`` float.

    The temperature is without effect: nothing is softened.
    """

    softens = False

    def loss(self, outputs: Tensor, batch: Batch, *, label_smoothing: float = 0.0) -> Float[Tensor, ""]:
        return F.mse_loss(outputs.squeeze(-1), batch["labels"].to(outputs.dtype))

    def distillation(self, outputs: Tensor, teacher: Tensor, batch: Batch, *, temperature: float) -> Float[Tensor, ""]:
        return F.mse_loss(outputs, teacher.detach())

    def sampled_loss(self, outputs: Tensor, batch: Batch, *, temperature: float, draws: Draws) -> Float[Tensor, ""]:
        """Targets are normal around the prediction, with variance one."""
        return F.mse_loss(outputs, outputs.detach() + draws.normal(outputs)) / 2


@final
class ManyLabels(Objective):
    """Any number of labels per example; outputs ``(batch, labels)`` are logits, ``labels`` zeros and ones alike."""

    def loss(self, outputs: Tensor, batch: Batch, *, label_smoothing: float = 0.0) -> Float[Tensor, ""]:
        return F.binary_cross_entropy_with_logits(outputs, batch["labels"].to(outputs.dtype))

    def distillation(self, outputs: Tensor, teacher: Tensor, batch: Batch, *, temperature: float) -> Float[Tensor, ""]:
        """T² · KL of one Bernoulli distribution per label, averaged over labels and examples."""
        two_sided = (
            torch.stack([logits, torch.zeros_like(logits)], dim=-1).flatten(0, -2) for logits in (outputs, teacher)
        )
        return distillation_loss(*two_sided, temperature=temperature)

    def sampled_loss(self, outputs: Tensor, batch: Batch, *, temperature: float, draws: Draws) -> Float[Tensor, ""]:
        softened = outputs / temperature
        targets = draws.uniform(softened) < softened.detach().sigmoid()
        return F.binary_cross_entropy_with_logits(softened, targets.to(softened.dtype))


@final
class TokenLabels(Objective):
    """One class per token; outputs ``(batch, length, classes)`` are logits, ``labels`` is ``(batch, length)`` long.

    Tokens labelled -100 (padding, special tokens, later pieces of a word) count nowhere.
    """

    per_token = True
    smooths_labels = True

    def loss(self, outputs: Tensor, batch: Batch, *, label_smoothing: float = 0.0) -> Float[Tensor, ""]:
        logits, labels = _labelled(outputs, batch), batch["labels"][batch["labels"] != -100]
        total = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="sum")
        return total / max(1, len(labels))

    def distillation(self, outputs: Tensor, teacher: Tensor, batch: Batch, *, temperature: float) -> Float[Tensor, ""]:
        student = _labelled(outputs, batch)
        if not len(student):
            return student.sum()
        return distillation_loss(student, _labelled(teacher, batch), temperature=temperature)

    def sampled_loss(self, outputs: Tensor, batch: Batch, *, temperature: float, draws: Draws) -> Float[Tensor, ""]:
        softened = _labelled(outputs, batch) / temperature
        total = F.cross_entropy(softened, _drawn_classes(softened, draws), reduction="sum")
        return total / max(1, len(softened))


def _labelled(outputs: Float[Tensor, "batch length classes"], batch: Batch) -> Float[Tensor, "tokens classes"]:
    return outputs[batch["labels"] != -100]


@final
class Span(Objective):
    """A start and an end position in the text; outputs ``(batch, length, 2)`` are the logits of both.

    ``start_positions`` and ``end_positions`` are ``(batch,)`` long. Positions play the part of classes; padding
    cannot be chosen, so that the loss does not depend on how much of it there is.
    """

    targets = ("start_positions", "end_positions")
    per_token = True

    def loss(self, outputs: Tensor, batch: Batch, *, label_smoothing: float = 0.0) -> Float[Tensor, ""]:
        logits = self._possible(outputs, batch)
        losses = [F.cross_entropy(logits[..., side], batch[name]) for side, name in enumerate(self.targets)]
        return torch.stack(losses).mean()

    def distillation(self, outputs: Tensor, teacher: Tensor, batch: Batch, *, temperature: float) -> Float[Tensor, ""]:
        students, teachers = self._possible(outputs, batch), self._possible(teacher, batch)
        return span_distillation_loss(
            students[..., 0], students[..., 1], teachers[..., 0], teachers[..., 1], temperature=temperature
        )

    def sampled_loss(self, outputs: Tensor, batch: Batch, *, temperature: float, draws: Draws) -> Float[Tensor, ""]:
        softened = self._possible(outputs, batch) / temperature
        losses = [F.cross_entropy(side, _drawn_classes(side, draws)) for side in softened.unbind(-1)]
        return torch.stack(losses).mean()

    @staticmethod
    def _possible(outputs: Tensor, batch: Batch) -> Tensor:
        return outputs.masked_fill(batch["attention_mask"].unsqueeze(-1) == 0, _IMPOSSIBLE)


@final
class Embedding(Objective):
    """A vector per example, of which only the direction counts; there are no targets but the teacher's."""

    targets = ()
    softens = False

    def loss(self, outputs: Tensor, batch: Batch, *, label_smoothing: float = 0.0) -> Float[Tensor, ""]:
        """Zero: without a teacher there is nothing to learn from."""
        return outputs.sum() * 0

    def distillation(self, outputs: Tensor, teacher: Tensor, batch: Batch, *, temperature: float) -> Float[Tensor, ""]:
        """One minus the cosine similarity."""
        return (1 - F.cosine_similarity(outputs, teacher.detach(), dim=-1)).mean()

    def sampled_loss(self, outputs: Tensor, batch: Batch, *, temperature: float, draws: Draws) -> Float[Tensor, ""]:
        """Targets are normal around the unit vector, with variance one in each direction."""
        unit = F.normalize(outputs, dim=-1)
        return F.mse_loss(unit, unit.detach() + draws.normal(unit), reduction="sum") / (2 * len(unit))


def _drawn_classes(logits: Float[Tensor, "rows classes"], draws: Draws) -> Tensor:
    """One class per row, drawn from the softmax of its logits."""
    uniform = draws.uniform(logits[:, :1])
    return (logits.detach().softmax(-1).cumsum(-1) < uniform).sum(-1).clamp_max(logits.shape[-1] - 1)
