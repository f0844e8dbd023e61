"""The settings of pruning: what is removed, by which criterion, and when."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from contraprune.patterns import NOfM, Pattern, parse_blocks, parse_n_of_m
from contraprune.settings import require, setting

DEFAULT_DENSITY = 0.1


@dataclass(frozen=True, kw_only=True)
class PruningConfig:
    """What is removed, by which criterion, and when.

    ``density`` stays None where ``final_penalty`` is given instead, and with taylor, whose stages may say it; else it
    becomes its default.
    """

    _argument_group_name: ClassVar[str] = "pruning"

    method: str = setting(
        "movement",
        "What is removed, and by which criterion. Single weights by a ranking: movement (learned scores), magnitude, "
        "fisher (diagonal-Fisher saliency), smp (learned scores alone; the weights stay the starting model's). Single "
        "weights by a threshold under a penalty: soft_movement, l0. Whole heads and neurons: taylor.",
    )
    density: float | None = setting(
        None,
        "Fraction of the encoder's weights to keep, in (0, 1]. Default: 0.1, or N/M with --pattern N:M, or what the "
        "last of --stages leaves; none with --final_penalty.",
    )
    scope: Literal["local", "global"] = setting(
        "local", "Rankings: keep that fraction of each matrix (local) or of all matrices together (global)."
    )
    pattern: str | None = setting(
        None,
        "N:M, such as 2:4: at most N of every M consecutive weights of a row (along the input) stay. While "
        "the density falls to N/M, groups are thinned in order of importance; a --density below N/M keeps the best of "
        "what the pattern allows, one above it is refused.",
    )
    block: str | None = setting(
        None,
        "RxC, such as 4x1: blocks of R outputs times C inputs stay or go as one, by the sum of their importance (mean "
        "of their scores with soft_movement and l0).",
    )
    start_from: Literal["teacher", "pretrained"] = setting(
        "teacher", "Weights the pruning starts from: the fine-tuned teacher's or the pre-trained model's."
    )
    freeze_embeddings: bool = setting(
        False, "Leave the word embeddings as they are: words that the training data lacks then stay where they were."
    )
    dropout: float | None = setting(
        None,
        "Dropout of the model while it is pruned, in [0, 1). Default: 0 with taylor, else what its config.json says.",
    )
    score_init: Literal["saliency", "magnitude", "zero"] = setting(
        "saliency",
        "Learned scores: what they start from: the rank of the weight's diagonal-Fisher saliency under the starting "
        "model, the rank of its magnitude, or zero (Sanh et al. 2020; for runs of tens of thousands of steps).",
    )
    score_learning_rate: float | None = setting(
        None,
        "Learned scores: their peak learning rate. Default: 1e-3; smp 1e-2; l0 50 divided by the steps of the run; "
        "with --final_penalty 1e-2.",
    )
    final_penalty: float | None = setting(
        None,
        "soft_movement, l0: the final weight of the penalty, instead of --density: the density is then what comes of "
        "it. Default: the weight is steered so that the run ends at --density.",
    )
    final_threshold: float | None = setting(
        None, "soft_movement: weights stay whose sigmoid(score) is above this at the end, in (0, 1). Default: 0.1."
    )
    regularizer: Literal["l1", "l0"] = setting(
        "l1",
        "soft_movement: the penalty: the mean of sigmoid(score) (l1), or of the probability that a hard-concrete gate "
        "with that score is open (l0).",
    )
    fisher_decay: float = setting(0.99, "Fisher: decay per step of the moving average of squared gradients.")
    prune_warmup: float = setting(0.1, "Fraction of the run before the density starts to fall from 1.")
    prune_cooldown: float = setting(0.3, "Fraction of the run, at its end, that trains at the final density.")
    freeze_masks: float = setting(0.15, "Fraction of the run, at its end, in which the masks no longer change.")

    def __post_init__(self) -> None:
        self._check_shape()
        if self.final_penalty is not None:
            require(self.density is None, "final_penalty", "only without --density", self.final_penalty)
            require(self.final_penalty > 0, "final_penalty", "a positive number", self.final_penalty)
        elif self.density is None and self.method != "taylor":
            density = self.shape.density if isinstance(self.shape, NOfM) else DEFAULT_DENSITY
            object.__setattr__(self, "density", density)
        require(self.density is None or 0 < self.density <= 1, "density", "a fraction in (0, 1]", self.density)
        if isinstance(self.shape, NOfM):
            most = self.shape.density
            expected = f"at most {most:g} with --pattern {self.pattern}"
            require(self.density is None or self.density <= most, "density", expected, self.density)
        dropout = self.dropout
        require(dropout is None or 0 <= dropout < 1, "dropout", "a probability in [0, 1)", dropout)
        rate = self.score_learning_rate
        require(rate is None or rate > 0, "score_learning_rate", "a positive number", rate)
        threshold = self.final_threshold
        require(threshold is None or 0 < threshold < 1, "final_threshold", "a number in (0, 1)", threshold)
        require(0 <= self.fisher_decay < 1, "fisher_decay", "a number in [0, 1)", self.fisher_decay)
        self._check_phases()

    @property
    def shape(self) -> Pattern | None:
        """What the masks have to obey beside the density."""
        if self.pattern is not None:
            return parse_n_of_m(self.pattern)
        return None if self.block is None else parse_blocks(self.block)

    def _check_shape(self) -> None:
        both = self.pattern is not None and self.block is not None
        require(not both, "block", "only one of --pattern and --block", self.block)
        flag, expected = "pattern", "N:M with 0 < N < M, such as 2:4"
        if self.block is not None:
            flag, expected = "block", "RxC, rows x columns of two weights or more, such as 4x1"
        text = getattr(self, flag)
        require(text is None or self.shape is not None, flag, expected, text)

    def _check_phases(self) -> None:
        for flag in ("prune_warmup", "prune_cooldown", "freeze_masks"):
            require(0 <= getattr(self, flag) <= 1, flag, "a fraction of the run in [0, 1]", getattr(self, flag))
        both = self.prune_warmup + self.prune_cooldown
        require(both <= 1, "prune_warmup", "prune_warmup + prune_cooldown of at most 1", both)
        require(
            self.freeze_masks <= self.prune_cooldown,
            "freeze_masks",
            f"at most prune_cooldown ({self.prune_cooldown}): masks freeze at the final density",
            self.freeze_masks,
        )
