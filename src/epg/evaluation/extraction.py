"""Features of many images, on all processes, exactly the same whatever the batch size and the number of processes.

The network always sees the same blocks of 32 consecutive images, because floating-point results may depend on what
an image is computed together with. Processes take turns, and the first one receives every feature in the order of the
images: everything that follows is computed there.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from epg.distributed import failing_together, rank, world_size
from epg.errors import ArtefactError, UserError
from epg.evaluation.extractors.extractor import Extractor
from epg.evaluation.sources import ImageSource, Progress

BLOCK = 32  # images that a network sees at once

Outputs = Mapping[str, NDArray[np.float32]]
"""By output (features, spatial, logits): (N, D)."""


@torch.no_grad()
def extract(
    source: ImageSource,
    extractors: Sequence[Extractor],
    receive: Callable[[str, Outputs], None],
    *,
    batch_size: int = BLOCK,
    on_progress: Progress | None = None,
) -> str | None:
    """Computes the features of every image; all processes must call it.

    Args:
        receive: called on the first process with the name of an extractor and its outputs for the next images, in
            their order.
        batch_size: images that a process reads (or samples) at once, rounded up to whole blocks.

    Returns:
        On the first process, a sha256 over the pixels of all images in order; None on the others.

    Raises UserError for images of another size than an extractor takes, ArtefactError for features that are not finite.
    """
    with failing_together():
        check_shapes(source, extractors)
    unit = BLOCK * -(-batch_size // BLOCK)
    pixels = hashlib.sha256()
    for first in range(0, source.count, unit * world_size()):
        start = min(first + rank() * unit, source.count)
        stop = min(start + unit, source.count)
        mine: dict[str, Any] = {}
        with failing_together():
            if start < stop:
                images = source.read(start, stop)
                mine = {"pixels": _hashes(images)} | {e.name: _blockwise(e, images) for e in extractors}
        for part in gather(mine):
            if part:
                pixels.update(part["pixels"])
                for extractor in extractors:
                    receive(extractor.name, part[extractor.name])
        if on_progress:
            on_progress(min(first + unit * world_size(), source.count), source.count)
    return pixels.hexdigest() if rank() == 0 else None


def check_shapes(source: ImageSource, extractors: Sequence[Extractor]) -> None:
    """Raises UserError for images of another size or colour than an extractor takes."""
    for extractor in extractors:
        if extractor.shape not in (None, source.shape):
            raise UserError(
                f"--features {extractor.name}: takes {_said(extractor.shape)} images, but those of "
                f"{source.describe().get('name', 'this source')} are {_said(source.shape)}. Choose other features, or "
                "images of that size"
            )


def _said(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    return f"{width}x{height} {'grey' if channels == 1 else 'colour'}"


def gather(mine: Any) -> list[Any]:
    """What every process has, in the order of their ranks, on the first one; an empty list on the others."""
    if world_size() == 1:
        return [mine]
    received = [None] * world_size() if rank() == 0 else None
    dist.gather_object(mine, received)
    return received or []


def _blockwise(extractor: Extractor, images: Tensor) -> dict[str, NDArray[np.float32]]:
    # On a GPU, convolutions would otherwise be rounded to 10 bits and chosen by timing.
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        parts = [extractor.compute(block) for block in images.split(BLOCK)]
    outputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if not all(bool(values.isfinite().all()) for values in outputs.values()):
        raise ArtefactError(f"--features {extractor.name}: its features are not finite; are these the right weights?")
    return {name: values.numpy() for name, values in outputs.items()}


def _hashes(images: Tensor) -> bytes:
    """32 bytes for each image."""
    return b"".join(hashlib.sha256(image.contiguous().numpy().data).digest() for image in images)


class Collector:
    """Keeps every output of every extractor: for samples, of which all metrics are computed."""

    def __init__(self) -> None:
        self._parts: dict[str, dict[str, list[NDArray[np.float32]]]] = {}

    def __call__(self, extractor: str, outputs: Outputs) -> None:
        parts = self._parts.setdefault(extractor, {name: [] for name in outputs})
        for name, values in outputs.items():
            parts[name].append(values)

    def outputs(self, extractor: str) -> dict[str, NDArray[np.float32]]:
        return {name: np.concatenate(values) for name, values in self._parts[extractor].items()}
