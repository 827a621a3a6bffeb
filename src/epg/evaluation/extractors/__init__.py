"""Networks whose features images are compared in: Inception for FID, others by name, and in-domain ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from epg.data.loading.base import ImageDataset
from epg.errors import UserError
from epg.evaluation.extractors.extractor import Extractor
from epg.evaluation.sources import Progress

IN_DOMAIN = ("classifier", "encoder", "random")
NAMES = ("inception", "efficientnet", "classifier", "encoder=RUN", "random", "dinov2", "clip")


@dataclass(frozen=True)
class Choice:
    """One word of `--features`: a name, and for some the place of the weights."""

    name: str
    path: Path | None = None


def choices(words: Sequence[str], inception: Path | None = None) -> list[Choice]:
    """Raises UserError for unknown words, missing or needless paths, and for the same extractor twice."""
    found = []
    for word in words:
        name, _, path = word.partition("=")
        if name not in [known.partition("=")[0] for known in NAMES]:
            raise UserError(f"--features {word}: unknown; choose from {', '.join(NAMES)}")
        if name == "encoder" and not path:
            raise UserError("--features encoder: of which run? Pass --features encoder=RUN")
        if name in ("inception", "classifier", "random") and path:
            raise UserError(
                f"--features {word}: {name} takes no path here; --inception PATH is for Inception's weights"
            )
        found.append(Choice(name, Path(path).expanduser() if path else inception if name == "inception" else None))
    twice = {choice.name for choice in found if [c.name for c in found].count(choice.name) > 1}
    if twice:
        raise UserError(f"--features: {', '.join(sorted(twice))} is named twice")
    if inception is not None and "inception" not in [choice.name for choice in found]:
        raise UserError("--inception: does nothing without --features inception")
    return found


def open_extractor(
    choice: Choice,
    labelled: tuple[ImageDataset, ImageDataset] | None = None,
    shape: tuple[int, int, int] | None = None,
    *,
    ema: float | None = None,
    device: torch.device | str = "cpu",
    on_progress: Progress | None = None,
) -> Extractor:
    """The extractor that a word names; all processes must call it.

    Args:
        labelled: what a classifier is trained on, and what its accuracy is measured on.
        shape: channels, height and width of the images, for random features.
        ema: of an encoder in a generator's run, which average.

    Raises UserError, ArtefactError.
    """
    match choice.name:
        case "inception":
            from epg.evaluation.extractors.inception import inception

            return inception(choice.path, device)
        case "encoder":
            from epg.evaluation.extractors.indomain import encoder

            assert choice.path is not None
            return encoder(choice.path, ema=ema, device=device)
        case "random":
            from epg.evaluation.extractors.indomain import untrained

            assert shape is not None
            return untrained(shape[0], shape[1], device)
        case "efficientnet":
            from epg.evaluation.extractors.efficientnet import efficientnet

            return efficientnet(choice.path, device)
        case "dinov2" | "clip":
            from epg.evaluation.extractors import pretrained

            return getattr(pretrained, choice.name)(choice.path, device)
        case _:
            from epg.evaluation.extractors.indomain import classifier

            if labelled is None:
                raise UserError(
                    "--features classifier: is trained on labelled images; pass the data set itself as --reference"
                )
            return classifier(*labelled, device=device, on_progress=on_progress)
