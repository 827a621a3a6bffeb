"""Denoising error of a generator by noise level, on training and on held-out images (`epg denoising`).

Training images that are denoised better than equally real ones the generator has never seen are remembered; at which
noise levels they are says what is remembered. Noise belongs to each image and is the same at every level, so two
models, or two checkpoints, are compared on the very same noisy images.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from epg import schedule
from epg.analysis.report import analysis_folder, curve, new_figure, publish
from epg.checkpoint.loading import read_trained
from epg.distributed import pick_device
from epg.errors import UserError
from epg.evaluation.held_out import training_and_held_out
from epg.evaluation.linear import MEAN, PREFIX, linear_judge
from epg.evaluation.noisy_features import noise_of
from epg.evaluation.sources import ImageSource
from epg.evaluation.subjects import some_of
from epg.generator import Generator
from epg.objectives.base import at_levels
from epg.progress import reporting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCK = 64  # images that the network sees at once
LEVELS = 16
SIGNIFICANT = 3.0

Errors = NDArray[np.float64]


@dataclass(frozen=True)
class Level:
    """At one unshifted noise level: mean squared error of the denoised images, per pixel, in the network's range (in
    which the data has a standard deviation of about 0.5)."""

    level: float
    train: float
    train_error: float
    """Standard error of `train` from the finite number of images."""
    held_out: float
    held_out_error: float

    @property
    def gap(self) -> float:
        """By which part the error on training images is smaller: 0 without memorisation, 1 where they are known."""
        return 1 - self.train / self.held_out

    @property
    def z(self) -> float:
        """The difference in standard errors."""
        return (self.held_out - self.train) / float(np.hypot(self.train_error, self.held_out_error))


def levels_between(model: Generator, count: int = LEVELS) -> list[float]:
    """Unshifted levels of the Karras grid from sigma_min to sigma_max, lowest first."""
    if count < 2:
        raise UserError(f"--levels {count}: must be at least 2")
    noise = model.noise
    return schedule.karras_grid(count, noise.sigma_min, noise.sigma_max, noise.rho).flip(0).tolist()


@torch.no_grad()
def squared_errors(
    model: Generator,
    source: ImageSource,
    levels: Sequence[float],
    purpose: str,
    seed: int = 0,
    on_block: Callable[[int], None] | None = None,
) -> Errors:
    """Mean squared error per pixel of every image at every unshifted level, (N, levels), float64.

    Labels are given where the model takes them. The noise of image i depends on (seed, purpose, i) alone.
    """
    labels = source.labels if model.num_classes else None
    if model.num_classes and labels is None:
        raise UserError("the model is class-conditional, but these images have no labels")
    errors = np.empty((source.count, len(levels)))
    for start in range(0, source.count, BLOCK):
        part = range(start, min(start + BLOCK, source.count))
        images = model.normalizer.encode(source.read(part.start, part.stop).to(model.device))
        noise = noise_of(part, model.image_shape, f"denoising {purpose}", seed).to(model.device)
        of_part = None if labels is None else labels[part.start : part.stop].to(model.device)
        for column, level in enumerate(levels):
            t = model.shift * level
            denoised = model.denoiser(at_levels(images, t, noise), t, of_part)
            errors[part.start : part.stop, column] = (denoised - images).double().square().mean((1, 2, 3)).cpu()
        if on_block:
            on_block(part.stop)
    return errors


def compare(levels: Sequence[float], train: Errors, held_out: Errors) -> list[Level]:
    """Means and their errors from the errors (N, levels) of training images and (M, levels) of held-out ones."""

    def mean(errors: Errors) -> tuple[Errors, Errors]:
        return errors.mean(0), errors.std(0, ddof=1) / len(errors) ** 0.5

    columns = zip(levels, *mean(train), *mean(held_out), strict=True)
    return [Level(*map(float, column)) for column in columns]


def run_denoising(
    model: Path,
    *,
    held_out: str | None = None,
    ema: float | None = None,
    levels: int = LEVELS,
    count: int = 2000,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
) -> list[Level]:
    """Prints the table; writes `denoising.json` and `denoising.png` into `out` (by default `analysis` in the run).

    Args:
        count: training images, and held-out images, at most.
    """
    trained = read_trained(model, ema)
    config, generator = trained.config, trained.generator(pick_device(device))
    grid = levels_between(generator, levels)
    sets = training_and_held_out(config.data, held_out)
    for images in sets if generator.class_names else ():
        images.follow(tuple(generator.class_names), "the model")
    sources = [some_of(s, name, count) for s, name in zip(sets, ("train", "held out"), strict=True)]
    total = sum(source.count for source in sources)
    with reporting("denoising", images=0) as report:
        first = squared_errors(generator, sources[0], grid, "train", seed, lambda done: report(done, total))
        before = sources[0].count
        second = squared_errors(
            generator, sources[1], grid, "held out", seed, lambda done: report(before + done, total)
        )
    results = compare(grid, first, second)
    against_linear = linear_judge(*sets, config, generator.normalizer)(generator.denoiser)
    settings = {"model": model.resolve().name, "ema": ema, "seed": seed, "counts": [source.count for source in sources]}
    shown = [{**asdict(r), "gap": r.gap, "z": r.z} for r in results]
    content = {**settings, "levels": shown, "linear": against_linear}
    lines = verdict(results), linear_line(against_linear)
    publish(out or analysis_folder(model), "denoising", content, draw(results), table(results), *lines)
    return results


def verdict(results: Sequence[Level]) -> str:
    """One sentence: the widest significant gap."""
    worse = [r for r in results if r.z > SIGNIFICANT]
    if not worse:
        return "training and held-out images are denoised alike: no sign of memorisation"
    widest = max(worse, key=lambda r: r.gap)
    return (
        f"training images are denoised better at {len(worse)} of {len(results)} levels, with an error smaller by up to "
        f"{widest.gap:.0%} at {widest.level:.3g}: the model knows them there"
    )


def linear_line(ratios: dict[str, float]) -> str:
    """Errors on held-out images relative to the best linear denoiser's."""
    levels = ", ".join(f"{value:.3f} at {name.removeprefix(PREFIX)}" for name, value in ratios.items() if name != MEAN)
    return f"held-out error / that of the best linear denoiser: {levels}; geometric mean {ratios[MEAN]:.3f}"


def table(results: Sequence[Level]) -> Table:
    """For the terminal."""
    shown = Table("noise level", "training images", "held-out images", "gap", "z")
    for r in results:
        train = f"{r.train:.4g} ± {r.train_error:.2g}"
        held_out = f"{r.held_out:.4g} ± {r.held_out_error:.2g}"
        shown.add_row(f"{r.level:.4g}", train, held_out, f"{r.gap:+.1%}", f"{r.z:+.1f}")
    return shown


def draw(results: Sequence[Level]) -> "Figure":
    """Both curves, and the gap between them."""
    figure = new_figure(9.5, 3.6)
    curves, gap = figure.subplots(1, 2)
    levels = [r.level for r in results]
    curve(curves, levels, [r.train for r in results], [r.train_error for r in results], "training images")
    curve(curves, levels, [r.held_out for r in results], [r.held_out_error for r in results], "held-out images")
    curves.set(xscale="log", yscale="log", xlabel="noise level (unshifted)", ylabel="mean squared error")
    curves.legend(fontsize=8)
    curve(gap, levels, [100 * r.gap for r in results], [100 * abs(r.gap / r.z) if r.z else 0.0 for r in results])
    gap.axhline(0, color="grey", linewidth=0.8)
    gap.set(xscale="log", xlabel="noise level (unshifted)", ylabel="error on training images smaller by (%)")
    return figure
