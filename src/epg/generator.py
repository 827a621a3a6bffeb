"""A trained generator and how images come out of it.

Image i depends on (seed, i) and its label alone: not on the batch it is drawn in, nor on what else is sampled.
Everything here works on plain tensors and needs neither a run folder nor the configuration's types.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from epg import samplers, schedule
from epg.data.normalize import Normalizer
from epg.denoiser import Denoise, Denoiser, bind, clamped
from epg.errors import UserError
from epg.guidance import Autoguidance, EvaluationCounter, IntervalGuidance
from epg.randomness import generator
from epg.samplers import Watch

if TYPE_CHECKING:
    from epg.config import NoiseConfig, SamplingConfig


@dataclass(frozen=True)
class Generator:
    """A trained generator with everything needed to sample from it correctly."""

    denoiser: Denoiser
    normalizer: Normalizer
    noise: "NoiseConfig"
    shift: float
    image_size: int
    sampling: "SamplingConfig"
    class_names: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return self.denoiser.network.num_classes

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.normalizer.channels, self.image_size, self.image_size

    def unit_noise(self, indices: Sequence[int], seed: int = 0, step: int = -1) -> Tensor:
        """Standard normal numbers (N, C, H, W), those of each image from a generator of its own.

        They are drawn on the CPU, so that every device gives the same images. `step` is -1 for the start.
        """
        draws = [torch.randn(self.image_shape, generator=generator("cpu", seed, "sample", i, step)) for i in indices]
        return torch.stack(draws).to(self.device)

    def sigmas(self, sampling: "SamplingConfig | None" = None) -> Tensor:
        """The shifted grid of sampling settings (None: the generator's own), float64, ending in 0."""
        sampling = sampling or self.sampling
        steps = 2 if sampling.sampler == "one_step" else sampling.steps
        noise = self.noise
        return schedule.sampling_grid(
            steps, shift=self.shift, sigma_min=noise.sigma_min, sigma_max=noise.sigma_max, rho=noise.rho
        )

    def denoise(
        self, labels: Tensor | None = None, sampling: "SamplingConfig | None" = None, guide: "Generator | None" = None
    ) -> Denoise:
        """D(x, sigma) for `epg.samplers`: labels (N,) and guidance are in it, and predictions keep to real pixels."""
        guided = self._guided(labels, sampling or self.sampling, guide)
        return clamped(guided, self.normalizer.bounds(self.device))

    def _guided(self, labels: Tensor | None, sampling: "SamplingConfig", guide: "Generator | None") -> Denoise:
        interval = (sampling.interval[0] * self.shift, sampling.interval[1] * self.shift)
        plain = bind(self.denoiser, labels)
        if guide is not None:
            return Autoguidance(plain, bind(guide.denoiser, labels), sampling.guidance, interval)
        if sampling.guidance == 1:
            return plain
        if labels is None:
            raise UserError("--guidance: an unconditional model has no classifier-free guidance; leave it at 1")
        return IntervalGuidance(self.denoiser, labels, sampling.guidance, interval)

    @torch.no_grad()
    def draw(
        self,
        labels: Tensor | None,
        indices: Sequence[int],
        seed: int = 0,
        sampling: "SamplingConfig | None" = None,
        guide: "Generator | None" = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """One batch: network values (N, C, H, W) of the images with these indices of a seed.

        Args:
            labels: (N,) int64, or None.
            sampling: sampler, steps and guidance; None takes the generator's own.
            guide: a weaker generator for autoguidance, in place of classifier-free guidance.
            watch: called after every step of a sampler that has several.
        """
        sampling = sampling or self.sampling
        sigmas = self.sigmas(sampling)
        x = self.unit_noise(indices, seed) * float(sigmas[0])
        denoise = self.denoise(labels, sampling, guide)

        def noise(step: int) -> Tensor:
            return self.unit_noise(indices, seed, step)

        match sampling.sampler:
            case "one_step":
                return samplers.one_step(denoise, x, sigmas)
            case "multistep":
                return samplers.multistep(denoise, x, sigmas, noise, watch)
            case "edm_stochastic":
                s_min, s_max = 0.05 * self.shift, 50.0 * self.shift
                return samplers.edm_stochastic(denoise, x, sigmas, noise, s_min=s_min, s_max=s_max, watch=watch)
            case "euler_ancestral":
                return samplers.euler_ancestral(denoise, x, sigmas, noise, watch=watch)
            case "euler":
                return samplers.euler(denoise, x, sigmas, watch)
            case "heun":
                return samplers.heun(denoise, x, sigmas, watch)

    def sample(
        self,
        labels: Tensor | None = None,
        count: int | None = None,
        *,
        seed: int = 0,
        first: int = 0,
        sampling: "SamplingConfig | None" = None,
        guide: "Generator | None" = None,
        batch_size: int = 64,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """uint8 images (count, C, H, W) on the CPU.

        Args:
            labels: (count,) int64, or None for an unconditional model (then `count` says how many).
            first: index of the first image: images `first` to `first + count - 1` of this seed are made.
            sampling: sampler, steps and guidance; None takes the generator's own.
            guide: a weaker generator for autoguidance, in place of classifier-free guidance.
        """
        count = len(labels) if labels is not None else count
        if count is None:
            raise ValueError("an unconditional model needs `count`")
        if labels is not None and self.num_classes and not bool(((labels >= 0) & (labels < self.num_classes)).all()):
            raise UserError(f"labels must be between 0 and {self.num_classes - 1}")
        parts = []
        for start in range(0, count, batch_size):
            stop = min(start + batch_size, count)
            batch_labels = None if labels is None else labels[start:stop].to(self.device)
            drawn = self.draw(batch_labels, range(first + start, first + stop), seed, sampling, guide)
            parts.append(self.normalizer.decode(drawn).cpu())
            if on_progress:
                on_progress(stop, count)
        return torch.cat(parts)

    def count_evaluations(self, sampling: "SamplingConfig | None" = None) -> float:
        """NFE of one image, counted by running the sampler."""
        labels = torch.zeros(1, dtype=torch.long, device=self.device) if self.num_classes else None
        with EvaluationCounter(self.denoiser) as counter:
            self.draw(labels, [0], 0, sampling)
        return counter.images

    def make_labels(self, count: int, *, classes: Sequence[int] = (), balanced: bool, seed: int = 0) -> Tensor | None:
        """Labels (count,): cycling through `classes` (or all) when balanced, drawn at random otherwise."""
        if self.num_classes == 0:
            if classes:
                raise UserError("--classes: this model is unconditional")
            return None
        wrong = [c for c in classes if not 0 <= c < self.num_classes]
        if wrong:
            raise UserError(f"--classes {wrong[0]}: out of range, the model has classes 0 to {self.num_classes - 1}")
        choices = torch.tensor(list(classes) or range(self.num_classes))
        if balanced or classes:
            return choices[torch.arange(count) % len(choices)]
        return choices[torch.randint(len(choices), (count,), generator=generator("cpu", seed, "sample labels"))]
