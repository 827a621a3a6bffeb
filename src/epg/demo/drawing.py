"""What the page asks for, within bounds, and the pictures that answer it: plain functions, no server."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from epg import samplers
from epg.config.sections import SamplingConfig
from epg.errors import UserError
from epg.generator import Generator
from epg.sampling.animation import trajectory
from epg.sampling.interpolation import interpolated
from epg.sampling.pictures import grid
from epg.sampling.request import changed

MOST_IMAGES, MOST_STEPS, MOST_BETWEEN, MOST_MOMENTS = 36, 128, 16, 12
MOST_GUIDANCE = 20.0
LAST_SEED = 2**31 - 1
BATCH = 12


@dataclass(frozen=True)
class Drawer:
    """Draws with one model; whatever is out of bounds is a UserError that names it."""

    model: Generator

    @property
    def highest(self) -> float:
        """The largest unshifted level."""
        return self.model.noise.sigma_max

    @property
    def jumps(self) -> bool:
        """Whether it is a model of one step, or a few."""
        return samplers.SAMPLERS[self.model.sampling.sampler].jumps

    def images(
        self, label: int | None, count: int, seed: int, steps: int, guidance: float, low: float, high: float
    ) -> Image.Image:
        """The first `count` images of a seed, of one class or (None) of all in turn."""
        count = within("images", count, 1, MOST_IMAGES)
        sampling = self.sampling(steps, guidance, low, high)
        drawn = self.model.sample(
            self.labels(label, count), count, seed=self.seed(seed), sampling=sampling, batch_size=BATCH
        )
        return grid(drawn)

    def one_and_many(self, label: int | None, count: int, seed: int, steps: int) -> tuple[Image.Image, Image.Image]:
        """The same noise in one step, and in as many as are asked for."""
        count, labels = within("images", count, 1, MOST_IMAGES), self.labels(label, count)
        single = {"sampler": "one_step"} if self.jumps else {"sampler": "euler", "levels": (self.highest,)}
        one = changed(self.model, {**single, "guidance": 1.0})
        many = self.sampling(steps, 1.0, 0.0, self.highest)
        if many.sampler == "one_step":  # of a model that jumps: several jumps, with fresh noise between
            many = changed(self.model, {"sampler": "multistep", "steps": 2, "guidance": 1.0})
        seed = self.seed(seed)
        pictures = [self.model.sample(labels, count, seed=seed, sampling=s, batch_size=BATCH) for s in (one, many)]
        return grid(pictures[0]), grid(pictures[1])

    def between(self, first: int | None, second: int | None, seed: int, pictures: int, steps: int) -> Image.Image:
        """A strip from one image to another, of another class and other noise."""
        pictures = within("pictures between", pictures, 1, MOST_BETWEEN)
        both = [self.labels(label, 1) for label in (first, second)]
        labels = None if both[0] is None or both[1] is None else torch.cat([both[0], both[1]])
        sampling = self.sampling(steps, self.model.sampling.guidance, *self.model.sampling.interval)
        strip = interpolated(
            self.model, labels, pictures, row=2, seed=self.seed(seed), sampling=sampling, batch_size=BATCH
        )
        return grid(strip, (len(strip) + 2) // 3 if len(strip) > 9 else len(strip))

    def trajectory(self, label: int | None, seed: int, steps: int) -> Image.Image:
        """What the denoiser saw (above) and said (below), at levels from noise to image."""
        sampling = self.sampling(steps, self.model.sampling.guidance, *self.model.sampling.interval)
        moments = trajectory(self.model, self.labels(label, 1), [0], self.seed(seed), sampling)
        chosen = torch.linspace(0, len(moments) - 1, min(len(moments), MOST_MOMENTS)).round().int().tolist()
        rows = [moments[i].noisy for i in chosen] + [moments[i].denoised for i in chosen]
        return grid(torch.cat(rows), len(chosen))

    def labels(self, label: int | None, count: int) -> Tensor | None:
        if self.model.num_classes == 0:
            return None
        classes = [] if label is None else [within("class", label, 0, self.model.num_classes - 1)]
        return self.model.make_labels(count, classes=classes, balanced=True)

    def seed(self, seed: int) -> int:
        return within("seed", seed, 0, LAST_SEED)

    def sampling(self, steps: int, guidance: float, low: float, high: float) -> SamplingConfig:
        """Settings of the model's own sampler."""
        changes: dict[str, object] = {"steps": within("steps", steps, 1, MOST_STEPS)}
        if self.model.sampling.sampler == "one_step":
            changes = {} if steps == 1 else {"sampler": "multistep", **changes}
        if self.model.num_classes and not self.jumps:
            low, high = between_bounds("from level", low, self.highest), between_bounds("to level", high, self.highest)
            if not 0 <= guidance <= MOST_GUIDANCE:
                raise UserError(f"guidance: must be from 0 to {MOST_GUIDANCE:g}")
            changes |= {"guidance": float(guidance), "interval": (low, high)}
        return changed(self.model, changes)


def within(name: str, value: object, low: int, high: int) -> int:
    """A whole number within bounds. Raises UserError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or not low <= value <= high:
        raise UserError(f"{name}: must be a whole number from {low} to {high}")
    if int(value) != value:
        raise UserError(f"{name}: must be a whole number")
    return int(value)


def between_bounds(name: str, value: object, high: float) -> float:
    """A number from 0 to `high`. Raises UserError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= high:
        raise UserError(f"{name}: must be a number from 0 to {high:g}")
    return float(value)
