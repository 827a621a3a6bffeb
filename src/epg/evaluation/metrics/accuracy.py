"""How often a class-conditional sample is recognised as its class."""

import numpy as np
from numpy.typing import NDArray

from epg.evaluation.metrics.finite import refuse_nonfinite
from epg.evaluation.receipt import ClassAccuracy


def recognised(
    logits: NDArray[np.float32], labels: NDArray[np.int64], class_names: tuple[str, ...]
) -> tuple[float, list[ClassAccuracy]]:
    """Share of samples (N, classes), (N,) that a classifier recognises; in all and for every class that was sampled.

    Raises ValueError for logits that are not finite.
    """
    refuse_nonfinite(logits)
    predicted = logits.argmax(1)
    classes = []
    for label in np.unique(labels):
        named = predicted[labels == label]
        wrong = np.bincount(named[named != label], minlength=len(class_names))
        classes.append(
            ClassAccuracy(
                label=int(label),
                name=class_names[label],
                count=len(named),
                accuracy=float((named == label).mean()),
                most_often_taken_for=class_names[wrong.argmax()] if wrong.any() else "",
            )
        )
    return float((predicted == labels).mean()), classes
