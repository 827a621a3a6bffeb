"""A trained generator and how images come out of it.

Image i depends on (seed, i) and its label alone: not on the batch it is drawn in, nor on what else is sampled.
Everything here works on plain tensors and needs neither a run folder nor the configuration's types.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from epg import samplers
from epg.data.views.normalize import Normalizer
from epg.denoiser import Denoiser, bind, clamped
from epg.errors import UserError
from epg.features import TrainedEncoder
from epg.grids import evaluations, grid_of
from epg.guidance import Autoguidance, InternalGuidance, IntervalGuidance
from epg.labels import Classes, Labels, no_class
from epg.networks.precision import HALF, PRECISIONS, to_half_precision
from epg.randomness import normal
from epg.samplers import Denoise, Watch

if TYPE_CHECKING:
    from epg.config.sections import NoiseConfig, SamplingConfig


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
    class_counts: tuple[int, ...] = ()
    """Training images of each class, where they are known: the distribution of random labels."""

    @property
    def num_classes(self) -> int:
        return self.denoiser.network.num_classes

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the large weights: in half precision the network runs under autocast, the samplers stay in float32."""
        return self.denoiser.network.encoder.patch_embedding.weight.dtype

    def to(self, device: torch.device | str, precision: str = "fp32") -> None:
        """Moves the network, in place, and converts it to `bf16` or `fp16`: see `to_half_precision`."""
        if precision != "fp32":
            to_half_precision(self.denoiser.network, PRECISIONS[precision])
        self.denoiser.network.to(device)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.normalizer.channels, self.image_size, self.image_size

    def unit_noise(self, indices: Sequence[int], seed: int = 0, step: int = -1) -> Tensor:
        """Standard normal numbers (N, C, H, W), a function of (seed, step) and the index of each image.

        The same on every device, to rounding. `step` is -1 for the start. Float64 for a network in float64, else
        float32.
        """
        noise = normal(indices, self.image_shape, seed, "sample", step, device=self.device)
        return noise.to(torch.promote_types(torch.float32, self.dtype))

    def sigmas(self, sampling: "SamplingConfig | None" = None) -> Tensor:
        """The shifted grid of sampling settings (None: the generator's own), float64, ending in 0."""
        return grid_of(sampling or self.sampling, self.noise, self.shift)

    def denoiser_for(
        self, labels: Tensor | None = None, sampling: "SamplingConfig | None" = None, guide: "Generator | None" = None
    ) -> Denoise:
        """D(x, sigma) for `epg.samplers`: labels (N,) and guidance are in it, and predictions keep to real pixels."""
        guided = self._guided(labels, sampling or self.sampling, guide)
        denoise = clamped(guided, self.normalizer.bounds(self.device))
        return torch.autocast(self.device.type, self.dtype)(denoise) if self.dtype in HALF else denoise

    def _guided(self, labels: Tensor | None, sampling: "SamplingConfig", guide: "Generator | None") -> Denoise:
        interval = (sampling.interval[0] * self.shift, sampling.interval[1] * self.shift)
        if guide is not None:
            weak = bind(guide.denoiser, labels if guide.num_classes else None)
            return Autoguidance(bind(self.denoiser, labels), weak, sampling.guidance, interval)
        if sampling.guidance == 1:
            return bind(self.denoiser, labels)
        if sampling.guide == "internal":
            return InternalGuidance(self.denoiser, labels, sampling.guidance, interval)
        if labels is None:
            raise UserError("--guidance: an unconditional model has no classifier-free guidance; leave it at 1")
        return IntervalGuidance(self.denoiser, labels, sampling.guidance, interval)

    def denoise(
        self, x: Tensor, sigma: Tensor | float, labels: Labels | None = None, *, guidance: float = 1.0
    ) -> Tensor:
        """D(x, sigma, labels), the mean of the images that x may come from, kept to real pixels; gradients flow to x.

        Args:
            x: noisy network values (N, C, H, W), `encode(images) + sigma * noise`.
            sigma: a level of `sigmas()`, which are times the shift, or one for each image (N,).
            labels: as in `sample`.
            guidance: `u + guidance (D - u)` with u the prediction without a class; 1 is none.

        Raises UserError for x of another shape or labels that do not fit.
        """
        if tuple(x.shape[1:]) != self.image_shape:
            raise UserError(f"x: shape {tuple(x.shape)}, but (N, {', '.join(map(str, self.image_shape))}) is expected")
        labels = self.classes.placed(labels, len(x), self.device)
        if labels is None and guidance != 1:
            raise UserError(f"guidance {guidance:g}: needs labels, which it guides towards")
        x = x.to(self.device)
        level = torch.as_tensor(sigma, device=self.device).to(x.dtype).expand(len(x))
        level = level.clamp(min=self.shift * self.noise.sigma_min)  # the smallest that the model knows
        with torch.autocast(self.device.type, self.dtype) if self.dtype in HALF else contextlib.nullcontext():
            denoised = self.denoiser(x, level, labels)
            if labels is not None and guidance != 1:
                unguided = self.denoiser(x, level, no_class(labels, self.num_classes))
                denoised = unguided + guidance * (denoised - unguided)
        low, high = self.normalizer.bounds(self.device)
        return denoised.clamp(low.to(x), high.to(x))

    @property
    def encoder(self) -> TrainedEncoder:
        table = self.denoiser.network.class_embedding
        condition = None if table is None else table.weight[self.num_classes]
        return TrainedEncoder(self.denoiser.network.encoder, self.normalizer, self.noise, self.shift, condition)

    def features(self, images: Tensor, sigma: float = 0.0, *, seed: int = 0, batch_size: int = 64) -> Tensor:
        """Tokens (N, T, D) of the encoder for images at a noise level, see `TrainedEncoder.features`."""
        return self.encoder.features(images, sigma, seed=seed, batch_size=batch_size)

    def encode(self, images: Tensor) -> Tensor:
        """uint8 pixels (N, C, H, W) as network values, on the model's device."""
        return self.normalizer.encode(images.to(self.device))

    def decode(self, values: Tensor) -> Tensor:
        """Network values (N, C, H, W) as uint8 pixels on the CPU."""
        return self.normalizer.decode(values).cpu()

    @property
    def classes(self) -> Classes:
        return Classes(self.num_classes, self.class_names, self.class_counts)

    def draw(
        self,
        labels: Labels | None,
        indices: Sequence[int],
        seed: int = 0,
        sampling: "SamplingConfig | None" = None,
        guide: "Generator | None" = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """One batch: network values (N, C, H, W) of the images with these indices of a seed.

        On a GPU it returns before they are computed: nothing in it waits for the device.

        Args:
            labels: (N,) class numbers or names, a tensor best on the CPU; None for an unconditional model, or the null
                class of another.
            sampling: sampler, steps and guidance; None takes the generator's own.
            guide: a weaker generator for autoguidance, in place of classifier-free guidance.
            watch: called after every step of a sampler that has several.
        """
        labels = self.classes.placed(labels, len(indices), self.device)
        return self.walk(self.denoiser_for(labels, sampling, guide), indices, seed, sampling, watch)

    @torch.no_grad()
    def walk(
        self,
        denoise: Denoise,
        indices: Sequence[int],
        seed: int = 0,
        sampling: "SamplingConfig | None" = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """`draw` with a denoiser in the hand: the one that `denoiser_for` gives, or something around it."""
        sampling = sampling or self.sampling
        sigmas = self.sigmas(sampling)
        x = self.unit_noise(indices, seed) * float(sigmas[0])

        def noise(step: int) -> Tensor:
            return self.unit_noise(indices, seed, step)

        return samplers.SAMPLERS[sampling.sampler](denoise, x, sigmas, noise, self.shift, watch)

    def sample(
        self,
        labels: Labels | None = None,
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
            labels: class numbers or names, or mixtures of classes such as {"cat": 0.5, "dog": 0.5}, one for each image:
                a list, an array or tensor (count,), weights (count, classes) that add up to 1; or one for all `count`.
                None for an unconditional model, or "no class" of another.
            count: how many images; those of the labels if not given.
            first: index of the first image: images `first` to `first + count - 1` of this seed are made.
            sampling: sampler, steps and guidance; None takes the generator's own.
            guide: a weaker generator for autoguidance, in place of classifier-free guidance.
        """
        labels = self.classes.tensor(labels, count)
        count = len(labels) if labels is not None and count is None else count
        if count is None:
            raise ValueError("without labels, one for each image, it needs `count`")
        self.classes.placed(labels, count, self.device)  # all of them before the first batch is drawn
        parts = []
        for start in range(0, count, batch_size):
            stop = min(start + batch_size, count)
            batch_labels = None if labels is None else labels[start:stop]
            drawn = self.draw(batch_labels, range(first + start, first + stop), seed, sampling, guide)
            parts.append(self.normalizer.decode(drawn).cpu())
            if on_progress:
                on_progress(stop, count)
        return torch.cat(parts)

    def count_evaluations(self, sampling: "SamplingConfig | None" = None, guide: "Generator | None" = None) -> float:
        """NFE of one image, those of a guide included."""
        return sum(self.evaluations(sampling, guide))

    def evaluations(
        self, sampling: "SamplingConfig | None" = None, guide: "Generator | None" = None
    ) -> tuple[float, float]:
        """Evaluations of one image, of this network and the guide's."""
        plain, guided = evaluations(sampling or self.sampling, self.noise, self.shift)
        return (plain, guided) if guide is not None else (plain + guided, 0)

    def make_labels(self, count: int, *, classes: Labels = (), balanced: bool, seed: int = 0) -> Tensor | None:
        """Labels (count,) of `classes`, or of all that training had images of: in turn when balanced, else at random.

        Random ones follow `class_counts` where they are known and are uniform otherwise. Label i does not depend on
        `count`. None for an unconditional model. Raises UserError for a class that the model does not have.
        """
        return self.classes.chosen(count, classes, balanced, seed)
