"""What every extractor of features offers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Extractor:
    """A network that turns uint8 images (N, C, H, W) into float32 features on the CPU."""

    name: str
    """inception, efficientnet, dinov2, clip, classifier or encoder: numbers of different extractors never compare."""
    sha256: str
    """Of the weights: numbers of other weights do not compare either."""
    preprocessing: str
    """In words: resize, range, channels."""
    compute: Callable[[Tensor], dict[str, Tensor]] = field(repr=False)
    """uint8 (N, C, H, W) on the CPU -> FEATURES and, where there are any, SPATIAL and LOGITS, float32 on the CPU."""
    shape: tuple[int, int, int] | None = None
    """Channels, height and width of the only images it takes; None takes any."""
    note: str = ""
    """What every receipt should say: that the weights are not the published ones."""
    class_names: tuple[str, ...] = ()
    """What the logits stand for, where these are the classes of the data set."""
    held_out_accuracy: float | None = None
    """Of a classifier, on real images it has not seen."""

    def describe(self) -> dict[str, Any]:
        """For receipts."""
        told = {"sha256": self.sha256, "preprocessing": self.preprocessing, "held_out_accuracy": self.held_out_accuracy}
        return {name: value for name, value in told.items() if value is not None}
