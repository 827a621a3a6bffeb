"""`epg sample`: images of a trained generator as PNG files, a grid and an ADM .npz."""

import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track

from epg.config import SamplingConfig
from epg.errors import OutputError, UserError
from epg.generator import Generator
from epg.loading import load
from epg.pictures import save_grid
from epg.training.parallel import pick_device

LARGEST_GRID = 256


def write_samples(
    checkpoint: Path,
    out: Path,
    *,
    count: int,
    classes: Sequence[str] = (),
    random_labels: bool = False,
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
    guide: Path | None = None,
    ema: float | None = None,
    batch_size: int = 64,
    device: str = "auto",
    npz: bool = False,
) -> None:
    """Draws `count` images into `out`: `000000.png`..., `grid.png` and, with `npz`, `samples.npz`."""
    if count < 1 or batch_size < 1:
        raise UserError(f"--count {count}, --batch-size {batch_size}: must be at least 1")
    model = load(checkpoint, ema=ema, device=pick_device(device))
    weak = None if guide is None else load(guide, device=model.device)
    sampling = changed(model.sampling, changes or {})
    labels = model.make_labels(count, classes=class_numbers(classes, model), balanced=not random_labels, seed=seed)
    nfe = model.count_evaluations(sampling)
    print(f"{sampling.sampler}, {nfe:.0f} network evaluations an image, on {model.device}", file=sys.stderr)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--out {out}: cannot be written ({error.strerror}). Choose another folder.") from error
    parts = []
    for start in track(range(0, count, batch_size), "sampling", console=Console(stderr=True)):
        stop = min(start + batch_size, count)
        images = model.sample(
            None if labels is None else labels[start:stop],
            stop - start,
            seed=seed,
            first=start,
            sampling=sampling,
            guide=weak,
            batch_size=batch_size,
        )
        for i, image in enumerate(images.permute(0, 2, 3, 1).numpy(), start):
            Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(out / f"{i:06d}.png")
        parts.append(images)
        if start < LARGEST_GRID:
            save_grid(torch.cat(parts)[:LARGEST_GRID], out / "grid.png")
    if npz:
        arrays: dict[str, Any] = {"arr_0": torch.cat(parts).permute(0, 2, 3, 1).numpy()}
        if labels is not None:
            arrays["arr_1"] = labels.numpy().astype(np.int64)
        np.savez(out / "samples.npz", **arrays)
    print(f"{count} images in {out}; see {out / 'grid.png'}")


def changed(sampling: SamplingConfig, changes: Mapping[str, Any]) -> SamplingConfig:
    """The sampling settings with the given fields replaced, checked."""
    new = sampling.model_copy(update=dict(changes))
    if new.steps < 2:
        raise UserError(f"--steps {new.steps}: must be at least 2")
    if sampling.sampler in ("one_step", "multistep") and new.guidance != 1:
        raise UserError("--guidance: consistency models are trained without label dropping; leave it at 1")
    if new.sampler in ("one_step", "multistep") and sampling.sampler not in ("one_step", "multistep"):
        raise UserError(f"--sampler {new.sampler}: for consistency models; this is a diffusion model, try heun")
    return new


def class_numbers(classes: Sequence[str], model: Generator) -> list[int]:
    """Labels from class names or numbers."""
    numbers = []
    for name in classes:
        if name in model.class_names:
            numbers.append(model.class_names.index(name))
        elif name.isdecimal():
            numbers.append(int(name))
        else:
            close = difflib.get_close_matches(name, model.class_names, n=3)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise UserError(f"--classes {name}: no such class{hint} (a name of the data set, or a number)")
    return numbers
