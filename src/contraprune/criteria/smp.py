"""Static model pruning (SMP; Jiang et al. 2022, arXiv 2210.06210): only the masks learn."""

from typing import ClassVar

from contraprune.criteria.learned import LearnedRanking


class StaticModelPruning(LearnedRanking):
    """The result is the starting model's weights times masks: scores and the task's head learn, nothing else does.

    Scores have the learning rate of a run that has nothing else to learn: ten times that of movement.
    """

    trains_weights: ClassVar[bool] = False

    def score_learning_rate(self, steps: int) -> float:
        return self.config.score_learning_rate or 1e-2
