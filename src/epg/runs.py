"""A run: one stage of a recipe on one data set into one folder: what `epg pretrain` and `finetune` do."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from epg.checkpoint.base import Beginning, begin_with, read_base
from epg.checkpoint.export import frozen_encoders
from epg.checkpoint.handover import (
    EncoderWeights,
    beginning_of,
    hand_over,
    handed_over,
    read_encoder,
    same_beginning,
)
from epg.checkpoint.loading import generator_of
from epg.checkpoint.lock import locked
from epg.config.settings import RunConfig
from epg.data.configured import open_training_data
from epg.data.loading.base import ImageDataset
from epg.distributed import failing_together, processes, rank, world_size
from epg.drawing import jumping
from epg.errors import ArtefactError, UserError
from epg.networks import Spectrum
from epg.objectives import OBJECTIVES
from epg.objectives.base import GeneratorObjective, Objective
from epg.randomness import weights_seed
from epg.sampling.pictures import examples_picture, save_grid
from epg.training import resume as resuming
from epg.training.beginning import announce, record
from epg.training.callbacks import Callback
from epg.training.judging import Judge, Preview
from epg.training.loop import Trainer
from epg.training.parallel import refuse_uneven_processes
from epg.training.resolving import resolve
from epg.training.spectra import measure
from epg.training.stopping import StopSignals


def build_objective(
    config: RunConfig, encoder: EncoderWeights | None = None, begun: Beginning | None = None
) -> Objective:
    """The objective of a resolved configuration, initialised from its seed alone and, given one, an encoder, or a whole
    generator, whose encoder then stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights_seed(config.seed, "weights"))
        objective = OBJECTIVES[config.stage].build(config)
    if encoder is not None:
        for module in objective.encoders:
            if begun is None or module not in objective.network.children():
                hand_over(module, encoder)
    if begun is not None:
        objective.network.load_state_dict(begun.weights.tensors, strict=False)  # compared in `refit`
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
    base: Path | None = None,
    dataset: ImageDataset | None = None,
    resume: Path | None = None,
    overrides: Collection[str] = (),
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Everything that can fail before hours are spent: data, configuration, encoder, folder, an earlier run in it.

    Args:
        encoder: stage 1's run folder, checkpoint or weight file; None starts stage 2 from scratch. Refused where a run
            is continued that began in another way.
        base: a generator to begin with, see `epg.checkpoint.base`; its run says which encoder it had, which is read
            where a loss needs it.
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
        begun, past = None, {}
        if found is not None:
            past = beginning_of(run := found.path.parent.parent)
            if resume is None or encoder is not None or base is not None:
                same_beginning(past, run, encoder, base)
            encoder = None  # what it began with is in the checkpoint
        elif base is not None:
            begun, encoder = begin_with_base(base, encoder, config, dataset)
        if encoder is None and not past:
            config = without_encoder(config, before, begun)
        start = None if found is None else resuming.continued(found, folder, config, dataset.fingerprint(), overrides)
        if start is None and overrides:
            raise UserError(f"--override: there is no run in {folder} that could be continued with other settings")
        weights = None if encoder is None else read_encoder(encoder, config)
        objective = build_objective(config, weights, begun)
        announce(config, dataset, start)
        record(folder, config, weights, objective, begun, past, 0 if start is None else start.checkpoint.step)
    spectrum = objective.spectrum if start is None else None
    if spectrum is not None:
        measure(spectrum, dataset, config, objective.normalizer)
    evaluation = None
    if config.evaluated_every:
        from epg.evaluation.periodic import open_evaluation  # slow to import

        step, encoder = 0 if start is None else start.checkpoint.step, encoder or handed_over(folder)
        trained_in = frozen_encoders(objective.state_dict() if start is None else start.checkpoint.tensors("model"))
        evaluation = open_evaluation(config, objective, dataset, folder, step, encoder, trained_in)
    preview, judge = preview_for(config, objective, dataset), judge_for(config, objective, dataset, spectrum)
    trainer = Trainer(objective, dataset, config, folder, preview, start, evaluation, judge, callbacks)
    return Run(config, folder, dataset, trainer)


def begin_with_base(
    base: Path, encoder: Path | None, config: RunConfig, dataset: ImageDataset
) -> tuple[Beginning, Path | None]:
    """A generator's weights for a run, and where the encoder is that a loss compares images with, if one does.

    Raises ArtefactError for a generator that cannot fit, UserError for an encoder that nothing needs.
    """
    begun = begin_with(read_base(base), config, dataset.class_names)
    if config.objective.frozen_encoder:
        once = begun.base.encoder
        if encoder is None and once is not None and not once.exists():
            raise ArtefactError(
                f"--encoder: the generator in {base} began with the encoder in {once}, which is not there any more. "
                "Pass the run folder of `epg pretrain` where it is now."
            )
        return begun, encoder or once
    if encoder is not None:
        raise UserError(
            f"--encoder: --stage {config.stage} goes on with the encoder that is in the generator given to --from, and "
            "no loss of it needs another. Leave it out."
        )
    return begun, None


def without_encoder(config: RunConfig, before: RunConfig | None, begun: Beginning | None = None) -> RunConfig:
    """The configuration of a run that starts without an encoder, of which there is then nothing frozen to compare with.

    A run that is continued has its frozen encoder in the checkpoint if it began with one. Raises UserError where a
    generator is gone on from, and the stage compares images in the features of one.
    """
    if before is not None and before.objective.frozen_encoder:
        return config
    alone = config.objective.from_scratch()
    if alone.frozen_encoder or (begun is not None and config.objective.frozen_encoder):
        off = config.objective.without_encoder
        whose = ", and the run given to --from does not say where its own came from" if begun is not None else ""
        random = f", with --objective.initial random where {config.stage} begins from scratch" if begun is None else ""
        raise UserError(
            f"--encoder: --stage {config.stage} compares images in the features of a pre-trained encoder{whose}. Pass "
            f"the run folder of `epg pretrain`{random}{off and f', or {off} to do without'}."
        )
    return config.model_copy(update={"objective": alone})


def preview_for(config: RunConfig, objective: Objective, dataset: ImageDataset) -> Preview:
    """Draws samples, or for an encoder what it learns from, into a PNG file."""

    def draw(file: Path) -> None:
        if isinstance(objective, GeneratorObjective):
            counts = dataset.class_counts(config.model.num_classes or 0)
            model = generator_of(config, objective.network, dataset.class_names, counts)
            count = min(64, max(16, 4 * len(model.classes.usual)))
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
    means = config.objective.samples and not jumping(config.objective.sampler)
    if not (config.evaluation.linear_every and means):
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
    base: Path | None = None,
    resume: Path | None = None,
    overrides: Collection[str] = (),
    dataset: ImageDataset | None = None,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Trains to the end, or continues where an earlier run stopped; see `prepare_run`.

    Args:
        folder: the run folder; None: that of `resume`, or else runs/RECIPE/STAGE.
    """
    if resume is not None:
        resuming.refuse_no_checkpoint(resume)
    if folder is None:
        folder = config.folder if resume is None else resuming.run_folder_of(resume)
    signals = StopSignals(starting=True)
    with signals.caught(), processes(config.training.timeout, lambda: signals.received), locked(folder):
        run = prepare_run(
            config,
            folder,
            encoder=encoder,
            base=base,
            dataset=dataset,
            resume=resume,
            overrides=overrides,
            callbacks=callbacks,
        )
        run.trainer.run(signals)
    return run
