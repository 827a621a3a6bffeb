"""A run: one stage of a recipe on one data set into one folder: what `epg pretrain` and `finetune` do."""

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from epg.config import ConsistencyConfig, DataConfig, RunConfig, parse
from epg.data.dataset import CachedDataset, ImageDataset, open_dataset
from epg.data.subset import subset
from epg.distributed import rank, world_size
from epg.errors import OutputError, RunLockedError, UserError
from epg.loading import generator_of
from epg.networks import EPG
from epg.networks.build import build_encoder, build_epg, build_rcm
from epg.objectives.base import Objective
from epg.objectives.consistency import Consistency
from epg.objectives.diffusion import Diffusion
from epg.objectives.pretraining import Pretraining
from epg.pictures import save_grid, views_picture
from epg.randomness import key
from epg.training import checkpoint
from epg.training.handover import EncoderWeights, hand_over, read_encoder, report
from epg.training.loop import Trainer
from epg.validation import check

CACHE_BYTES = 512 * 2**20
# Settings that change neither the weights nor the order of anything: a resumed run may have others.
HARMLESS = {
    "data.source",  # the images themselves are compared
    "data.workers",
    "training.micro_batch",
    "training.device",
    "training.log_every",
    "training.trackers",
    "training.preview_every",
    "training.checkpoint_every",
    "training.keep",
    "training.keep_every",
    "training.parallel",
    "training.activation_checkpointing",
    "training.timeout",
    "training.max_nonfinite",
    "sampling",
}


def open_training_data(data: DataConfig, split: str = "train") -> ImageDataset:
    """The images of a configuration; a small set is decoded into memory at once (which also finds broken files)."""
    dataset = open_dataset(
        data.source,
        image_size=data.image_size,
        channels=data.channels,
        split=split,
        image_column=data.image_column,
        label_column=data.label_column,
    )
    if split == "train":
        dataset = subset(dataset, per_class=data.per_class, fraction=data.fraction)
    small = len(dataset) * data.channels * data.image_size**2 <= CACHE_BYTES
    dataset = CachedDataset(dataset) if small else dataset
    dataset.balanced = data.balanced
    return dataset


def resolve(config: RunConfig, dataset: ImageDataset) -> RunConfig:
    """The configuration with the number of classes filled in from the data, checked as a whole."""
    classes = config.model.num_classes
    if classes is None:
        classes = dataset.num_classes
        if classes == 0:  # the recipe could not know that there would be nothing to guide towards
            config = config.model_copy(update={"sampling": config.sampling.model_copy(update={"guidance": 1.0})})
    elif classes and dataset.num_classes == 0:
        raise UserError(
            f"--model.num-classes {classes}: {config.data.source} has no labels. Use class folders or a label column, "
            "or --model.num-classes 0 for an unconditional model."
        )
    elif classes and int(dataset.labels.max()) >= classes:
        raise UserError(
            f"--model.num-classes {classes}: {config.data.source} has a label {int(dataset.labels.max())}. "
            f"Pass --model.num-classes {dataset.num_classes}."
        )
    model = config.model.model_copy(update={"num_classes": classes})
    return check(config.model_copy(update={"model": model}))


def build_objective(config: RunConfig, encoder: EncoderWeights | None = None) -> Objective:
    """The objective of a resolved configuration, initialised from its seed alone and, given one, an encoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(config.seed, "weights"))
        if config.stage == "pretraining":
            return Pretraining(build_rcm(config.model, config.data), config)
        network = build_epg(config.model, config.data)
    if encoder is not None:
        hand_over(network.encoder, encoder)
    if not isinstance(config.objective, ConsistencyConfig):
        return Diffusion(network, config)
    frozen = None
    if encoder is not None and config.objective.auxiliary_weight:
        frozen = build_encoder(config.model, config.data)
        hand_over(frozen, encoder)
    return Consistency(network, config, frozen)


@dataclass(frozen=True)
class Run:
    """A run that is ready to train."""

    config: RunConfig
    folder: Path
    dataset: ImageDataset
    trainer: Trainer


def prepare_run(
    config: RunConfig,
    folder: Path,
    *,
    encoder: Path | None = None,
    dataset: ImageDataset | None = None,
) -> Run:
    """Everything that can fail before hours are spent: data, configuration, encoder, folder, an earlier run in it.

    Args:
        encoder: stage 1's run folder, checkpoint or weight file; None starts stage 2 from scratch.
        dataset: the images, if they are open already.
    """
    check(config)  # before the data, which may take long to open
    dataset = dataset or open_training_data(config.data)
    config = resolve(config, dataset)
    if isinstance(config.objective, ConsistencyConfig) and encoder is None and config.objective.auxiliary_weight:
        objective = config.objective.model_copy(update={"auxiliary_weight": 0.0})
        config = config.model_copy(update={"objective": objective})  # there is no encoder to compare features with
    weights = None if encoder is None else read_encoder(encoder, config)
    objective_module = build_objective(config, weights)
    claim_folder(folder, config)
    announce(config, dataset)
    if weights is not None:
        record_handover(folder, weights, objective_module)
    trainer = Trainer(objective_module, dataset, config, folder, preview_for(config, objective_module, dataset))
    return Run(config, folder, dataset, trainer)


def announce(config: RunConfig, dataset: ImageDataset) -> None:
    """What is about to happen, in the numbers that are most often misunderstood."""
    if rank() != 0:
        return
    batch, processes = config.training.batch_size, world_size()
    passes = batch // processes // (config.training.micro_batch or batch // processes)
    print(
        f"{config.stage} of {config.recipe}: {len(dataset):,} images, {config.model.num_classes} classes; batch "
        f"{batch} = {processes} processes x {passes} passes x {batch // processes // passes} images; "
        f"{config.training.steps:,} steps = {config.training.steps * batch / len(dataset):.1f} epochs",
        file=sys.stderr,
    )


def record_handover(folder: Path, weights: EncoderWeights, objective: Objective) -> None:
    """Prints what was handed over, and writes every key into `handover.json`."""
    if rank() != 0:
        return
    decoder = sum(p.numel() for n, p in objective.network.named_parameters() if not n.startswith("encoder."))
    print(report(weights, decoder), file=sys.stderr)
    keys = {"loaded": list(weights.tensors), "missing": [], "unexpected": [], "left_out": list(weights.left_out)}
    (folder / "handover.json").write_text(json.dumps({"source": str(weights.source), **keys}, indent=1))


def claim_folder(folder: Path, config: RunConfig) -> None:
    """Records the configuration in the run folder, or compares it with the one that the folder's run began with."""
    if rank() != 0:
        return
    recorded = folder / "config.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if checkpoint.listing(folder / "checkpoints"):
            refuse_changes(folder, config)
        recorded.write_text(config.to_yaml())
    except OSError as error:
        raise OutputError(f"--out {folder}: cannot be written ({error.strerror}). Choose another folder.") from error


def refuse_changes(folder: Path, config: RunConfig) -> None:
    """Raises UserError listing every setting, old -> new, that would make a resumed run another experiment."""
    found = checkpoint.newest(folder / "checkpoints")
    assert found is not None
    old, new = (flat(c) for c in (parse(found.state["config"], str(found.path)), config))
    changed = [
        f"  {name}: {old.get(name)} -> {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not any(f"{name}.".startswith(f"{h}.") for h in HARMLESS)
    ]
    if changed:
        raise UserError(
            f"--out {folder}: holds a run with other settings, which cannot be continued with these:\n"
            + "\n".join(changed)
            + "\nChoose another --out, or the settings it began with."
        )


def flat(config: RunConfig) -> dict[str, object]:
    """The configuration as `section.field: value`."""

    def walk(prefix: str, value: object) -> Iterator[tuple[str, object]]:
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from walk(f"{prefix}.{name}" if prefix else name, inner)
        else:
            yield prefix, value

    return dict(walk("", config.model_dump(mode="json")))


def preview_for(config: RunConfig, objective: Objective, dataset: ImageDataset):  # type: ignore[no-untyped-def]
    """Draws samples (stage 2) or the views the encoder learns from (stage 1) into a PNG file."""
    if isinstance(objective, Pretraining):
        return lambda file: views_picture(objective, dataset, file) if rank() == 0 else None
    network = objective.network
    assert isinstance(network, EPG)

    def draw(file: Path) -> None:
        model = generator_of(config, network, dataset.class_names)
        count = min(64, max(16, 4 * model.num_classes))
        labels = model.make_labels(count, balanced=True, seed=config.seed)
        images = model.sample(labels, count, seed=config.seed)
        if rank() == 0:
            save_grid(images, file)

    return draw


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One writer per run folder. Raises RunLockedError naming the process that holds it."""
    if rank() != 0:
        yield
        return
    file = folder / "run.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = file.open("a+")
    except OSError as error:
        raise OutputError(f"--out {folder}: cannot be written ({error.strerror}). Choose another folder.") from error
    with stream:
        # A lock outlives its process in forked copies of the open file: loader workers would hold it after a kill -9.
        os.register_at_fork(after_in_child=stream.close)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.seek(0)
            raise RunLockedError(
                f"--out {folder}: process {stream.read().strip() or '?'} is writing to it. Wait for it, or choose "
                "another folder."
            ) from None
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


@contextmanager
def processes() -> Iterator[None]:
    """Joins the other processes when started by torchrun (or anything that sets its variables)."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(seconds=600))
    try:
        yield
    finally:
        dist.destroy_process_group()


def train(config: RunConfig, folder: Path, *, encoder: Path | None = None) -> Run:
    """Trains to the end, or continues where an earlier run in `folder` stopped."""
    with processes(), locked(folder):
        run = prepare_run(config, folder, encoder=encoder)
        run.trainer.run()
    return run
