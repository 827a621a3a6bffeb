"""From a checkpoint to images: load a trained generator and sample from it.

Image i depends on (seed, i) alone: not on the batch it is drawn in, nor on what else is sampled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from epg import samplers, schedule
from epg.config import NoiseConfig, RunConfig, SamplingConfig, parse
from epg.data.normalize import Normalizer
from epg.denoiser import Denoise, Denoiser, bind, clamped
from epg.errors import ArtefactError, UserError
from epg.guidance import Autoguidance, EvaluationCounter, IntervalGuidance
from epg.networks import EPG
from epg.networks.build import build_epg
from epg.objectives.base import normalizer_for
from epg.randomness import generator
from epg.training import export
from epg.training.artefact import match
from epg.training.checkpoint import find


@dataclass(frozen=True)
class Generator:
    """A trained generator with everything needed to sample from it correctly."""

    denoiser: Denoiser
    normalizer: Normalizer
    noise: NoiseConfig
    shift: float
    image_size: int
    sampling: SamplingConfig
    class_names: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return self.denoiser.network.num_classes

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device


def generator_of(config: RunConfig, network: EPG, class_names: Sequence[str] = ()) -> Generator:
    """A generator around a network that was trained with this configuration."""
    denoiser = Denoiser(
        network,
        "edm" if config.stage == "consistency" else "x",
        sigma_min=config.shift * config.noise.sigma_min,
        sigma_data=config.noise.sigma_data,
    )
    return Generator(
        denoiser,
        normalizer_for(config),
        config.noise,
        config.shift,
        config.data.image_size,
        config.sampling,
        tuple(class_names),
    )


def load(path: str | Path, *, ema: float | None = None, device: torch.device | str = "cpu") -> Generator:
    """The generator of a run folder or checkpoint, with averaged weights.

    Args:
        path: run folder (its newest valid checkpoint), `checkpoints/step-...` folder, or `export` folder.
        ema: which decay to load; None is the run's first, or the trained weights where there is none.

    Raises:
        ArtefactError: no valid checkpoint, one of a pre-training run, or a decay it does not have.
    """
    found = _weights_of(Path(path), ema)
    if found.config.stage == "pretraining":
        raise ArtefactError(
            f"{path}: a pre-trained encoder cannot sample. Fine-tune it first: epg finetune RECIPE --encoder {path}"
        )
    network = build_epg(found.config.model, found.config.data)
    match(found.weights, network.state_dict(), str(path), types=False)
    network.load_state_dict(found.weights)
    return generator_of(found.config, network.eval().to(device), found.class_names)


@dataclass(frozen=True)
class _Found:
    config: RunConfig
    weights: dict[str, Tensor]
    class_names: Sequence[str]


def _weights_of(path: Path, ema: float | None) -> _Found:
    """The weights to sample with: of an export, or of a checkpoint where the path leads to one."""
    if not (path / "checkpoints").is_dir() and export.is_export(path / export.FOLDER):
        path = path / export.FOLDER
    if export.is_export(path):
        exported = export.read(path)
        if ema is not None and exported.kind != f"ema-{ema}":
            raise ArtefactError(f"{path}: no EMA with decay {ema}; it has {exported.kind}")
        return _Found(exported.config, exported.tensors(), exported.class_names)
    found = find(path)
    config = parse(found.state["config"], str(found.path))
    decays = config.training.ema
    if ema is not None and ema not in decays:
        raise ArtefactError(f"{path}: no EMA with decay {ema}; it has {decays or 'none'}")
    if config.stage == "pretraining":
        weights = {}
    elif decays:
        weights = found.tensors(f"ema-{decays[0] if ema is None else ema}")
    else:
        prefix = "network."
        weights = {k.removeprefix(prefix): v for k, v in found.tensors("model").items() if k.startswith(prefix)}
    return _Found(config, weights, found.state["class_names"])


def make_labels(
    model: Generator, count: int, *, classes: Sequence[int] = (), balanced: bool, seed: int
) -> Tensor | None:
    """Labels (count,) for sampling: cycling through `classes` (or all) when balanced, drawn at random otherwise."""
    if model.num_classes == 0:
        if classes:
            raise UserError("--classes: this model is unconditional")
        return None
    wrong = [c for c in classes if not 0 <= c < model.num_classes]
    if wrong:
        raise UserError(f"--classes {wrong[0]}: out of range, the model has classes 0 to {model.num_classes - 1}")
    choices = torch.tensor(list(classes) or range(model.num_classes))
    if balanced or classes:
        return choices[torch.arange(count) % len(choices)]
    return choices[torch.randint(len(choices), (count,), generator=generator("cpu", seed, "sample labels"))]


@torch.no_grad()
def sample(
    model: Generator,
    labels: Tensor | None,
    count: int | None = None,
    *,
    seed: int = 0,
    first: int = 0,
    sampling: SamplingConfig | None = None,
    guide: Generator | None = None,
    batch_size: int = 64,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """uint8 images (count, C, H, W) on the CPU.

    Args:
        labels: (count,) int64, or None for an unconditional model (then `count` says how many).
        first: index of the first image: images `first` to `first + count - 1` of this seed are made.
        sampling: sampler, steps and guidance; None takes the model's own.
        guide: a weaker generator for autoguidance, in place of classifier-free guidance.
    """
    count = len(labels) if labels is not None else count
    if count is None:
        raise ValueError("an unconditional model needs `count`")
    if labels is not None and model.num_classes and not bool(((labels >= 0) & (labels < model.num_classes)).all()):
        raise UserError(f"labels must be between 0 and {model.num_classes - 1}")
    sampling = sampling or model.sampling
    parts = []
    for start in range(0, count, batch_size):
        stop = min(start + batch_size, count)
        batch_labels = None if labels is None else labels[start:stop].to(model.device)
        indices = range(first + start, first + stop)
        parts.append(model.normalizer.decode(sample_batch(model, batch_labels, indices, seed, sampling, guide)).cpu())
        if on_progress:
            on_progress(stop, count)
    return torch.cat(parts)


def sample_batch(
    model: Generator,
    labels: Tensor | None,
    indices: Sequence[int],
    seed: int,
    sampling: SamplingConfig,
    guide: Generator | None = None,
) -> Tensor:
    """Network-range images (N, C, H, W) with the given indices of a seed."""
    shape = (model.normalizer.channels, model.image_size, model.image_size)

    def noise(step: int) -> Tensor:
        """Standard normal numbers, those of each image from a generator of its own (on the CPU: any device agrees)."""
        draws = [torch.randn(shape, generator=generator("cpu", seed, "sample", i, step)) for i in indices]
        return torch.stack(draws).to(model.device)

    sigmas = sampling_levels(model, sampling)
    x = noise(-1) * float(sigmas[0])
    denoise = clamped(guided(model, labels, sampling, guide), model.normalizer.bounds(model.device))
    match sampling.sampler:
        case "one_step":
            return samplers.one_step(denoise, x, sigmas)
        case "multistep":
            return samplers.multistep(denoise, x, sigmas, noise)
        case "edm_stochastic":
            return samplers.edm_stochastic(
                denoise, x, sigmas, noise, s_min=0.05 * model.shift, s_max=50.0 * model.shift
            )
        case "euler_ancestral":
            return samplers.euler_ancestral(denoise, x, sigmas, noise)
        case "euler":
            return samplers.euler(denoise, x, sigmas)
        case "heun":
            return samplers.heun(denoise, x, sigmas)


def sampling_levels(model: Generator, sampling: SamplingConfig) -> Tensor:
    """The shifted grid of a sampling configuration, ending in 0."""
    noise = model.noise
    steps = 2 if sampling.sampler == "one_step" else sampling.steps
    return schedule.sampling_grid(
        steps, shift=model.shift, sigma_min=noise.sigma_min, sigma_max=noise.sigma_max, rho=noise.rho
    )


def guided(model: Generator, labels: Tensor | None, sampling: SamplingConfig, guide: Generator | None) -> Denoise:
    """What the sampler calls: the denoiser with labels and guidance in it."""
    interval = (sampling.interval[0] * model.shift, sampling.interval[1] * model.shift)
    plain = bind(model.denoiser, labels)
    if guide is not None:
        return Autoguidance(plain, bind(guide.denoiser, labels), sampling.guidance, interval)
    if sampling.guidance == 1:
        return plain
    if labels is None:
        raise UserError("--guidance: an unconditional model has no classifier-free guidance; leave it at 1")
    return IntervalGuidance(model.denoiser, labels, sampling.guidance, interval)


def count_evaluations(model: Generator, sampling: SamplingConfig) -> float:
    """NFE of one image, counted by running the sampler."""
    labels = torch.zeros(1, dtype=torch.long, device=model.device) if model.num_classes else None
    with torch.no_grad(), EvaluationCounter(model.denoiser) as counter:
        sample_batch(model, labels, [0], 0, sampling)
    return counter.images
