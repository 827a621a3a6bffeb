"""A trained generator and how images come out of it.

Image i depends on (seed, i) and its label alone: not on the batch it is drawn in, nor on what else is sampled.
Everything here works on plain tensors and needs neither a run folder nor the configuration's types.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from epg import samplers
from epg.data.views.normalize import Normalizer
from epg.denoiser import Denoiser, bind, clamped
from epg.errors import UserError
from epg.grids import evaluations, grid_of
from epg.guidance import Autoguidance, IntervalGuidance
from epg.labels import Labels, class_numbers
from epg.randomness import doubles, normal
from epg.samplers import Denoise, Watch

if TYPE_CHECKING:
    from epg.config.sections import NoiseConfig, SamplingConfig

HALF = (torch.bfloat16, torch.float16)


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
            to_half_precision(self.denoiser.network, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])
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

    def denoise(
        self, labels: Tensor | None = None, sampling: "SamplingConfig | None" = None, guide: "Generator | None" = None
    ) -> Denoise:
        """D(x, sigma) for `epg.samplers`: labels (N,) and guidance are in it, and predictions keep to real pixels."""
        guided = self._guided(labels, sampling or self.sampling, guide)
        denoise = clamped(guided, self.normalizer.bounds(self.device))
        if self.dtype not in HALF:
            return denoise

        def in_half_precision(x: Tensor, sigma: float) -> Tensor:
            with torch.autocast(self.device.type, self.dtype):
                return denoise(x, sigma)

        return in_half_precision

    def _guided(self, labels: Tensor | None, sampling: "SamplingConfig", guide: "Generator | None") -> Denoise:
        interval = (sampling.interval[0] * self.shift, sampling.interval[1] * self.shift)
        plain = bind(self.denoiser, labels)
        if guide is not None:
            weak = bind(guide.denoiser, labels if guide.num_classes else None)
            return Autoguidance(plain, weak, sampling.guidance, interval)
        if sampling.guidance == 1:
            return plain
        if labels is None:
            raise UserError("--guidance: an unconditional model has no classifier-free guidance; leave it at 1")
        return IntervalGuidance(self.denoiser, labels, sampling.guidance, interval)

    def class_numbers(self, classes: Labels, where: str = "--classes") -> list[int]:
        """Numbers of classes by number or name, see `epg.labels`. Raises UserError for what the model does not have."""
        if self.num_classes == 0 and not (isinstance(classes, Sequence) and len(classes) == 0):
            raise UserError(f"{where}: this model is unconditional and takes none")
        return class_numbers(classes, self.class_names, self.num_classes, where)

    def as_labels(self, labels: Labels) -> Tensor:
        """Class numbers or names as a tensor (N,); one that is given as such is not looked into."""
        if isinstance(labels, Tensor) and labels.ndim:
            return labels
        return torch.tensor(self.class_numbers(labels, "labels"), dtype=torch.int64)

    def place_labels(self, labels: Labels | None, count: int) -> Tensor | None:
        """Labels (count,) on the model's device, checked before: there, a wrong one would end the process.

        Raises UserError for labels out of range or of another shape or type, and for any of an unconditional model.
        """
        if labels is None:
            return None
        if self.num_classes == 0:
            raise UserError("labels: this model is unconditional and takes none")
        labels = self.as_labels(labels)
        if labels.shape != (count,) or labels.is_floating_point() or labels.dtype == torch.bool:
            raise UserError(f"labels: {count} integers are expected, not {tuple(labels.shape)} {labels.dtype}")
        if not bool(((labels >= 0) & (labels < self.num_classes)).all()):
            raise UserError(f"labels must be between 0 and {self.num_classes - 1}")
        return labels.to(self.device, torch.int64, non_blocking=True)

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
        labels = self.place_labels(labels, len(indices))
        return self.walk(self.denoise(labels, sampling, guide), indices, seed, sampling, watch)

    @torch.no_grad()
    def walk(
        self,
        denoise: Denoise,
        indices: Sequence[int],
        seed: int = 0,
        sampling: "SamplingConfig | None" = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """`draw` with a denoiser in the hand: the one that `denoise` gives, or something around it."""
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
            labels: class numbers or names, one for each image: a tensor or array (count,), a list, or a single one;
                None for an unconditional model (then `count` says how many).
            first: index of the first image: images `first` to `first + count - 1` of this seed are made.
            sampling: sampler, steps and guidance; None takes the generator's own.
            guide: a weaker generator for autoguidance, in place of classifier-free guidance.
        """
        labels = None if labels is None else self.as_labels(labels)
        count = len(labels) if labels is not None else count
        if count is None:
            raise ValueError("an unconditional model needs `count`")
        self.place_labels(labels, count)  # all of them before the first batch is drawn
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
        """Evaluations of one image, of this network and of the guide's."""
        plain, guided = evaluations(sampling or self.sampling, self.noise, self.shift)
        return (plain, guided) if guide is not None else (plain + guided, 0)

    def make_labels(self, count: int, *, classes: Labels = (), balanced: bool, seed: int = 0) -> Tensor | None:
        """Labels (count,) of `classes` (or of all): in turn when balanced, else drawn at random.

        Random ones follow `class_counts` where they are known and are uniform otherwise. Label i does not depend on
        `count`. None for an unconditional model. Raises UserError for a class that the model does not have.
        """
        numbers = self.class_numbers(classes)
        if self.num_classes == 0:
            return None
        choices = torch.tensor(numbers or range(self.num_classes))
        if balanced:
            return choices[torch.arange(count) % len(choices)]
        weights = torch.tensor(self.class_counts, dtype=torch.float64)[choices] if self.class_counts else None
        if weights is None or not bool(weights.sum() > 0):
            weights = torch.ones(len(choices), dtype=torch.float64)
        drawn = torch.from_numpy(doubles(count, seed, "sample labels"))
        return choices[torch.searchsorted(weights.cumsum(0) / weights.sum(), drawn, right=True)]


def to_half_precision(network: nn.Module, dtype: torch.dtype) -> None:
    """Converts the weights that are multiplied, those of linear layers and convolutions, in place.

    Norms, embeddings and all residual sums stay float32, as in training.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)
