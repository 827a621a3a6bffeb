"""Draws the picture of docs/method.md that shows what noise does to a photograph.

    python docs/figures.py

The photograph is scikit-learn's `china.jpg`, by danielbuechele, CC BY 2.0.
"""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_image

from epg.data.pixels.resize import center_crop
from epg.data.views.normalize import Normalizer
from epg.randomness import normal

LEVELS = (0.0, 0.2, 0.5, 1.61, 5.0, 80.0)  # unshifted; guidance acts from 0.19 to 1.61
ROWS = (
    ("64 x 64 pixels", 64, 1.0),
    ("256 x 256 pixels,\nthe same levels", 256, 1.0),
    ("256 x 256 pixels,\nshifted by 4", 256, 4.0),
)


def main() -> None:
    photograph = Image.fromarray(load_sample_image("china.jpg"))
    normalizer = Normalizer.imagenet()
    figure = Figure(figsize=(12, 6.4), dpi=90, layout="constrained")
    axes = figure.subplots(len(ROWS), len(LEVELS))
    for axis, level in zip(axes[0], LEVELS, strict=True):
        axis.set_title("clean" if level == 0 else f"sigma {level:g}")
    for row, (name, size, shift) in zip(axes, ROWS, strict=True):
        pixels = torch.from_numpy(np.array(center_crop(photograph, size))).permute(2, 0, 1)[None]
        clean = normalizer.encode(pixels)
        noise = normal([0], clean.shape[1:], 0, "figure", device="cpu")
        for axis, level in zip(row, LEVELS, strict=True):
            noisy = normalizer.decode(clean + shift * level * noise)[0]
            axis.imshow(noisy.permute(1, 2, 0).numpy())
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
    figure.savefig(Path(__file__).parent / "images" / "noise-levels.jpg", pil_kwargs={"quality": 85})


if __name__ == "__main__":
    main()
