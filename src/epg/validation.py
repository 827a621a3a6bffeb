"""What is out of range or impossible in combination, found before anything runs."""

import math
import re
from collections.abc import Iterator

from epg.complaints import Locate, nowhere
from epg.config import ConsistencyConfig, DiffusionConfig, Objective, PretrainingConfig, RunConfig
from epg.errors import UserError
from epg.samplers import problems as sampling_problems
from epg.samplers import settled

# Beyond these a number is a slip of the finger, and building the network would fill any memory.
LARGEST_IMAGE, MOST_TOKENS, WIDEST, DEEPEST, LARGEST_COUNT = 8192, 2**16, 2**15, 1000, 10**12
LARGEST_SPECTRUM = 2**26  # numbers: 1000 classes of 64 pixels fit, with 256 pixels they do not
LONGEST_TEXT = 4096  # characters
FLAG = re.compile(r"--([a-z0-9.-]+)")
NAME = re.compile(r"\w[\w.+-]{0,99}")


def check(config: RunConfig, locate: Locate = nowhere) -> RunConfig:
    """The same configuration, or one UserError that lists everything wrong with it, by line where `locate` knows it."""
    found = [
        problem + locate(tuple(flag[1].replace("-", "_").split("."))) if (flag := FLAG.match(problem)) else problem
        for problem in problems(config)
    ]
    if found:
        raise UserError("the configuration cannot run:\n" + "\n".join(f"  {p}" for p in found))
    return config


def problems(config: RunConfig) -> Iterator[str]:
    """Everything out of range or impossible in combination, each with the flag and the cure."""
    data, model, training, noise = config.data, config.model, config.training, config.noise
    for flag, value, low in [
        ("data.image-size", data.image_size, 1),
        ("data.workers", data.workers, 0),
        ("data.max-damaged", data.max_damaged, 0),
        ("data.per-class", 1 if data.per_class is None else data.per_class, 1),
        ("model.patch-size", model.patch_size, 1),
        ("model.stem", model.stem, 0),
        ("model.num-classes", model.num_classes or 0, 0),
        ("model.encoder.depth", model.encoder.depth, 1),
        ("model.encoder.width", model.encoder.width, 1),
        ("model.encoder.heads", model.encoder.heads, 1),
        ("model.decoder.width", model.decoder.width, 1),
        ("model.decoder.heads", model.decoder.heads, 1),
        ("training.batch-size", training.batch_size, 2 if config.stage != "diffusion" else 1),
        ("training.steps", training.steps, 1),
        ("training.log-every", training.log_every, 1),
        ("training.max-nonfinite", training.max_nonfinite, 1),
        ("training.timeout", training.timeout, 0),
        ("training.preview-every", training.preview_every, 0),
        ("training.checkpoint-every", training.checkpoint_every, 1),
        ("training.keep", training.keep, 2),
        ("training.keep-every", training.keep_every, 0),
        ("optimizer.warmup-steps", config.optimizer.warmup_steps, 0),
        ("evaluation.every", config.evaluation.every, 0),
        ("evaluation.linear-every", config.evaluation.linear_every, 0),
        ("evaluation.count", config.evaluation.count, 20),
    ]:
        if value < low:
            yield f"--{flag} {value}: must be at least {low}"
    if not 0 < data.fraction <= 1:
        yield f"--data.fraction {data.fraction}: must be more than 0 and at most 1"
    if not data.timeout > 0:
        yield f"--data.timeout {data.timeout}: must be more than 0"
    if data.channels not in (1, 3):
        yield f"--data.channels {data.channels}: must be 1 or 3"
    if data.channels == 1 and data.normalization == "imagenet":
        yield "--data.normalization imagenet: has three channels; grey images take symmetric"
    if model.patch_size > 0 and data.image_size % model.patch_size:
        yield f"--data.image-size {data.image_size}: not a multiple of --model.patch-size {model.patch_size}"
    for name, tower in (("encoder", model.encoder), ("decoder", model.decoder)):
        if tower.heads > 0 and tower.width % tower.heads:
            yield f"--model.{name}.width {tower.width}: not a multiple of --model.{name}.heads {tower.heads}"
    if training.micro_batch is not None and not 0 < training.micro_batch <= training.batch_size:
        yield f"--training.micro-batch {training.micro_batch}: must be between 1 and --training.batch-size"
    elif training.micro_batch is not None and training.batch_size % training.micro_batch:
        yield f"--training.micro-batch {training.micro_batch}: must divide --training.batch-size {training.batch_size}"
    if training.precision == "fp64" and training.preview_every:
        yield "--training.precision fp64: is for comparisons and draws no samples; add --training.preview-every 0"
    if not 0 < noise.sigma_min < noise.sigma_max < math.inf:
        yield f"--noise.sigma-min {noise.sigma_min}, --noise.sigma-max {noise.sigma_max}: must be 0 < min < max"
    if not 0 < config.shift < math.inf:
        yield f"--noise.shift {noise.shift}: must be positive"
    if not 0 < config.optimizer.lr < math.inf:
        yield f"--optimizer.lr {config.optimizer.lr}: must be positive"
    if config.optimizer.kind == "muon" and not 0 < config.optimizer.muon_lr < math.inf:
        yield f"--optimizer.muon-lr {config.optimizer.muon_lr}: must be positive"
    if config.optimizer.kind == "muon" and training.parallel == "fsdp":
        yield "--optimizer.kind muon: needs whole matrices, which --training.parallel fsdp cuts; choose ddp or adamw"
    if config.optimizer.clip is not None and not config.optimizer.clip > 0:
        yield f"--optimizer.clip {config.optimizer.clip}: must be positive, or none"
    if not all(0 <= decay < 1 for decay in training.ema):
        yield f"--training.ema {training.ema}: decays must be in [0, 1)"
    if not all(0 < width < 0.28 for width in training.power_ema):
        yield f"--training.power-ema {training.power_ema}: relative widths must be between 0 and 0.28"
    if not all(0 <= beta < 1 for beta in config.optimizer.betas):
        yield f"--optimizer.betas {config.optimizer.betas}: must be in [0, 1)"
    if config.gaussians * data.channels**2 * data.image_size**2 > LARGEST_SPECTRUM:
        yield (
            f"--objective.spectrum class: the statistics of {config.gaussians - 1} classes at {data.image_size} pixels "
            "would take gigabytes; choose global"
        )
    yield from size_problems(config)
    yield from objective_problems(config.objective)
    if config.stage != "pretraining":
        consistency, sampling = config.stage == "consistency", config.sampling.model_dump()
        names = {name: f"--sampling.{name}" for name in sampling}
        settings = settled(sampling, {}, consistency)
        yield from sampling_problems(settings, names, consistency=consistency, conditional=model.num_classes != 0)


def size_problems(config: RunConfig) -> Iterator[str]:
    """Sizes that no memory holds, factors without meaning, names that are no names."""
    data, model, training, optimizer = config.data, config.model, config.training, config.optimizer
    if not NAME.fullmatch(config.recipe):
        yield f"--recipe {config.recipe[:100]!r}: a name of letters, digits, '.', '-' and '_'; folders are called so"
    for flag, text in [
        ("data.source", data.source),
        ("data.image-column", data.image_column or ""),
        ("data.label-column", data.label_column or ""),
        ("training.device", training.device),
    ]:
        if len(text) > LONGEST_TEXT or any(character < " " for character in text):
            yield f"--{flag} {text[:100]!r}: longer than {LONGEST_TEXT} characters, or with control characters"
    for flag, value, high in [
        ("data.image-size", data.image_size, LARGEST_IMAGE),
        ("data.workers", data.workers, 1024),
        ("model.num-classes", model.num_classes or 0, 10**6),
        ("model.encoder.depth", model.encoder.depth, DEEPEST),
        ("model.encoder.width", model.encoder.width, WIDEST),
        ("model.decoder.width", model.decoder.width, WIDEST),
        ("model.projector-hidden", model.projector_hidden, WIDEST),
        ("model.projector-out", model.projector_out, WIDEST),
        ("model.stem", model.stem, 1024),
        ("training.batch-size", training.batch_size, 10**7),
        ("training.steps", training.steps, LARGEST_COUNT),
        ("training.timeout", training.timeout, LARGEST_COUNT),
    ]:
        if value > high:
            yield f"--{flag} {value if value < 10**20 else 'is too large'}: must be at most {high}"
    if data.image_size >= 1 and model.patch_size >= 1 and (data.image_size // model.patch_size) ** 2 > MOST_TOKENS:
        yield f"--model.patch-size {model.patch_size}: makes over {MOST_TOKENS} patches of {data.image_size} pixels"
    for flag, number in [
        ("model.mlp-ratio", model.mlp_ratio),
        ("model.projector-hidden", model.projector_hidden),
        ("model.projector-out", model.projector_out),
        ("noise.rho", config.noise.rho),
        ("noise.sigma-data", config.noise.sigma_data),
        ("optimizer.lr-batch-size", 1 if optimizer.lr_batch_size is None else optimizer.lr_batch_size),
    ]:
        if not 0 < number <= WIDEST:
            yield f"--{flag} {number}: must be positive and at most {WIDEST}"
    if optimizer.weight_decay < 0:
        yield f"--optimizer.weight-decay {optimizer.weight_decay}: must be at least 0"


def objective_problems(objective: Objective) -> Iterator[str]:
    """What is wrong with the settings of a stage."""
    values = objective.model_dump()
    for name in ("label_dropout", "dropout", "momentum"):
        if name in values and not 0 <= values[name] <= 1:
            yield f"--objective.{name.replace('_', '-')} {values[name]}: must be between 0 and 1"
    for name in ("std", "tau1", "tau2", "contrastive_temperature", "auxiliary_temperature", "c", "d", "s0"):
        if values.get(name) is not None and not values[name] > 0:
            yield f"--objective.{name.replace('_', '-')} {values[name]}: must be positive"
    if isinstance(objective, PretrainingConfig) and objective.s1 < objective.s0:
        yield f"--objective.s1 {objective.s1}: must be at least --objective.s0 {objective.s0}"
    if isinstance(objective, DiffusionConfig) and objective.levels < 2:
        yield f"--objective.levels {objective.levels}: must be at least 2"
    if isinstance(objective, ConsistencyConfig) and objective.dropout == 1:
        yield "--objective.dropout 1: nothing would be left"
