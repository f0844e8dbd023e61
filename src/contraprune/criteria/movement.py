"""Movement pruning (Sanh et al. 2020): scores learned by gradient, straight through the mask."""

from contraprune.criteria.learned import LearnedRanking


class Movement(LearnedRanking):
    """Weights and scores learn together: a weight's score rises while training moves it away from zero.

    The paper starts every score at zero, so that the first masks are noise; that needs tens of thousands of steps
    to recover. Started from a saliency, the first masks are sensible ones.
    """
