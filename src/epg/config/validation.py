"""What is impossible in combination, found before anything runs. The range of each setting is at its field."""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from pydantic import ValidationError

from epg.config.complaints import Locate, inside_of, nowhere, plain
from epg.config.diffusion import DiffusionConfig
from epg.config.objectives import OneStepConfig
from epg.config.settings import RunConfig, complaints_of
from epg.drawing import jumping, settled
from epg.drawing import problems as sampling_problems
from epg.errors import UserError

# Beyond these a number is a slip of the finger, and building the network would fill any memory.
MOST_TOKENS = 2**16
LARGEST_SPECTRUM = 2**26  # numbers: 1000 classes of 64 pixels fit, with 256 pixels they do not
LARGEST_MOMENTS = 2**30  # numbers: 75 classes of width 768 at three levels fit
LONGEST_TEXT = 4096  # characters
FLAG = re.compile(r"--([a-z0-9.-]+)")
NAME = re.compile(r"\w[\w.+-]{0,99}")


def check(config: RunConfig, locate: Locate = nowhere) -> RunConfig:
    """The same configuration, or one UserError that lists everything wrong with it, by line where `locate` knows it."""
    if found := listed(config, locate):
        raise UserError("the configuration cannot run:\n" + "\n".join(found))
    return config


def listed(config: RunConfig, locate: Locate) -> list[str]:
    """A line for each problem."""
    return [f"  {problem}{locate(setting_of(problem))}" for problem in problems(config)]


def setting_of(problem: str) -> tuple[str, ...]:
    """The setting that a line names first."""
    named = FLAG.match(problem.strip())
    return tuple(named[1].replace("-", "_").split(".")) if named else ()


def checked(content: Mapping[str, Any], where: str, locate: Locate = nowhere) -> RunConfig:
    """The configuration in plain data; all that is wrong with it, by itself and in combination, is one UserError."""
    wrong = complaints_of(content, locate)
    if not wrong:
        return check(RunConfig.model_validate(content), locate)
    inside, mended = within_range(content)
    if inside is not None:
        wrong += [line for line in listed(inside, locate) if setting_of(line) not in mended]
    raise UserError(f"{where}: {len(wrong)} wrong settings:\n" + "\n".join(wrong))


def within_range(content: Mapping[str, Any]) -> tuple[RunConfig | None, set[tuple[str, ...]]]:
    """The configuration with every number that is out of range moved inside, and which those are.

    None where something else is wrong too: combinations of settings then mean nothing.
    """
    mended = copy.deepcopy(dict(content))
    settings = set()
    try:
        RunConfig.model_validate(content)
    except ValidationError as error:
        for found in error.errors(include_url=False):
            if (number := inside_of(found)) is None:
                return None, set()
            keys = plain(tuple(map(str, found["loc"])), RunConfig)
            put(mended, keys, number)
            settings.add(tuple(key for key in keys if not key.isdigit()))
    return RunConfig.model_validate(mended), settings


def put(content: Any, keys: Sequence[str], value: Any) -> None:
    """Replaces a value in nested mappings and lists."""
    first, *rest = keys
    place: Any = int(first) if first.isdigit() else first
    if rest:
        if isinstance(content[place], tuple):
            content[place] = list(content[place])
        put(content[place], rest, value)
    else:
        content[place] = value


def problems(config: RunConfig) -> Iterator[str]:
    """Everything impossible in combination, each with the flag and the cure."""
    data, model, training, noise = config.data, config.model, config.training, config.noise
    if data.channels == 1 and data.normalization == "imagenet":
        yield "--data.normalization imagenet: has three channels; grey images take symmetric"
    if data.image_size % model.patch_size:
        yield f"--data.image-size {data.image_size}: not a multiple of --model.patch-size {model.patch_size}"
    if config.objective.contrastive and training.batch_size < 2:
        yield f"--training.batch-size {training.batch_size}: must be at least 2, to compare images with each other"
    micro = training.micro_batch
    if micro is not None and training.batch_size % micro:
        yield f"--training.micro-batch {micro}: must divide --training.batch-size {training.batch_size}"
    if late := [step for step in training.leave_out if step >= training.steps]:
        yield f"--training.leave-out {late[0]}: the steps are 0 to {training.steps - 1} (--training.steps)"
    elif len(set(training.leave_out)) == training.steps:
        yield f"--training.leave-out: leaves none of the {training.steps} steps (--training.steps)"
    if training.precision == "fp64" and training.preview_every:
        yield "--training.precision fp64: is for comparisons and draws no samples; add --training.preview-every 0"
    if 0 < training.timeout < 1:
        yield f"--training.timeout {training.timeout:g}: must be at least 1 second, or 0 for never"
    if not noise.sigma_min < noise.sigma_max:
        yield f"--noise.sigma-min {noise.sigma_min}: must be less than --noise.sigma-max {noise.sigma_max}"
    if config.optimizer.kind == "muon" and training.parallel == "fsdp":
        yield "--optimizer.kind muon: needs whole matrices, which --training.parallel fsdp cuts; choose ddp or adamw"
    if config.objective.continues and training.parallel == "fsdp":
        yield f"--training.parallel fsdp: --stage {config.stage} measures moments with whole networks; choose ddp"
    if training.cuda_graphs and (training.parallel == "fsdp" or micro is not None or training.activation_checkpointing):
        yield "--training.cuda-graphs: not with --training.parallel fsdp, micro-batch or activation-checkpointing"
    if training.keep_products and not training.activation_checkpointing:
        yield "--training.keep-products: is for --training.activation-checkpointing True"
    if config.optimizer.frozen_encoder and not config.objective.samples:
        yield f"--optimizer.frozen-encoder: is for generators; {config.stage} trains the encoder itself"
    steps = [step for step, _ in config.optimizer.lr_steps]
    if any(a >= b for a, b in pairwise(steps)):
        yield f"--optimizer.lr-steps: the steps {', '.join(map(str, steps))} must rise"
    if isinstance(config.objective, DiffusionConfig) and config.objective.aligned:
        yield from alignment_problems(config.objective, config)
    if isinstance(config.objective, OneStepConfig):
        yield from moments_problems(config.objective, config)
    yield from size_problems(config)
    yield from config.objective.problems()
    if config.objective.samples:
        sampling, conditional = config.sampling.model_dump(), model.num_classes != 0
        names, limits = {name: f"--sampling.{name}" for name in sampling}, (noise.sigma_min, noise.sigma_max)
        jumps = jumping(config.objective.sampler)
        settings = settled(sampling, {}, jumps)
        about = {"jumps": jumps, "conditional": conditional, "internal": config.internal}
        yield from sampling_problems(settings, names, noise=limits, **about)


def alignment_problems(objective: DiffusionConfig, config: RunConfig) -> Iterator[str]:
    """An alignment that draws nothing."""
    block, depth = objective.alignment_block, config.model.encoder.depth
    if block is not None and block > depth:
        yield f"--objective.alignment-block {block}: the encoder has {depth} blocks (--model.encoder.depth)"
    if config.optimizer.frozen_encoder:
        yield (
            f"--objective.alignment-weight {objective.alignment_weight:g}: draws the encoder, which does not move with "
            "--optimizer.frozen-encoder; leave out one of them"
        )


def moments_problems(objective: OneStepConfig, config: RunConfig) -> Iterator[str]:
    """Levels that no encoder has seen, or twice; covariances of more classes than any memory holds."""
    low, high = config.noise.sigma_min, config.noise.sigma_max
    if len(set(objective.levels)) < len(objective.levels) or not all(low <= x <= high for x in objective.levels):
        given = " ".join(f"{level:g}" for level in objective.levels)
        yield f"--objective.levels {given}: must differ, and lie between {low:g} and {high:g} (--noise.sigma-min, -max)"
    classes, features = config.model.num_classes or 0, 2 * config.model.encoder.width
    numbers = 2 * classes * len(objective.levels) * features**2
    if objective.covariance == "class" and numbers > LARGEST_MOMENTS:
        yield (
            f"--objective.covariance class: those of {classes} classes, {features}x{features} at each of "
            f"{len(objective.levels)} levels, take {4 * numbers / 2**30:,.0f} GiB; choose shared"
        )


def size_problems(config: RunConfig) -> Iterator[str]:
    """Networks that no memory holds or that have nothing in them, names that are no names."""
    data, model, training = config.data, config.model, config.training
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
    if (data.image_size // model.patch_size) ** 2 > MOST_TOKENS:
        yield f"--model.patch-size {model.patch_size}: makes over {MOST_TOKENS} patches of {data.image_size} pixels"
    for name, tower in (("encoder", model.encoder), ("decoder", model.decoder)):
        if tower.width % tower.heads:
            yield f"--model.{name}.width {tower.width}: not a multiple of --model.{name}.heads {tower.heads}"
        if int(tower.width * model.mlp_ratio) < 1:
            yield f"--model.mlp-ratio {model.mlp_ratio:g}: leaves nothing of --model.{name}.width {tower.width}"
    if config.gaussians * data.channels**2 * data.image_size**2 > LARGEST_SPECTRUM:
        yield (
            f"--objective.spectrum class: the statistics of {config.gaussians - 1} classes at {data.image_size} pixels "
            "would take gigabytes; choose global"
        )
