"""The plots of a study's page."""

import io
from typing import TYPE_CHECKING

from epg.analysis.report import new_figure
from epg.quickstart.results import StudyResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_curves(result: StudyResult) -> bytes:
    """Loss over steps as a PNG: pre-training, both diffusion runs in one panel, consistency."""
    figure = new_figure(11, 3.2)
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
    figure = new_figure(9, 3.2)
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
