"""The page at the end of a quickstart: one self-contained HTML file with pictures, numbers and what to do next."""

import base64
import html
import io
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class PartResult:
    """One training run of the study. `accuracy` and `frechet` are None where there is nothing to recognise."""

    name: str
    title: str
    steps: int
    log: list[dict[str, float]]
    accuracy: float | None = None
    frechet: float | None = None
    progress: tuple[tuple[int, float, float], ...] = ()
    """(step, accuracy, frechet) of checkpoints along the way, the last one included."""

    def with_progress(self, progress: Sequence[tuple[int, float, float]]) -> "PartResult":
        _, accuracy, frechet = progress[-1]
        return replace(self, accuracy=accuracy, frechet=frechet, progress=tuple(progress))


@dataclass(frozen=True)
class StudyResult:
    """Everything that the table and the page show."""

    data: str
    recipe: str
    image_size: int
    images: int
    class_names: tuple[str, ...]
    parts: tuple[PartResult, ...]
    floor: float | None
    classifier_accuracy: float | None
    samples: int
    seconds: float
    seed: int
    torch: str
    threads: int
    advice: str = ""
    """What to expect of a training much shorter than the recipe's."""

    @property
    def generators(self) -> list[PartResult]:
        return [part for part in self.parts if part.name != "pretraining"]


def write_report(result: StudyResult, folder: Path) -> Path:
    """Prints the table; writes `results.json`, `curves.png` and `index.html`. Returns the page."""
    numbers = asdict(result)
    for part in numbers["parts"]:
        del part["log"]  # it is in each run's log.jsonl
    (folder / "results.json").write_text(json.dumps(numbers, indent=1))
    curves = draw_curves(result)
    (folder / "curves.png").write_bytes(curves)
    progress = draw_progress(result) if result.floor is not None else None
    if progress is not None:
        (folder / "progress.png").write_bytes(progress)
    print_table(result)
    page = folder / "index.html"
    page.write_text(render(result, folder, curves, progress), encoding="utf-8")
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


def draw_curves(result: StudyResult) -> bytes:
    """Loss over steps as a PNG: pre-training, both diffusion runs in one panel, consistency."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), dpi=110, layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, title, prefix in zip(
        panels,
        ("pre-training", "diffusion", "one-step consistency"),
        ("pretraining", "diffusion", "consistency"),
        strict=True,
    ):
        for part in (p for p in result.parts if p.name.startswith(prefix)):
            terms = ("contrastive", "consistency") if prefix == "pretraining" else ("loss",)
            for term in terms:
                points = [(line["step"], line[term]) for line in part.log if term in line]
                label = term if prefix == "pretraining" else part.title
                axes.plot(*zip(*points, strict=True), label=label)
        axes.set(title=title, xlabel="step", ylabel="loss")
        if prefix == "diffusion":
            axes.set_yscale("log")
        axes.legend(fontsize=7)
    return as_png(figure)


def draw_progress(result: StudyResult) -> bytes:
    """Distance and recognition over fine-tuning steps, of every run that was evaluated along the way."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), dpi=110, layout="constrained")
    distance, recognised = figure.subplots(1, 2)
    ticks = set[int]()
    for part in (p for p in result.generators if len(p.progress) > 1):
        steps, accuracies, distances = zip(*part.progress, strict=True)
        distance.plot(steps, distances, marker="o", label=part.title)
        recognised.plot(steps, accuracies, marker="o", label=part.title)
        ticks.update(steps)
    if result.floor is not None:
        distance.axhline(result.floor, color="gray", linestyle=":", label="real held-out images")
    distance.set(title="Frechet distance, classifier features", xlabel="fine-tuning step", xscale="log", yscale="log")
    recognised.set(title="recognised as their class", xlabel="fine-tuning step", xscale="log", ylim=(0, 1))
    for axes in (distance, recognised):
        axes.set_xticks(sorted(ticks), [f"{step:,}" for step in sorted(ticks)])
        axes.minorticks_off()
    distance.legend(fontsize=8)
    return as_png(figure)


def as_png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


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
    parts = {part.name: part for part in result.parts}
    for when, index in (("early", 0), ("at the end", -1)):
        (step, _, ours), (_, _, scratch) = (parts[n].progress[index] for n in ("diffusion", "diffusion-scratch"))
        verdict = "is closer to the real images than" if ours < scratch else "is no closer to the real images than"
        text += (
            f"Here, {when} (step {step:,}), the pre-trained diffusion model {verdict} the one from scratch "
            f"({ours:.2f} and {scratch:.2f}). "
        )
    return html.escape(text)


def next_commands(result: StudyResult, folder: Path) -> str:
    one_class = f" --classes {shlex.quote(result.class_names[0])}" if result.class_names else ""
    source = f"{result.recipe} --data.source {shlex.quote(result.data)}"
    commands = [
        "# longer, better",
        f"epg quickstart --data {shlex.quote(result.data)} --minutes 30 --out {folder}-30",
        "# your own images: a folder with one sub-folder per class, or just images",
        "epg quickstart --data path/to/images",
        "# more samples",
        f"epg sample {folder}/diffusion --count 100{one_class} --out samples",
        "# the stages one by one, any setting as a flag",
        f"epg pretrain {source} --training.steps 2000",
        f"epg finetune {source} --stage consistency --encoder runs/{result.recipe}/pretraining",
    ]
    return f"<pre>{html.escape(chr(10).join(commands))}</pre>"
