"""A run: one stage of a recipe on one data set into one folder: what `epg pretrain` and `finetune` do."""

import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from epg.checkpoint import export, handover
from epg.checkpoint.checkpoint import listing
from epg.checkpoint.handover import EncoderWeights, hand_over, handed_over, read_encoder, report
from epg.checkpoint.loading import generator_of
from epg.checkpoint.lock import locked
from epg.config.settings import RunConfig
from epg.config.validation import check
from epg.config.yaml_file import read_yaml
from epg.data.loading.configured import open_training_data
from epg.data.loading.dataset import ImageDataset
from epg.distributed import failing_together, pick_device, processes, rank, world_size
from epg.errors import OutputError, UserError
from epg.networks import Spectrum
from epg.objectives import OBJECTIVES
from epg.objectives.base import GeneratorObjective, Objective
from epg.randomness import weights_seed
from epg.samplers import MEANS
from epg.sampling.pictures import examples_picture, save_grid
from epg.storage import outputs
from epg.storage.files import replace_text
from epg.training import resume as resuming
from epg.training.judging import Judge, Preview
from epg.training.loop import Trainer
from epg.training.parallel import refuse_uneven_processes
from epg.training.resume import Start
from epg.training.spectra import measure
from epg.training.stopping import StopSignals


def resolve(config: RunConfig, dataset: ImageDataset, before: RunConfig | None = None) -> RunConfig:
    """The configuration with the number of classes filled in from the data, and an `auto` precision from the device or
    from how the run that is continued began; checked as a whole."""
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
    model, training = config.model.model_copy(update={"num_classes": classes}), config.training
    if training.precision == "auto":
        found = before.training.precision if before else best_precision(pick_device(training.device))
        training = training.model_copy(update={"precision": found})
    return check(config.model_copy(update={"model": model, "training": training}))


def best_precision(device: torch.device) -> Literal["bf16", "fp32"]:
    """bf16 where torch says that the device multiplies it in hardware: of CPUs those with avx512_bf16."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "fp32"


def build_objective(config: RunConfig, encoder: EncoderWeights | None = None) -> Objective:
    """The objective of a resolved configuration, initialised from its seed alone and, given one, an encoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights_seed(config.seed, "weights"))
        objective = OBJECTIVES[config.stage].build(config)
    if encoder is not None:
        for module in objective.encoders:
            hand_over(module, encoder)
    return objective


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
    resume: Path | None = None,
    overrides: Collection[str] = (),
) -> Run:
    """Everything that can fail before hours are spent: data, configuration, encoder, folder, an earlier run in it.

    Args:
        encoder: stage 1's run folder, checkpoint or weight file; None starts stage 2 from scratch.
        dataset: the images, if they are open already.
        resume: the run folder or checkpoint to continue from; None takes the newest checkpoint in `folder`, if any.
        overrides: settings that may differ from those of the run that is continued.
    """
    with failing_together():
        refuse_uneven_processes(config, world_size())
        dataset = dataset or open_training_data(config.data)
        found = resuming.starting_point(folder, resume)
        before = None if found is None else resuming.config_of(found)
        config = resolve(config, dataset, before)
        if encoder is None:
            config = without_encoder(config, before)
        start = None if found is None else resuming.continued(found, folder, config, dataset.fingerprint(), overrides)
        if start is None and overrides:
            raise UserError(f"--override: there is no run in {folder} that could be continued with other settings")
        weights = None if encoder is None else read_encoder(encoder, config)
        objective = build_objective(config, weights)
        announce(config, dataset, start)
        record(folder, config, weights, objective)
    spectrum = objective.spectrum if start is None else None
    if spectrum is not None:
        measure(spectrum, dataset, config, objective.normalizer)
    evaluation = None
    if config.evaluation.every:
        from epg.evaluation.periodic import open_evaluation  # slow to import

        step = 0 if start is None else start.checkpoint.step
        evaluation = open_evaluation(config, objective, dataset, folder, step, encoder or handed_over(folder))
    preview, judge = preview_for(config, objective, dataset), judge_for(config, objective, dataset, spectrum)
    trainer = Trainer(objective, dataset, config, folder, preview, start, evaluation, judge)
    return Run(config, folder, dataset, trainer)


def without_encoder(config: RunConfig, before: RunConfig | None) -> RunConfig:
    """The configuration of a run that starts without an encoder, of which there is then nothing frozen to compare with.

    A run that is continued has its frozen encoder in the checkpoint if it began with one.
    """
    if before is not None and before.objective.frozen_encoder:
        return config
    return config.model_copy(update={"objective": config.objective.from_scratch()})


def announce(config: RunConfig, dataset: ImageDataset, start: Start | None = None) -> None:
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
    for line in dataset.report():
        print(line, file=sys.stderr)
    if start is not None:
        print(resuming.describe(start, config, len(dataset)), file=sys.stderr)


def record(folder: Path, config: RunConfig, weights: EncoderWeights | None, objective: Objective) -> None:
    """Writes `config.yaml` and, with every key, what was handed over from stage 1 (`handover.json`)."""
    if rank() != 0:
        return
    refuse_foreign(folder)
    with outputs.writing(folder):
        replace_text(folder / "config.yaml", config.to_yaml())
        if weights is not None:
            replace_text(folder / handover.FILE, weights.record())
    if weights is not None:
        decoder = sum(p.numel() for n, p in objective.network.named_parameters() if not n.startswith("encoder."))
        print(report(weights, decoder), file=sys.stderr)


def refuse_foreign(folder: Path) -> None:
    """Raises OutputError where a folder holds files, named as a run's are, that no run of ours wrote."""
    if (folder / export.FOLDER).exists():
        outputs.refuse_foreign(folder / export.FOLDER, export.strange)
    names = [name for name in ("config.yaml", handover.FILE, "log.jsonl") if (folder / name).exists()]
    try:
        ours = not names or RunConfig.model_fields.keys() <= read_yaml(folder / "config.yaml").keys()
    except UserError:
        ours = False
    if not ours and not listing(folder / "checkpoints"):
        raise OutputError(f"--out {folder}: holds {names[0]}, and no run wrote it there. Choose a new folder.")


def preview_for(config: RunConfig, objective: Objective, dataset: ImageDataset) -> Preview:
    """Draws samples, or for an encoder what it learns from, into a PNG file."""

    def draw(file: Path) -> None:
        if isinstance(objective, GeneratorObjective):
            model = generator_of(config, objective.network, dataset.class_names)
            count = min(64, max(16, 4 * model.num_classes))
            images = model.sample(model.make_labels(count, balanced=True, seed=config.seed), count, seed=config.seed)
            if rank() == 0:
                save_grid(images, file)
        elif rank() == 0:
            examples_picture(objective, dataset, file)

    return draw


def judge_for(
    config: RunConfig, objective: Objective, dataset: ImageDataset, spectrum: Spectrum | None
) -> Judge | None:
    """Compares a denoiser that predicts means with the best linear one. Raises UserError without held-out images."""
    if not (config.evaluation.linear_every and config.objective.predicts in MEANS):
        return None
    assert isinstance(objective, GeneratorObjective)
    from epg.evaluation.held_out import held_out_of
    from epg.evaluation.linear import linear_judge

    with failing_together():
        known = None if spectrum is None else spectrum.overall()
        judge = linear_judge(dataset, held_out_of(config.data), config, objective.normalizer, known)
    return lambda: judge(objective.denoiser)


def train(
    config: RunConfig,
    folder: Path | None = None,
    *,
    encoder: Path | None = None,
    resume: Path | None = None,
    overrides: Collection[str] = (),
) -> Run:
    """Trains to the end, or continues where an earlier run stopped; see `prepare_run`.

    Args:
        folder: the run folder; None: that of `resume`, or else runs/RECIPE/STAGE.
    """
    if resume is not None:
        resuming.refuse_no_checkpoint(resume)
    if folder is None:
        folder = Path("runs") / config.recipe / config.stage if resume is None else resuming.run_folder_of(resume)
    signals = StopSignals(starting=True)
    with signals.caught(), processes(config.training.timeout, lambda: signals.received), locked(folder):
        run = prepare_run(config, folder, encoder=encoder, resume=resume, overrides=overrides)
        run.trainer.run(signals)
    return run
