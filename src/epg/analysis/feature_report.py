"""`epg features`: encoders side by side on the same noisy images, as a sheet of colours, curves and numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from rich.table import Table

from epg.analysis.compare_report import short_names
from epg.analysis.features import MOST_CHANNELS, Features, measure
from epg.analysis.report import analysis_folder, new_figure, publish
from epg.data.configured import open_training_data
from epg.data.loading.base import ImageDataset, NoSplitError
from epg.distributed import pick_device
from epg.errors import UserError
from epg.evaluation.noisy_features import NoisyEncoder, open_encoder
from epg.evaluation.voting import Split, take
from epg.progress import reporting
from epg.storage.outputs import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS = (0.002, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)  # unshifted
SHEET, NAME = "features-maps.png", "features"
TILE, GAP = 96, 4  # pixels of a picture on the sheet
LETTER = 13


def run_features(
    runs: Sequence[Path],
    *,
    data: str | None = None,
    ema: float | None = None,
    levels: Sequence[float] = LEVELS,
    count: int = 1000,
    shown: int = 4,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
) -> list[Features]:
    """Prints the table; writes `features.json`, `features.png` (figure 8) and `features-maps.png` (5 and 6) into
    `out` (by default `analysis` of the first run).

    Args:
        data: images; None takes what the first run has not seen of its own, or its training images.
        count: images that the spread is of, at most.
        shown: images in the picture, at most.

    Raises UserError where the runs are of images of different sizes.
    """
    images = shared_images(runs, data=data, ema=ema, count=count, shown=shown, seed=seed, device=device)
    grid, found = sorted(levels), []
    with reporting("features", images=0) as report:
        for encoder, name in zip(images.encoders, images.names, strict=True):
            found.append(measure(encoder, name, images.all, images.shown, grid))
            report(len(found), len(runs))
    folder = out or analysis_folder(runs[0])
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        sheet(found, images.encoders[0], images.shown, grid).save(folder / SHEET)
    about = {"data": Path(data or images.encoders[0].config.data.source).name, "fingerprint": images.fingerprint}
    content = {**about, "count": len(images.all.images), "seed": seed, "runs": [f.record() for f in found]}
    publish(folder, NAME, content, draw(found), table(found), f"patch tokens as colours in {folder / SHEET}")
    return found


@dataclass(frozen=True)
class Shared:
    """Several encoders, and what all of them see."""

    encoders: list[NoisyEncoder]
    names: list[str]
    all: Split
    shown: Split
    fingerprint: str
    """Of the images."""


def shared_images(
    runs: Sequence[Path],
    *,
    data: str | None = None,
    ema: float | None = None,
    count: int = 1000,
    shown: int = 4,
    seed: int = 0,
    device: str = "auto",
) -> Shared:
    """The encoders of runs and their images, as `run_features` takes them."""
    if not runs:
        raise UserError("epg features: pass at least one run")
    names = short_names(runs)
    encoders = [open_encoder(run, ema=ema, device=pick_device(device)) for run in runs]
    refuse_other_images(encoders, names)
    dataset = images_for(encoders[0], data)
    images = take(dataset, count, "features", seed)
    return Shared(encoders, names, images, spaced(images, shown), dataset.fingerprint())


def refuse_other_images(encoders: Sequence[NoisyEncoder], names: Sequence[str]) -> None:
    """Raises UserError unless all encoders take images of one size."""
    sizes = [(e.config.data.image_size, e.config.data.channels) for e in encoders]
    for name, size in zip(names, sizes, strict=True):
        if size != sizes[0]:
            told = [f"{side}x{side} of {channels} channels" for side, channels in (sizes[0], size)]
            raise UserError(f"{name}: of images of {told[1]}, and {names[0]} of {told[0]}; they cannot see the same")


def images_for(encoder: NoisyEncoder, data: str | None) -> ImageDataset:
    """The test split of the images, or all there are."""
    config = encoder.config.data
    if data is not None:
        config = config.model_copy(update={"source": data, "fraction": 1.0, "per_class": None})
    try:
        return open_training_data(config, split="test")
    except NoSplitError:
        return open_training_data(config)


def spaced(images: Split, count: int) -> Split:
    """Some of the images, at equal distances: neighbours are often of one class."""
    places = np.unique(np.linspace(0, len(images.images) - 1, min(count, len(images.images))).round().astype(int))
    return Split(images.images[places], images.labels[places], images.noise[places])


def table(found: Sequence[Features]) -> Table:
    """For the terminal: how far features spread, and how like the clean ones they are."""
    levels = [f"{spread.level:g}" for spread in found[0].spread]
    shown = Table("encoder", "", *levels, title="features by noise level (unshifted)")
    for f in found:
        shown.add_row(f.name, "spread", *(f"{s.mean:.2f}" for s in f.spread))
        shown.add_row("", "likeness", *(f"{s.like_clean:.2f}" for s in f.spread))
    shown.caption = "spread of CLS features, 1 is the whole sphere; likeness of patch tokens to the clean image's"
    return shown


def draw(found: Sequence[Features]) -> "Figure":
    """Spread over the level, with the band that most channels lie in, and likeness to the clean image."""
    figure = new_figure(9.5, 3.6)
    spread, alike = figure.subplots(1, 2)
    for f in found:
        levels = [s.level for s in f.spread]
        spread.plot(levels, [s.mean for s in f.spread], marker="o", markersize=4, label=f.name)
        spread.fill_between(levels, [s.low for s in f.spread], [s.high for s in f.spread], alpha=0.15)
        alike.plot(levels, [s.like_clean for s in f.spread], marker="o", markersize=4, label=f.name)
    spread.set(ylabel="standard deviation of a channel x sqrt(D)", ylim=(0, None))
    low, high = MOST_CHANNELS
    spread.set_title(f"spread of CLS features (band: percentiles {low} to {high} of channels)", fontsize=9)
    alike.set(
        ylabel="cosine with the clean patch", ylim=(min(0, *(s.like_clean for f in found for s in f.spread)), 1.02)
    )
    alike.set_title("patch tokens like those of the clean image", fontsize=9)
    for axes in (spread, alike):
        axes.set(xscale="log", xlabel="noise level (unshifted)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def sheet(found: Sequence[Features], encoder: NoisyEncoder, images: Split, levels: Sequence[float]) -> Image.Image:
    """For every image a row of what the encoders see, and a row of colours of each of them; a column for each level."""
    font = ImageFont.load_default(LETTER)
    names = ["noisy image", *(f.name for f in found)]
    margin = 12 + min(220, max(round(font.getlength(name)) for name in names))
    seen = [encoder.seen(images.images, images.noise, level) for level in levels]
    rows = len(images.images) * len(names)
    step, block = TILE + GAP, len(names) * (TILE + GAP) + 2 * GAP
    picture = Image.new("RGB", (margin + len(levels) * step, 22 + block * len(images.images)), "white")
    pen = ImageDraw.Draw(picture)
    for column, level in enumerate(levels):
        pen.text((margin + column * step, 4), f"{level:g}", fill="black", font=font)
    for row in range(rows):
        image, kind = divmod(row, len(names))
        y = 22 + image * block + kind * step
        pen.text((4, y + TILE // 2 - LETTER // 2), fitted(names[kind], margin - 12, font), fill="black", font=font)
        for column in range(len(levels)):
            tile = of_pixels(seen[column][image]) if kind == 0 else found[kind - 1].colours[column, image]
            picture.paste(enlarged(tile), (margin + column * step, y))
    return picture


def of_pixels(image: torch.Tensor) -> np.ndarray:
    """uint8 (C, H, W) -> (H, W, 3)."""
    return image.expand(3, -1, -1).permute(1, 2, 0).numpy()


def enlarged(pixels: np.ndarray) -> Image.Image:
    """As a tile of the sheet; enlarged pixels stay squares."""
    smooth = len(pixels) > TILE
    kind = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return Image.fromarray(np.ascontiguousarray(pixels)).resize((TILE, TILE), kind)


def fitted(text: str, width: int, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont") -> str:
    """As much of the end of a name as fits, its beginning being the folder."""
    while text and font.getlength(text) > width:
        text = "…" + text[2:]
    return text
