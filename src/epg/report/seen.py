"""The sections of pictures: previews over training, features, neighbours, and what else analyses drew."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from epg.analysis.feature_report import LEVELS, NAME, SHEET, shared_images, sheet
from epg.analysis.features import Spread, measure
from epg.cost.network import encoder_cost
from epg.cost.shape import shape_of
from epg.data.dataset import find_store
from epg.errors import UserError
from epg.report.charts import Line, chart
from epg.report.parts import Section, Strip
from epg.report.pictures import Picture, of_image, picture, spread_out
from epg.report.run_files import RunFiles

BUDGET = 3_000_000  # bytes of all pictures of a page
STRIPS = 0.6  # of it for previews
MOST_PREVIEWS = 24  # on a page
COUNT = 256  # images that the spread of features is measured on here
AFFORDABLE = 1e11  # multiply-adds of features that are made while somebody waits: seconds of one core

Runs = Sequence[RunFiles]


def previews(runs: Runs) -> Section:
    """Generators' samples over training; what an encoder learns from is the same at every step and is elsewhere."""
    section = Section(
        "Samples over training",
        "Drawn by the averaged weights, always from the same noise and for the same classes.",
    )
    shown = [run for run in runs if run.previews and run.config.objective.samples]
    for run in shown:
        steps = spread_out(list(run.previews), max(4, MOST_PREVIEWS // len(shown)))
        most = int(BUDGET * STRIPS / len(shown) / len(steps))
        found = [picture(run.previews[step], f"{run.name}: step {step:,}", most, step) for step in steps]
        if pictures := [one for one in found if one is not None]:
            section.strips.append(Strip(run.name, pictures))
    return section


def examples(runs: Runs) -> Section:
    section = Section(
        "What stage 1 learns from",
        "A column for each image: the image, its two views, which the contrastive loss brings together, and the image "
        "at rising noise levels, along which features shall stay the same.",
    )
    shown = [run for run in runs if run.previews and not run.config.objective.samples]
    for run in shown:
        add(section, run.previews[max(run.previews)], run.name, int(BUDGET * 0.1 / len(shown)))
    return section


def features(runs: Runs) -> Section:
    """From `epg features`, or made here where that takes no time."""
    section = Section(
        "What the encoder sees",
        "Patch tokens as colours: the first three principal components over all images and noise levels. Patches of "
        "one colour look alike to an encoder; colours of two encoders cannot be compared. An encoder that has learned "
        "to look through noise keeps its colours from left to right.",
    )
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        own = {str(one.get("name")): one for one in run.entries(NAME, "runs")}
        found |= own
        if own:
            add(section, run.folder / "analysis" / SHEET, ", ".join(own), int(BUDGET * 0.15 / len(runs)))
    if not found and affordable(runs):
        try:
            drawn, image = here(runs)
        except UserError:  # of weights or images that are not there any more
            return section
        found = {one["name"]: one for one in drawn}
        section.pictures.append(of_image(image, ", ".join(found)))
    lines = [Line(name, [(s.level, s.mean) for s in spreads(one)]) for name, one in found.items()]
    section.add(chart("spread of CLS features", lines, x="noise level", log_x=True))
    lines = [Line(name, [(s.level, s.like_clean) for s in spreads(one)]) for name, one in found.items()]
    section.add(chart("likeness of patch tokens to the clean image's", lines, x="noise level", log_x=True, even=True))
    return section


def spreads(one: dict[str, Any]) -> list[Spread]:
    """Of one encoder in a features.json; empty where it is damaged."""
    try:
        return [Spread(**{name: float(value) for name, value in level.items()}) for level in one["levels"]]
    except (KeyError, TypeError, ValueError):
        return []


def affordable(runs: Runs) -> bool:
    """Whether features of all runs take seconds: small encoders, images at hand, and nothing that trains meanwhile."""
    data = runs[0].config.data
    at_hand = data.source == "digits" or find_store(Path(data.source), "train") is not None
    macs = sum(encoder_cost(shape_of(run.config.model, run.config.data)).macs for run in runs)
    busy = any(run.running for run in runs)
    sizes = {(run.config.data.image_size, run.config.data.channels) for run in runs}
    return at_hand and not busy and len(sizes) == 1 and macs * COUNT * len(LEVELS) < AFFORDABLE


def here(runs: Runs) -> tuple[list[dict[str, Any]], Image.Image]:
    """Features of all runs, as `epg features` makes them, and their sheet."""
    images = shared_images([run.folder for run in runs], count=COUNT, shown=3 if len(runs) < 3 else 2)
    pairs = zip(images.encoders, runs, strict=True)
    found = [measure(encoder, run.name, images.all, images.shown, LEVELS) for encoder, run in pairs]
    return [one.record() for one in found], sheet(found, images.encoders[0], images.shown, LEVELS)


def neighbours(runs: Runs) -> Section:
    section = Section(
        "Nearest training images",
        "Samples, their nearest training images and the nearest image that was held out; the most suspicious first.",
    )
    for run in runs:
        for space in run.entries("neighbours", "spaces"):
            name, verdict = Path(str(space.get("space"))).name, str(space.get("verdict"))
            file = run.folder / "analysis" / f"neighbours-{name}.png"
            add(section, file, f"{run.name}, {name} distances: {verdict}", int(BUDGET * 0.1 / len(runs)))
    return section


def others(runs: Runs) -> Section:
    """Figures of `epg denoising`, `probe`, `neighbours` and `sweep` as they drew them."""
    section = Section("Analyses")
    for run in runs:
        files = [run.folder / "analysis" / f"{name}.png" for name in ("denoising", "probe", "neighbours")]
        for file in [*files, run.folder / "sweep" / "sweep.png"]:
            if file.is_file():
                add(section, file, f"{file.stem}: {run.name}", int(BUDGET * 0.15 / len(runs) / 4))
    return section


def add(section: Section, file: Path, caption: str, most: int) -> None:
    """A picture, if it is there and one."""
    found: Picture | None = picture(file, caption, most)
    if found is not None:
        section.pictures.append(found)
