"""`epg denoising`: errors by noise level on training and held-out images, as table, figure and JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from epg.analysis.denoising import LEVELS, Level, compare, levels_between, squared_errors
from epg.checkpoint.loading import load, read
from epg.distributed import pick_device
from epg.errors import UserError
from epg.evaluation.bench import reporting
from epg.evaluation.linear import MEAN, PREFIX, linear_judge
from epg.evaluation.output import analysis_folder, new_figure, save_figure, write_json
from epg.evaluation.splits import training_and_held_out
from epg.evaluation.subjects import some_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIGNIFICANT = 3.0


def run_denoising(
    path: Path,
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
    if count < 2:
        raise UserError(f"--count {count}: must be at least 2")
    model = load(path, ema=ema, device=pick_device(device))
    grid = levels_between(model, levels)
    config = read(path, ema).config
    sets = training_and_held_out(config.data, held_out)
    for images in sets if model.class_names else ():
        images.follow(tuple(model.class_names), "the model")
    sources = [some_of(s, name, count) for s, name in zip(sets, ("train", "held out"), strict=True)]
    total = sum(source.count for source in sources)
    with reporting("denoising", images=0) as report:
        first = squared_errors(model, sources[0], grid, "train", seed, lambda done: report(done, total))
        before = sources[0].count
        second = squared_errors(model, sources[1], grid, "held out", seed, lambda done: report(before + done, total))
    results = compare(grid, first, second)
    against_linear = linear_judge(*sets, config, model.normalizer)(model.denoiser)
    out = out or analysis_folder(path)
    settings = {"model": path.resolve().name, "ema": ema, "seed": seed, "counts": [source.count for source in sources]}
    shown = [{**asdict(r), "gap": r.gap, "z": r.z} for r in results]
    write_json({**settings, "levels": shown, "linear": against_linear}, out / "denoising.json")
    save_figure(draw(results), out / "denoising.png")
    Console().print(table(results))
    print(verdict(results))
    print(linear_line(against_linear))
    print(f"numbers in {out / 'denoising.json'}, figure in {out / 'denoising.png'}")
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
    for name, label in (("train", "training images"), ("held_out", "held-out images")):
        values, errors = ([getattr(r, name + end) for r in results] for end in ("", "_error"))
        curves.errorbar(levels, values, errors, marker="o", markersize=3, capsize=2, label=label)
    curves.set(xscale="log", yscale="log", xlabel="noise level (unshifted)", ylabel="mean squared error")
    curves.legend(fontsize=8)
    errors = [100 * abs(r.gap / r.z) if r.z else 0.0 for r in results]
    gap.errorbar(levels, [100 * r.gap for r in results], errors, marker="o", markersize=3, capsize=2)
    gap.axhline(0, color="grey", linewidth=0.8)
    gap.set(xscale="log", xlabel="noise level (unshifted)", ylabel="error on training images smaller by (%)")
    for axes in (curves, gap):
        axes.grid(alpha=0.3)
    return figure
