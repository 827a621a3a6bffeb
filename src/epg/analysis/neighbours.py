"""The real images nearest to each sample, and whether training images are nearer than they should be."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rich.table import Table
from torch import Tensor

from epg.analysis.memorisation import Distances, Memorisation, distances, left_out, memorisation
from epg.analysis.report import analysis_folder, new_figure, publish
from epg.config.sections import DataConfig
from epg.distributed import failing_together, pick_device, processes
from epg.errors import UserError
from epg.evaluation import FEATURES
from epg.evaluation.extraction import Collector, extract
from epg.evaluation.extractors import choices, open_extractor
from epg.evaluation.extractors.extractor import Extractor
from epg.evaluation.held_out import training_and_held_out
from epg.evaluation.jury import reporting
from epg.evaluation.sources import DatasetSource, ImageSource, Progress
from epg.evaluation.subjects import Subject, open_subject, some_of
from epg.sampling import Request
from epg.sampling.pictures import grid
from epg.storage.outputs import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS_AT_MOST = 32  # side at which pixels are compared: finer detail is never the same in two photographs
SHOWN = 4  # training neighbours in a row of the sheet
LISTED = 32


@dataclass(frozen=True)
class Neighbours:
    """What was found in one space."""

    result: Memorisation
    found: Distances
    real: Distances
    """Of the held-out images."""

    @property
    def order(self) -> NDArray[np.int64]:
        """Samples, the most suspicious first: nearest to a training image relative to the nearest held-out one."""
        ratio = self.found.train[:, 0] / np.maximum(self.found.held_out, 1e-12)
        return ratio.argsort(kind="stable")


def pixels(shape: tuple[int, int, int]) -> Extractor:
    """Pixels as features, averaged down to at most 32x32; distances are root mean square grey levels of 0 to 255."""
    channels, height, width = shape
    size = (min(height, PIXELS_AT_MOST), min(width, PIXELS_AT_MOST))
    scale = (channels * size[0] * size[1]) ** 0.5

    def compute(images: Tensor) -> dict[str, Tensor]:
        return {FEATURES: F.adaptive_avg_pool2d(images.float(), size).flatten(1) / scale}

    return Extractor("pixel", "", f"averaged to {size[1]}x{size[0]}", compute)


def find_neighbours(
    samples: ImageSource,
    train: ImageSource,
    held_out: ImageSource,
    extractors: Sequence[Extractor],
    *,
    batch_size: int = 64,
    on_progress: Progress | None = None,
) -> list[Neighbours] | None:
    """One result for each extractor; every process must call it, the first one gets the results."""
    collectors = [Collector() for _ in range(3)]
    for source, collector in zip((samples, train, held_out), collectors, strict=True):
        digest = extract(source, extractors, collector, batch_size=batch_size, on_progress=on_progress)
    if digest is None:
        return None
    results = []
    for extractor in extractors:
        a, b, c = (collector.outputs(extractor.name)[FEATURES] for collector in collectors)
        found = distances(a, b, c, SHOWN)
        results.append(Neighbours(memorisation(a, b, c, extractor.name, found), found, left_out(b, c)))
    return results


def sheet(
    n: Neighbours, samples: ImageSource, train: ImageSource, held_out: ImageSource, rows: int = 16
) -> Image.Image:
    """A row for each of some samples: the sample, its nearest training images, its nearest held-out image.

    The upper half are the most suspicious ones, the lower half every so many of the others.
    """
    order, rows = n.order, min(rows, len(n.order))
    top = (rows + 1) // 2
    chosen = [*order[:top], *order[np.linspace(top, len(order) - 1, rows - top).astype(int)]]
    shown = n.found.train_index.shape[1]
    tiles = []
    for i in map(int, chosen):
        tiles.append(samples.read(i, i + 1))
        tiles += [train.read(j, j + 1) for j in map(int, n.found.train_index[i])]
        j = int(n.found.held_out_index[i])
        tiles.append(held_out.read(j, j + 1))
    picture = grid(torch.cat(tiles), columns=shown + 2)
    header = 16
    framed = Image.new("RGB", (picture.width, picture.height + header), "white")
    framed.paste(picture, (0, header))
    draw = ImageDraw.Draw(framed)
    step = (picture.width - 4) // (shown + 2)
    for column, text in ((0, "sample"), (1, "nearest training images"), (shown + 1, "held-out")):
        draw.text((6 + column * step, 3), text, fill="black")
    return framed


def table(results: Sequence[Neighbours]) -> Table:
    """For the terminal."""
    shown = Table("space", "score", "control", "copies", "median distance")
    for r in (n.result for n in results):
        shown.add_row(
            r.space,
            f"{r.score:.3f} ± {r.error:.3f}",
            f"{r.control:.3f} ± {r.control_error:.3f}",
            f"{r.copies:.2%} (real {r.copies_held_out:.2%})",
            f"{r.distance:.4g} (real {r.distance_held_out:.4g})",
        )
    return shown


def draw(results: Sequence[Neighbours]) -> "Figure":
    """Distances to the nearest training image: of samples, and of held-out images, which they should resemble."""
    figure = new_figure(4.5 * len(results), 3.4)
    for axes, n in zip(np.atleast_1d(figure.subplots(1, len(results))), results, strict=True):
        for values, label in ((n.found.train[:, 0], "samples"), (n.real.train[:, 0], "held-out images")):
            axes.plot(np.sort(values), np.linspace(0, 100, len(values)), label=label)
        axes.set(xlabel=f"distance to the nearest training image ({n.result.space})", ylabel="% nearer", ylim=(0, 100))
        axes.set_title(f"score {n.result.score:.2f} ± {n.result.error:.2f}", fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def described(source: DatasetSource, place: int) -> str:
    """The name of an image, with its folder and no more: reports are shown to others."""
    return "/".join(Path(source.dataset.describe(place)).parts[-2:])


def report(
    results: Sequence[Neighbours],
    samples: ImageSource,
    train: DatasetSource,
    held_out: DatasetSource,
    out: Path,
) -> None:
    """Prints the table; writes `neighbours.json`, `neighbours.png` and a sheet for each space into `out`."""
    content: list[dict[str, Any]] = []
    for n in results:
        listed = [
            {
                "sample": int(i),
                "training_image": described(train, int(n.found.train_index[i, 0])),
                "distance": float(n.found.train[i, 0]),
                "distance_to_held_out": float(n.found.held_out[i]),
            }
            for i in n.order[:LISTED]
        ]
        content.append({**asdict(n.result), "verdict": n.result.verdict, "most_suspicious": listed})
        file = out / f"neighbours-{n.result.space}.png"
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            sheet(n, samples, train, held_out).save(file)
    sources = {"samples": samples.describe(), "train": train.describe(), "held_out": held_out.describe()}
    lines = [f"{n.result.space}: {n.result.verdict}" for n in results]
    if doubles := int((results[0].real.train[:, 0] == 0).sum()):
        lines.append(f"note: {doubles} held-out images are training images as well, and say nothing about memorisation")
    publish(out, "neighbours", {**sources, "spaces": content}, draw(results), table(results), *lines)


def run_neighbours(
    samples: str,
    *,
    train: str | None = None,
    held_out: str | None = None,
    features: Sequence[str] = (),
    inception: Path | None = None,
    count: int | None = None,
    most: int = 50_000,
    request: Request | None = None,
    out: Path | None = None,
) -> list[Memorisation] | None:
    """`epg neighbours`: compares in pixels and in the features named. The first process gets the results.

    Args:
        samples: with `count` and `request` as for `epg evaluate`.
        train: where the training images are; None takes the run's.
        held_out: where equally real images are that it did not see; None takes what it did not see of them.
        most: training images, and held-out images, at most; more are thinned out at random.
    """
    request = request or Request()
    with processes():
        with failing_together():
            subject = open_subject(samples, count, request)
            seen, unseen = training_and_held_out(_data(samples, train, subject), held_out)
            chosen = choices(features, inception)
        device = pick_device(request.device)
        shape = subject.source.shape
        extractors = [pixels(shape)]
        extractors += [open_extractor(c, (seen, unseen), shape, ema=request.ema, device=device) for c in chosen]
        sources = some_of(seen, "training images", most), some_of(unseen, "held-out images", most)
        with reporting("features") as progress:
            results = find_neighbours(
                subject.source, *sources, extractors, batch_size=request.batch_size, on_progress=progress
            )
    if results is None:
        return None
    if sources[0].count < len(seen):
        print(f"note: {sources[0].count} of {len(seen)} training images; copies of the others go unnoticed (--most)")
    report(results, subject.source, *sources, out or analysis_folder(Path(samples)))
    return [n.result for n in results]


def _data(samples: str, train: str | None, subject: Subject) -> DataConfig:
    """What the generator was trained on."""
    channels, size, _ = subject.source.shape
    if train is not None:
        return DataConfig.model_validate(
            {"source": train, "image_size": size, "channels": channels, "normalization": "symmetric"}
        )
    if subject.data is None:
        raise UserError(f"--train: which images was the model of {samples} trained on?")
    return subject.data
