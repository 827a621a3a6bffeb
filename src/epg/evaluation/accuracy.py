"""How often a class-conditional sample is recognised as its class."""

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from epg.evaluation.metrics.finite import refuse_nonfinite
from epg.evaluation.receipt import ClassAccuracy, Number


def accuracy(
    logits: NDArray[np.float32], labels: Tensor, class_names: tuple[str, ...]
) -> tuple[Number, list[ClassAccuracy]]:
    """Share of samples (N, classes), (N,) that a classifier recognises; in all and for every class that was sampled.

    Raises ValueError for logits that are not finite.
    """
    refuse_nonfinite(logits)
    predicted, wanted = logits.argmax(1), labels.numpy()
    right = predicted == wanted
    classes = []
    for label in np.unique(wanted):
        of_class = wanted == label
        wrong = np.bincount(predicted[of_class & ~right], minlength=len(class_names))
        classes.append(
            ClassAccuracy(
                label=int(label),
                name=class_names[label],
                count=int(of_class.sum()),
                accuracy=float(right[of_class].mean()),
                most_often_taken_for=class_names[wrong.argmax()] if wrong.any() else "",
            )
        )
    value = float(right.mean())
    error = math.sqrt(value * (1 - value) / len(right))
    number = Number(name="recognised (classifier)", value=value, error=error, error_from="binomial", better="higher")
    return number, classes
