"""The page at the end of a quickstart: one self-contained HTML file with pictures, numbers and what to do next."""

import base64
import html
import json
import shlex
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from epg.config.recipe import run_config
from epg.quickstart.figures import draw_curves, draw_progress
from epg.quickstart.results import RESULTS, PartResult, StudyResult
from epg.storage import files
from epg.storage.outputs import writing


def write_report(result: StudyResult, folder: Path) -> Path:
    """Writes `curves.png`, `index.html` and, last, `results.json`; prints the table. Returns the page.

    Raises OutputError.
    """
    numbers = asdict(result)
    for part in numbers["parts"]:
        del part["log"]  # it is in each run's log.jsonl
    curves = draw_curves(result)
    progress = draw_progress(result) if any(len(part.progress) > 1 for part in result.generators) else None
    page = folder / "index.html"
    with writing(folder):
        (folder / "curves.png").write_bytes(curves)
        if progress is not None:
            (folder / "progress.png").write_bytes(progress)
        page.write_text(render(result, folder, curves, progress), encoding="utf-8")
        files.replace_text(folder / RESULTS, json.dumps(numbers, indent=1))  # last: with it the study is finished
    print_table(result)
    return page


def rows(result: StudyResult) -> list[tuple[str, str, str, str]]:
    """(model, steps, recognised, distance) for every generator, and the real images as the floor."""
    table = [
        (
            part.title,
            f"{part.steps:,}",
            "" if part.accuracy is None else f"{part.accuracy:.1%}",
            "" if part.frechet is None else f"{part.frechet:.2f}",
        )
        for part in result.generators
    ]
    if result.floor is not None and result.classifier_accuracy is not None:
        table.append(("real held-out images", "", f"{result.classifier_accuracy:.1%}", f"{result.floor:.2f}"))
    return table


HEADERS = ("model", "fine-tuning steps", "recognised as their class", "Frechet distance, classifier features")


def print_table(result: StudyResult) -> None:
    table = Table(*HEADERS)
    for row in rows(result):
        table.add_row(*row)
    Console().print(table)


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .35rem .9rem; border-bottom: 1px solid #ddd; }
th { text-align: left; } td:nth-child(n+2) { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 0; } figcaption { color: #555; font-size: .9rem; }
.grids { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 1.5rem; }
img { max-width: 100%; } pre { background: #f5f5f3; padding: .8rem; overflow-x: auto; }
"""


def render(result: StudyResult, folder: Path, curves: bytes, progress: bytes | None) -> str:
    """The page as text; every picture is inside it."""
    generators = "".join(
        figure((folder / f"samples-{part.name}.png").read_bytes(), caption(part)) for part in result.generators
    )
    real = figure((folder / "real.png").read_bytes(), "real images")
    table = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows(result))
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in HEADERS)
    views = sorted((folder / "pretraining" / "previews").glob("*.png"))
    seen = figure(views[-1].read_bytes(), "image, its two views, the image at three noise levels") if views else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>EPG quickstart: {html.escape(result.data)}</title>
<style>{STYLE}</style></head><body>
<h1>Images from pixels, without a VAE</h1>
<p>{introduction(result)}</p>
<table><tr>{head}</tr>{table}</table>
<p>{reading(result)}</p>
<h2>Samples</h2>
<div class="grids">{generators}{real}</div>
<h2>Training</h2>
{"" if progress is None else figure(progress, f"{result.samples} samples of each of several checkpoints")}
{figure(curves, "losses; the steps of each run are in its log.jsonl")}
<h2>What the encoder saw</h2>
{seen}
<h2>Next</h2>
{next_commands(result, folder)}
</body></html>
"""


def figure(png: bytes, text: str) -> str:
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt=""><figcaption>{html.escape(text)}</figcaption></figure>'
    )


def caption(part: PartResult) -> str:
    return part.title if part.accuracy is None else f"{part.title}: {part.accuracy:.1%} recognised"


def introduction(result: StudyResult) -> str:
    classes = f"{len(result.class_names)} classes" if result.class_names else "no labels"
    steps = {part.name: part.steps for part in result.parts}
    return html.escape(
        f"{result.images:,} images of {result.image_size}x{result.image_size} pixels ({classes}) from {result.data}. "
        f"A ViT encoder was pre-trained on them by self-supervision for {steps['pretraining']:,} steps, then "
        "fine-tuned with a new decoder as a diffusion model and as a one-step consistency model. The diffusion model "
        "from scratch has the same number of fine-tuning steps and a random encoder; the pre-training's time comes on "
        f"top for the others. Everything took {result.seconds / 60:.1f} minutes "
        f"({result.threads} threads, torch {result.torch}, seed {result.seed}). {result.advice}"
    )


def reading(result: StudyResult) -> str:
    """How to read the numbers, and what they say about pre-training this time."""
    if result.floor is None:
        return (
            "Without labels of at least two classes there is nothing to recognise; judge by eye, or add class folders."
        )
    text = (
        "A classifier trained on the real images says how often a sample is recognised as the class that was asked "
        "for; the distance compares its features of samples and of training images (lower is better; the last row is "
        "what real images reach). Neither is an FID: they compare models of this data set only. "
    )
    drawn = moments(result)
    if not drawn:
        return html.escape(text + "Both diffusion models still draw noise: of pre-training, this says nothing yet.")
    for when, index in drawn:
        (step, _, ours), (_, _, scratch) = (part.progress[index] for part in compared(result))
        verdict = "is closer to the real images than" if ours < scratch else "is no closer to the real images than"
        text += (
            f"Here, {when} (step {step:,}), the pre-trained diffusion model {verdict} the one from scratch "
            f"({ours:.2f} and {scratch:.2f}). "
        )
    return html.escape(text)


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
    drawn = [i for i, points in enumerate(both) if max(accuracy for _, accuracy, _ in points) > halfway]
    last = len(both) - 1
    return [("early" if i < last else "at the end", i) for i in dict.fromkeys((*drawn[:1], last)) if i in drawn]


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
    return f"<pre>{html.escape(chr(10).join(commands))}</pre>"
