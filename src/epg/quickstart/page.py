"""The page at the end of a quickstart: that of `epg report`, with what the whole study is about before it."""

import json
import math
import shlex
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from epg.analysis.compare import CLEAR
from epg.config.recipe import run_config
from epg.quickstart.results import RESULTS, Judged, PartResult, StudyResult
from epg.report.page import Opening, write_page
from epg.report.parts import Section
from epg.report.pictures import picture
from epg.report.run_files import read_runs
from epg.storage import files
from epg.storage.outputs import writing

PAGE = "index.html"
MOST = 300_000  # bytes of a picture


def write_report(result: StudyResult, folder: Path) -> Path:
    """Writes `index.html` and, last, `results.json`; prints the table. Returns the page.

    Raises OutputError.
    """
    runs = read_runs([folder / part.name for part in result.parts])
    write_page(runs, folder / PAGE, opening(result, folder))
    with writing(folder):
        files.replace_text(folder / RESULTS, json.dumps(asdict(result), indent=1))  # last: then the study is finished
    print_table(result)
    return folder / PAGE


def print_table(result: StudyResult) -> None:
    """Every generator, and what real images reach."""
    table = Table("model", "fine-tuning steps", "recognised as their class", "Frechet distance, classifier features")
    for part in result.generators:
        accuracy = "" if part.accuracy is None else f"{part.accuracy:.1%}"
        table.add_row(part.title, f"{part.steps:,}", accuracy, "" if part.frechet is None else f"{part.frechet:.2f}")
    if result.floor is not None and result.classifier_accuracy is not None:
        table.add_row("real held-out images", "", f"{result.classifier_accuracy:.1%}", f"{result.floor:.2f}")
    Console().print(table)


def opening(result: StudyResult, folder: Path) -> Opening:
    """What the page says before it shows the runs: what was done, what came out, what to do next."""
    shown = [(f"samples-{part.name}.png", caption(part)) for part in result.generators]
    pictures = [picture(folder / name, text, MOST) for name, text in [*shown, ("real.png", "real images")]]
    samples = Section("What came out", reading(result), pictures=[one for one in pictures if one is not None])
    samples.notes = verdicts(result)
    return Opening("Images from pixels, without a VAE", introduction(result), [samples], next_commands(result, folder))


def caption(part: PartResult) -> str:
    return part.title if part.accuracy is None else f"{part.title}: {part.accuracy:.1%} recognised"


def introduction(result: StudyResult) -> list[str]:
    """What was done, for who has never heard of it."""
    classes = f"{len(result.class_names)} classes" if result.class_names else "no labels"
    steps = {part.name: part.steps for part in result.parts}
    done = (
        f"{result.images:,} images of {result.image_size}x{result.image_size} pixels ({classes}) from {result.data}. "
        f"An encoder, a small ViT, was pre-trained on them for {steps['pretraining']:,} steps, without looking at any "
        "label. With a new decoder it was then fine-tuned twice: as a diffusion model, which draws an image in several "
        "steps, and as a consistency model, which draws one in a single step. A second diffusion model, from scratch, "
        "had as many fine-tuning steps and a random encoder: what it lacks is the pre-training, whose time comes on "
        "top for the others."
    )
    threads = f"{result.threads} thread{'s' if result.threads > 1 else ''}"
    how = f"Everything took {result.seconds / 60:.1f} minutes ({threads}, torch {result.torch}, seed {result.seed})."
    return [done, how, *([result.advice] if result.advice else [])]


def reading(result: StudyResult) -> str:
    """How to read the numbers."""
    if result.floor is None or result.classifier_accuracy is None:
        return (
            "Without labels of at least two classes there is nothing to recognise; judge by eye, or add class folders."
        )
    return (
        "A classifier trained on the real images says how often a sample is recognised as the class that was asked "
        f"for; of real images that it has not seen it recognises {result.classifier_accuracy:.1%}. The Frechet "
        "distance compares its features of samples and of training images: lower is better, and real images that "
        f"no model has seen are at {result.floor:.2f}. Neither is an FID; they compare models of this data set only."
    )


def verdicts(result: StudyResult) -> list[str]:
    """What the numbers say about pre-training this time, no more than they do."""
    if result.floor is None:
        return []
    drawn = moments(result)
    if not drawn:
        return ["Both diffusion models still draw noise: of pre-training, this says nothing yet."]
    told = []
    for when, index in drawn:
        ours, scratch = (part.progress[index] for part in compared(result))
        told.append(
            f"{when}, after {ours.step:,} steps of fine-tuning, the pre-trained diffusion model is "
            f"{closer(ours, scratch)} the one from scratch: distances of {ours.frechet:.2f} ± {ours.error:.2g} and "
            f"{scratch.frechet:.2f} ± {scratch.error:.2g}."
        )
    return told


def closer(ours: Judged, other: Judged) -> str:
    """To the real images, by more than the errors or not."""
    if abs(ours.frechet - other.frechet) < CLEAR * math.hypot(ours.error, other.error):
        return "as close to the real images, within the errors, as"
    return "closer to the real images than" if ours.frechet < other.frechet else "further from the real images than"


def compared(result: StudyResult) -> tuple[PartResult, PartResult]:
    """The diffusion model and its baseline."""
    parts = {part.name: part for part in result.parts}
    return parts["diffusion"], parts["diffusion-scratch"]


def moments(result: StudyResult) -> list[tuple[str, int]]:
    """When the two diffusion models are compared in words: at the end, and early, when one of them first draws more
    than noise: its samples are recognised better than halfway from chance to real images. Never where both are noise.
    """
    assert result.classifier_accuracy is not None
    chance = 1 / len(result.class_names)
    halfway = (chance + result.classifier_accuracy) / 2
    both = list(zip(*(part.progress for part in compared(result)), strict=True))
    drawn = [i for i, points in enumerate(both) if max(judged.accuracy for judged in points) > halfway]
    last = len(both) - 1
    return [("Early" if i < last else "At the end", i) for i in dict.fromkeys((*drawn[:1], last)) if i in drawn]


def next_commands(result: StudyResult, folder: Path) -> str:
    one_class = f" --classes {shlex.quote(result.class_names[0])}" if result.class_names else ""
    source = f"{result.recipe} --data.source {shlex.quote(result.data)}"
    size = "" if result.image_size == run_config(result.recipe, "diffusion").data.image_size else result.image_size
    source += f" --data.image-size {size}" if size else ""
    longer = f" --image-size {size}" if size else ""
    commands = [
        "# longer, better",
        f"epg quickstart --data {shlex.quote(result.data)}{longer} --minutes 30",
        "# your own images: a folder with one sub-folder per class, or just images",
        "epg quickstart --data path/to/images",
        "# more samples",
        f"epg sample {shlex.quote(str(folder))}/diffusion --count 100{one_class} --out samples",
        "# the stages one by one, any setting as a flag",
        f"epg pretrain {source} --training.steps 2000",
        f"epg finetune {source} --stage consistency --encoder runs/{result.recipe}/pretraining",
    ]
    return "\n".join(commands)
