"""Inception score (Salimans et al. 2016)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from epg.evaluation.metrics.finite import finite

SPLIT = 5000  # images, as in ADM's evaluator


@dataclass(frozen=True)
class Score:
    """Mean of the scores of consecutive splits, and those scores."""

    value: float
    splits: tuple[float, ...]


def inception_score(logits: NDArray[np.floating], split: int = SPLIT) -> Score:
    """`exp(E KL(p(y|x) || p(y)))` of logits (N, classes), averaged over consecutive splits as ADM's evaluator does.

    ADM (and TensorFlow's Inception before it) uses the logits *without* their bias. The last split may be smaller;
    50,000 images make ten equal ones. In the order of the images: sorting them by class would change the number.
    Raises ValueError for logits that are not finite.
    """
    scores = []
    for start in range(0, len(logits), split):
        part = finite(logits[start : start + split])
        log_p = part - part.max(1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
        p = np.exp(log_p)
        marginal = p.mean(0)
        # Where a class never occurs, p is 0 for every image and the term vanishes.
        log_marginal = np.log(np.where(marginal > 0, marginal, 1.0))
        scores.append(float(np.exp((p * (log_p - log_marginal)).sum(1).mean())))
    return Score(float(np.mean(scores)), tuple(scores))
