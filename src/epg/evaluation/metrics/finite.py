"""No metric turns features that are not numbers into one that looks like a number."""

import numpy as np
from numpy.typing import NDArray


def refuse_nonfinite(features: NDArray[np.floating]) -> None:
    """Raises ValueError for features (N, D) that are not all finite."""
    wrong = ~np.isfinite(features).reshape(len(features), -1).all(1)
    if wrong.any():
        first = int(wrong.argmax())
        raise ValueError(f"features of {wrong.sum()} of {len(features)} images are not finite, first of image {first}")


def finite(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Features (N, D) as float64. Raises ValueError where they are not all finite."""
    refuse_nonfinite(features)
    return features.astype(np.float64)
