"""One step from any generator: the moments of its images follow those of real ones, class by class, in the features of
the encoder of stage 1 and in pixels (`epg.moments`)."""

from collections.abc import Iterator, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from epg import schedule
from epg.config.objectives import OneStepConfig
from epg.config.settings import RunConfig
from epg.data.loading.base import ImageDataset
from epg.data.loading.loader import Batch
from epg.data.loading.passes import blocks
from epg.data.views.augment import random_flip
from epg.distributed import failing_together, rank, world_size
from epg.errors import UserError
from epg.moments import Moments, Sums
from epg.networks import EPG, Encoder
from epg.networks.encoder import CLS, PATCHES
from epg.networks.layers import full_precision
from epg.objectives.base import Drawn, GeneratorObjective, Losses, at_levels
from epg.randomness import Draws

FIRST_SAMPLES = 10  # images for each feature, of which the first running moments are made
BLOCK = 256


class OneStep(GeneratorObjective):
    """`sum_i L_i / (stopgrad(L_i) + c)` of Frechet distances L_i between images `D(t_max eps, t_max)` and real ones.

    One distance for every noise level at which the frozen encoder looks at images (each image at one of them), of its
    CLS and mean patch token, and one of shrunken images; the images of a class are compared with its own. With
    `recognition_weight`, images are to be told as their class too, by the linear discriminant of the real features.
    """

    frozen_encoder: Encoder

    def __init__(self, network: EPG, config: RunConfig, encoder: Encoder) -> None:
        super().__init__(network, config, encoder)
        assert isinstance(config.objective, OneStepConfig)
        self.config = config.objective
        self.max_damaged = config.data.max_damaged
        sizes = [2 * encoder.width] * len(self.config.levels)
        if self.config.pixels:
            sizes.append(config.data.channels * min(self.config.pixels, config.data.image_size) ** 2)
        classes, shared = max(1, network.num_classes), self.config.covariance == "shared"
        self.moments = nn.ModuleList(Moments(size, self.config.decay, classes, shared) for size in sizes)

    @property
    def spaces(self) -> list[Moments]:
        """The moments in every space: those of each level, and of pixels."""
        return cast(list[Moments], list(self.moments))

    # A step ---------------------------------------------------------------------------------------------------------

    def draw(self, batch: Batch, step: int) -> Drawn:
        drawn = self.drawn(self.draws(batch, step))
        drawn["which"] = self.turns(batch.first + step, len(batch), batch.images.device)
        drawn["labels"] = batch.labels if self.network.num_classes else torch.zeros_like(batch.labels)
        return drawn

    def drawn(self, draws: Draws) -> Drawn:
        """Noise to start from, and noise to be looked at with: (N, C, H, W) each."""
        encoder = self.frozen_encoder
        shape = (encoder.channels, encoder.image_size, encoder.image_size)
        return {"noise": draws.normal("noise", shape), "look": draws.normal("look", shape)}

    def turns(self, first: int, count: int, device: torch.device) -> Tensor:
        """Which samples are looked at, at which level: (L, N) of 0 and 1. They take turns."""
        levels = len(self.config.levels)
        turn = (torch.arange(count, device=device) + first) % levels
        return (turn == torch.arange(levels, device=device)[:, None]).to(self.dtype)

    def forward(self, drawn: Mapping[str, Tensor]) -> Losses:
        """The loss; the sum of the distances, which are between distributions, and each of them; how surprising the
        labels are, where that counts."""
        labels = drawn["labels"]
        images = self.generate(drawn["noise"], labels)
        views = list(zip(self.spaces, self.seen(images, drawn["look"], drawn["which"]), strict=True))
        distances = torch.stack([space(features, labels, part) for space, (features, part) in views])
        loss = (distances / (distances.detach() + self.config.c)).sum()
        losses = {"loss": loss, "moments": distances.detach().sum()}
        if self.config.recognition_weight:
            surprise = torch.stack([space.surprise(features, labels, part) for space, (features, part) in views]).mean()
            losses["loss"] = loss + self.config.recognition_weight * surprise
            losses["recognition"] = surprise.detach()
        return losses | dict(zip(self.names(), distances.detach().unbind(), strict=True))

    def names(self) -> Iterator[str]:
        """Of the distances, in the log."""
        yield from (f"moments/{level:g}" for level in self.config.levels)
        if self.config.pixels:
            yield "moments/pixels"

    def generate(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Images (N, C, H, W) in network range of unit noise, in one evaluation at the highest level; not clamped."""
        sigma = self.shift * self.noise.sigma_max
        return self.denoiser(sigma * noise, sigma, labels if self.network.num_classes else None)

    def seen(self, images: Tensor, look: Tensor, which: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Features (N, D) in every space, and which samples (N,) count there."""
        levels = self.shift * which.new_tensor(self.config.levels)
        sigma = (levels[:, None] * which).sum(0)
        features = self.encode(images, sigma, look)
        yield from ((features, part) for part in which.unbind())
        if self.config.pixels:
            small = F.adaptive_avg_pool2d(images, min(self.config.pixels, images.shape[-1])).flatten(1)
            yield small, torch.ones_like(which[0])

    def encode(self, images: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """CLS and mean patch token of the frozen encoder, (N, 2 D), of images with noise at shifted levels (N,)."""
        scale = schedule.input_scale(sigma, self.noise.sigma_data).view(-1, 1, 1, 1)
        tokens = self.frozen_encoder(scale * at_levels(images, sigma, noise), schedule.time_condition(sigma))[0]
        return full_precision(torch.cat([tokens[:, CLS], tokens[:, PATCHES].mean(1)], dim=1))

    # Before the first step ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def begin(self, dataset: ImageDataset) -> None:
        """Measures the moments of the real images, and the first ones of generated images, on all processes together.

        Raises DataError for a damaged image, unless `data.max_damaged` allows some: those are left out; UserError where
        classes are to be told apart, and each has one image.
        """
        weight = self.config.recognition_weight
        if weight and self.network.num_classes > 1 and len(set(dataset.labels.tolist())) == len(dataset):
            raise UserError(
                f"--objective.recognition-weight {weight:g}: tells classes apart by how far the images of one differ, "
                "and every class has a single image; pass 0 to do without"
            )
        sums = self.sums()
        part = (rank(), world_size())
        with failing_together():
            for first, images, labels in blocks(dataset, self.max_damaged, part):
                images, labels = self.normalizer.encode(images.to(self.device), self.dtype), labels.to(self.device)
                flips = self.numbers(first, len(images)).uniform("flip")
                weights = self.weights(dataset, labels)
                self.add(sums, random_flip(images, flips) if self.config.flip else images, labels, weights, first)
        for space, found in zip(self.spaces, sums, strict=True):
            space.set_reference(found)
        sums = self.sums()
        count = FIRST_SAMPLES * max(space.size for space in self.spaces)
        for first in range(rank() * BLOCK, count, world_size() * BLOCK):
            numbers = self.numbers(first, BLOCK)
            labels = self.labels_like(dataset, numbers)
            images = self.generate(self.drawn(numbers)["noise"], labels)
            self.add(sums, images, labels, torch.ones_like(labels, dtype=self.dtype), first)
        for space, found in zip(self.spaces, sums, strict=True):
            space.start(found)

    def ready(self) -> None:
        for space in self.spaces:
            space.trim()

    @property
    def device(self) -> torch.device:
        return self.spaces[0].mean.device

    def sums(self) -> list[Sums]:
        return [space.sums(self.device) for space in self.spaces]

    def numbers(self, first: int, count: int, level: int = 0) -> Draws:
        """The random numbers of what comes before the first step."""
        return Draws(self.seed, level, first, count, self.device, self.dtype)

    def weights(self, dataset: ImageDataset, labels: Tensor) -> Tensor:
        """How much every image counts, (N,): as often as training would visit it."""
        if not dataset.balanced:
            return torch.ones_like(labels, dtype=self.dtype)
        counts = torch.tensor(dataset.class_counts(), dtype=self.dtype, device=self.device)
        return len(dataset) / (len(counts) * counts[labels])

    def labels_like(self, dataset: ImageDataset, numbers: Draws) -> Tensor:
        """Labels (N,) with the frequencies that training visits them with."""
        chance = numbers.uniform("first label").double()
        if dataset.balanced:
            return (chance * dataset.num_classes).long()
        return torch.from_numpy(dataset.labels).to(self.device)[(chance * len(dataset)).long()]

    def add(self, sums: list[Sums], images: Tensor, labels: Tensor, weights: Tensor, first: int) -> None:
        """Adds images in network range, seen at every level, to the sums of every space."""
        labels = labels if self.network.num_classes else torch.zeros_like(labels)
        for level in range(len(self.config.levels)):
            look = self.drawn(self.numbers(first, len(images), level))["look"]
            which = torch.zeros(len(self.config.levels), len(images), dtype=self.dtype, device=self.device)
            which[level] = 1
            for found, (features, part) in zip(sums, self.seen(images, look, which), strict=True):
                if bool(part.any()):
                    found.add(features, labels, part * weights)
