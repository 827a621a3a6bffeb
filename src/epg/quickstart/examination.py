"""Samples of every part of a study, and how well they are recognised."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from epg.checkpoint import checkpoint
from epg.config.settings import RunConfig
from epg.data.loading.base import ImageDataset
from epg.evaluation.jury import Jury, Options, open_jury
from epg.evaluation.periodic import FOLDER as EVALUATIONS
from epg.evaluation.real import FEWEST_TO_SPLIT
from epg.evaluation.receipt import Receipt
from epg.evaluation.subjects import Subject, generated, like
from epg.messages import say
from epg.quickstart.length import halvings
from epg.quickstart.plan import PARTS, Plan, compared
from epg.quickstart.results import Judged, PartResult, StudyResult
from epg.sampling import Request
from epg.sampling.pictures import save_grid
from epg.storage.outputs import writing

MOST_REFERENCES = 20_000  # real images that samples are compared with: enough for the statistics of 64 features
BATCH = 256  # samples at once


@dataclass(frozen=True)
class Examination:
    """Judges the runs in the folder of a study."""

    folder: Path
    plan: Plan
    recipe: str
    configs: dict[str, RunConfig]
    """Of the recipe, by part."""
    dataset: ImageDataset

    def result(self, advice: str) -> StudyResult:
        """Samples every generator; recognition and distances where there are labels."""
        jury, floor = None, None
        samples = self.plan.begin_evaluation()
        self.plan.write(self.folder)
        if self.dataset.num_classes >= 2 and len(self.dataset) >= FEWEST_TO_SPLIT:
            say("\nevaluation: training a classifier on the real images")
            jury = self._jury()
        parts = []
        for part in PARTS:
            result = PartResult(part.name, part.title, self.plan.steps[part.name])
            if part.stage != "pretraining":
                say(f"evaluation: {part.title}")
                result, receipt = self._judge(result, jury)
                floor = receipt.metrics["fd_classifier_floor"].value if receipt else None
            parts.append(result)
        shown = torch.stack([torch.from_numpy(self.dataset[int(i)][0].copy()) for i in self._shown_indices()])
        self._save_grid(shown, "real.png")
        data = self.configs["diffusion"].data
        return StudyResult(
            data=str(data.source),
            recipe=self.recipe,
            image_size=data.image_size,
            images=len(self.dataset),
            class_names=tuple(self.dataset.class_names),
            parts=tuple(parts),
            floor=floor,
            classifier_accuracy=jury.extractors[0].held_out_accuracy if jury else None,
            samples=samples,
            seconds=60 * self.plan.minutes - self.plan.left,
            seed=self.configs["diffusion"].seed,
            torch=torch.__version__,
            threads=torch.get_num_threads(),
            advice=advice,
        )

    def _jury(self) -> Jury:
        """What all generators are judged with: a classifier of the data's own labels, and real images."""
        data = self.configs["diffusion"].data
        if len(self.dataset) > MOST_REFERENCES:
            data = data.model_copy(update={"fraction": data.fraction * MOST_REFERENCES / len(self.dataset)})
        options = Options(["classifier"], seed=self.configs["diffusion"].seed, batch_size=BATCH)
        return open_jury(like(self.dataset, data), str(self.folder), None, ["accuracy", "fd"], None, options)

    def _judge(self, result: PartResult, jury: Jury | None) -> tuple[PartResult, Receipt | None]:
        """The part with its numbers, at several steps where parts are compared, and the receipt of the last; each is a
        receipt in the run folder."""
        folder, receipt = self.folder / result.name, None
        samples = self._samples(folder)
        if jury is not None:
            progress = []
            milestones = self.plan.milestones if compared(result.name) else 1
            for path in halvings(checkpoint.listing(folder / "checkpoints"), milestones):
                samples = self._samples(path)
                receipt = jury.judge(samples)
                assert receipt is not None
                receipt.write(folder / EVALUATIONS / f"{path.name}.json")
                accuracy, distance = (receipt.metrics[key] for key in ("accuracy", "fd_classifier"))
                step = checkpoint.step_of(path)
                progress.append(Judged(step, accuracy.value, distance.value, distance.error or 0.0))
            result = result.with_progress(progress)
        if receipt is not None:
            receipt.write(folder / "evaluation.json")
        shown = samples.source.read(0, min(samples.source.count, 6 * self._columns()))
        self._save_grid(shown, f"samples-{result.name}.png")
        return result, receipt

    def _samples(self, path: Path) -> Subject:
        config = self.configs["diffusion"]
        request = Request(count=self.plan.samples, seed=config.seed, batch_size=BATCH, device=config.training.device)
        return generated(str(path), request)

    def _save_grid(self, images: torch.Tensor, name: str) -> None:
        with writing(self.folder):
            save_grid(images, self.folder / name, columns=self._columns())

    def _columns(self) -> int:
        classes = self.dataset.num_classes
        return classes if 2 <= classes <= 16 else 10

    def _shown_indices(self) -> NDArray[np.int64]:
        """Real images in the order of the samples: one class per column."""
        counts = self.dataset.class_counts()
        if self._columns() != self.dataset.num_classes or not all(counts):
            return np.arange(min(len(self.dataset), 6 * self._columns()))
        by_class = [np.flatnonzero(self.dataset.labels == c)[:6] for c in range(self.dataset.num_classes)]
        rows = min(len(indices) for indices in by_class)
        return np.stack([indices[:rows] for indices in by_class], axis=1).ravel()
