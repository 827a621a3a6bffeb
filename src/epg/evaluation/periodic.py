"""Evaluation while training goes on: samples of the averaged weights, drawn on all processes, judged and recorded.

Nothing here touches the randomness of training, and what is recorded follows from the step alone: a run that is
interrupted, during an evaluation or between two, ends with the weights and the receipts of one that was not.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from epg.checkpoint.best import Best, best_of, mark
from epg.checkpoint.checkpoint import listing, step_of
from epg.checkpoint.loading import generator_of
from epg.config.settings import RunConfig
from epg.data.loading.base import ImageDataset
from epg.distributed import all_gather, failing_together, from_first, rank, world_size
from epg.errors import OutputError, UserError
from epg.evaluation import receipt
from epg.evaluation.evaluate import evaluate
from epg.evaluation.jury import Jury, Options, open_jury
from epg.evaluation.real import FEWEST_TO_SPLIT
from epg.evaluation.receipt import Receipt, default_metric
from epg.evaluation.sources import TensorSource
from epg.evaluation.subjects import Subject, like
from epg.generator import Generator
from epg.messages import say
from epg.networks import EPG, RCM
from epg.objectives.base import Objective
from epg.sampling.request import label_kind

FOLDER = "evaluations"
BLOCK = 32  # images sampled together, whatever the number of processes

Between = Callable[[], None]
"""Called now and then, on all processes together; it may raise to end the evaluation."""


class Examination(Protocol):
    """What an evaluation measures at a step; every process calls it, the first one gets the receipt."""

    def __call__(self, step: int, between: Between) -> Receipt | None: ...


class PeriodicEvaluation:
    """Decides when a run is evaluated, keeps the receipts in `evaluations/`, and marks the best checkpoint.

    Args:
        start: the step the run continues from; receipts of later ones are of a past that did not come to pass.
        metric: key by which the best is chosen; None is FID, or the first Frechet distance, or the first metric.
    """

    def __init__(
        self, run: Path, every: int, steps: int, start: int, examination: Examination, metric: str | None = None
    ) -> None:
        self.run, self.every, self.steps, self.metric = run, every, steps, metric
        self.examination = examination
        with failing_together():
            if rank() == 0:
                self._forget_after(start)

    def due(self, step: int) -> bool:
        """Whether this step is evaluated (and therefore has a checkpoint): every so many, and the last."""
        return step > 0 and (step % self.every == 0 or step == self.steps)

    def missing(self, step: int) -> bool:
        """Whether the evaluation of a step is still to be done, as after an interruption. The same on all processes."""
        return bool(from_first(self.due(step) and receipt.intact(self._file(step)) is None))

    def __call__(self, step: int, between: Between, saved: Callable[[], bool]) -> dict[str, float]:
        """Evaluates and records; the numbers for the trackers, on the first process.

        Args:
            saved: waits for the checkpoint of this step, on all processes together; whether it is on disk.
        """
        begin = time.perf_counter()
        found = self.examination(step, between)
        on_disk = saved()
        if found is None:
            return {}
        found = found.model_copy(update={"seconds": round(time.perf_counter() - begin, 3)})
        best = False
        try:
            mark_here = self._mark(step, found)
            if mark_here is None:
                told = f"--evaluation.best {self.metric}: not measured; choose from {', '.join(found.metrics)}"
                warnings.warn(told, stacklevel=2)
            elif on_disk and self._checkpoint(step).is_dir() and better(mark_here, best_of(self.run)):
                mark(self.run, mark_here)
                best = True
            found.write(self._file(step))
        except (OSError, OutputError) as error:
            text = f"{self.run}: the evaluation of step {step} could not be recorded ({error}); training goes on"
            warnings.warn(text, stacklevel=2)
        shown = ", ".join(f"{key} {n.value:.4g}" for key, n in found.metrics.items())
        say(f"evaluation of step {step}: {shown}{' (best so far)' if best else ''}")
        return {f"evaluation/{key}": n.value for key, n in found.metrics.items()}

    def _file(self, step: int) -> Path:
        return self.run / FOLDER / f"step-{step:08d}.json"

    def _checkpoint(self, step: int) -> Path:
        return self.run / "checkpoints" / f"step-{step:08d}"

    def _mark(self, step: int, found: Receipt) -> Best | None:
        """The mark that a receipt would set; None where it lacks the metric that decides."""
        key = self.metric or default_metric(found)
        if (number := found.metrics.get(key)) is None:
            return None
        place = str(self._checkpoint(step).relative_to(self.run))
        return {"step": step, "checkpoint": place, "metric": key, "value": number.value, "better": number.better}

    def _forget_after(self, start: int) -> None:
        """Drops receipts beyond the step that the run continues from, and a mark that they had set."""
        kept: dict[int, Receipt] = {}
        for step in sorted(step_of(file.with_suffix("")) for file in (self.run / FOLDER).glob("step-*.json")):
            found = receipt.intact(self._file(step))
            if found is not None and step > start:
                self._file(step).unlink()
            elif found is not None:
                kept[step] = found
        held = best_of(self.run)
        on_disk = {step_of(path) for path in listing(self.run / "checkpoints")}
        if held is not None and held["step"] <= start and held["step"] in on_disk:
            return
        best: Best | None = None
        for step in sorted(kept.keys() & on_disk):
            again = self._mark(step, kept[step])
            if again is not None and better(again, best):
                best = again
        mark(self.run, best) if best is not None or held is not None else None


def better(mark: Best, held: Best | None) -> bool:
    """Whether a mark takes the place of the one that is held."""
    if held is None or held["metric"] != mark["metric"]:
        return True
    return mark["value"] < held["value"] if mark["better"] == "lower" else mark["value"] > held["value"]


# What is measured -----------------------------------------------------------------------------------------------------


class GeneratorExamination:
    """Metrics of `epg evaluate` on samples of a network in training."""

    def __init__(self, config: RunConfig, network: EPG, dataset: ImageDataset, jury: Jury, subject: Subject) -> None:
        self.config, self.jury, self.subject = config, jury, subject
        counts = dataset.class_counts(config.model.num_classes or 0)
        self.model = generator_of(config, network, dataset.class_names, counts)

    def __call__(self, step: int, between: Between) -> Receipt | None:
        evaluation, jury = self.config.evaluation, self.jury
        count = evaluation.count
        images = draw(self.model, count, self.config.seed, between)
        labels = self.model.make_labels(count, balanced=True)
        found = evaluate(
            TensorSource(images, labels),
            jury.against,
            jury.extractors,
            jury.words,
            seed=self.config.seed,
            on_progress=lambda done, total: between(),
            warnings=jury.doubts(self.subject),
            held_out=jury.compared(count),
        )
        if found is None:
            return None
        told: dict[str, Any] = {
            "kind": "generator",
            "recipe": self.config.recipe,
            "stage": self.config.stage,
            "step": step,
            "ema": self.config.weights,
            "labels": None if labels is None else label_kind(self.model, "balanced", ()),
            "seed": self.config.seed,
            "sampling": self.config.sampling.model_dump(mode="json"),
            **({"trained_in": list(self.subject.trained_in)} if self.subject.trained_in else {}),
        }
        return found.model_copy(update={"samples": {**found.samples, **told, "name": f"step {step}"}})


def draw(model: Generator, count: int, seed: int, between: Between) -> Tensor:
    """uint8 images (count, C, H, W) 0 to count - 1 of a seed, on every process; each draws every so many-th block.

    All draw equally many (the last of them for nothing), as sharded weights need them all at every call.
    """
    rounds = -(-count // (BLOCK * world_size()))
    labels = model.make_labels(rounds * BLOCK * world_size(), balanced=True)
    parts = []
    for i in range(rounds):
        first = (i * world_size() + rank()) * BLOCK
        mine = None if labels is None else labels[first : first + BLOCK]
        images = model.sample(mine, BLOCK, seed=seed, first=first, batch_size=BLOCK)
        parts.append(all_gather(images.to(model.device)).cpu())
        between()
    return torch.cat(parts)[:count]


# Opening --------------------------------------------------------------------------------------------------------------


def open_evaluation(
    config: RunConfig,
    objective: Objective,
    dataset: ImageDataset,
    run: Path,
    start: int,
    encoder: Path | None,
    trained_in: Sequence[str] = (),
) -> PeriodicEvaluation:
    """The evaluation that a configuration asks for, with everything it needs; every process must call it.

    Args:
        start: the step the run continues from.
        encoder: of stage 1, in whose features images without labels are compared.
        trained_in: sha256 of those in whose features the loss is measured, in which nothing is judged.

    Raises UserError where a reference or features are missing.
    """
    wanted, network = config.evaluation, objective.network
    examination: Examination
    if isinstance(network, RCM):
        from epg.evaluation.periodic_probe import EncoderExamination

        examination = EncoderExamination(config, network.encoder, dataset)
    else:
        assert isinstance(network, EPG)
        features = list(wanted.features)
        unnamed, classes = not features and wanted.reference is None, dataset.num_classes
        if unnamed and trained_in and (classes < 2 or len(dataset) < FEWEST_TO_SPLIT):
            features = ["random"]
        elif unnamed and classes < 2:
            if encoder is None:
                raise UserError(
                    "--evaluation.every: these images have no labels, and there is no pre-trained encoder to compare "
                    "them with. Name --evaluation.features random or encoder=RUN, or another --evaluation.reference"
                )
            features = [f"encoder={encoder}"]
        subject = like(dataset, config.data, trained_in)
        options = Options(features, seed=config.seed, device=config.training.device)
        jury = open_jury(subject, str(run), wanted.reference, list(wanted.metrics) or None, None, options)
        examination = GeneratorExamination(config, network, dataset, jury, subject)
    return PeriodicEvaluation(run, config.evaluated_every, config.training.steps, start, examination, wanted.best)
