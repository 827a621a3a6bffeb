"""Random views of a batch, made on its device: parameters are drawn per sample, then applied at once.

Uniform numbers come in, `numbers` of them for every sample and view, and every sample is changed by its own alone: so
the views do not depend on how a batch is divided over processes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from epg.data.views import transforms

CPU_CHUNK = 2**19  # values per piece on the CPU: 1.5 to 2 times faster than a whole batch
CROP_TRIES = 10
CROP_RATIO = (3 / 4, 4 / 3)


def random_flip(images: Tensor, uniform: Tensor) -> Tensor:
    """Mirror the images (N, C, H, W), of any type and range, whose number (N,) in [0, 1) is below a half."""
    return transforms.hflip(images, uniform < 0.5)


def random_boxes(
    uniform: Tensor,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float] = CROP_RATIO,
) -> Tensor:
    """Boxes (N, 4) int64: top, left, height, width; distributed as those of torchvision's RandomResizedCrop.

    Of `CROP_TRIES` boxes with area `scale` (fraction of the image) and log-uniform aspect `ratio` the first that
    fits is taken, else the largest centred one. `uniform` is (N, 2 * CROP_TRIES + 2) in [0, 1).
    """
    exact = uniform if uniform.device.type == "mps" else uniform.double()  # Apple's GPUs have no float64
    sizes, places = exact.split([2 * CROP_TRIES, 2], dim=1)
    area = height * width * _between(sizes[:, :CROP_TRIES], *scale)
    aspect = torch.exp(_between(sizes[:, CROP_TRIES:], math.log(ratio[0]), math.log(ratio[1])))
    widths, heights = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()  # (N, tries)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.int().argmax(dim=1, keepdim=True)
    fallback_width = min(width, round(height * ratio[1]))
    fallback_height = min(height, round(width / ratio[0]))
    found = fits.any(dim=1)
    box_height = torch.where(found, heights.gather(1, first)[:, 0], fallback_height)
    box_width = torch.where(found, widths.gather(1, first)[:, 0], fallback_width)
    top = torch.where(found, places[:, 0] * (height - box_height + 1), (height - fallback_height) // 2)
    left = torch.where(found, places[:, 1] * (width - box_width + 1), (width - fallback_width) // 2)
    return torch.stack([top, left, box_height, box_width], dim=1).long()


@dataclass(frozen=True)
class MocoParameters:
    """What `MocoViews` does to each of N samples."""

    boxes: Tensor  # (N, 4) int64: top, left, height, width
    factors: Tensor  # (N, 4): brightness, contrast, saturation, hue
    order: Tensor  # (N, 4) int64, order of these
    gray: Tensor  # (N,) bool
    sigma: Tensor  # (N,) of the blur in pixels, 0 for none
    solarize: Tensor  # (N,) bool
    flip: Tensor  # (N,) bool


class Views(ABC):
    """The two views of an image, made of uniform numbers."""

    numbers: ClassVar[int]
    """Uniform numbers that a view of one sample is made of."""

    def __call__(self, images: Tensor, uniform: Tensor, view: int, fused: bool = False) -> Tensor:
        """View 0 or 1 of uint8 images (N, C, H, W): float32 in [0, 1], the same shape (H = W).

        Args:
            uniform: (N, `numbers`) in [0, 1), other numbers for each view: equal ones would crop both alike.
            fused: compile it, on anything but a CPU, where only the samples that an operation is for are computed.
        """
        make = compiled() if fused and images.device.type != "cpu" else made
        with torch.autocast(images.device.type, enabled=False):  # bfloat16 has 8 bits of mantissa
            return make(self, images, uniform, view)

    @abstractmethod
    def view(self, images: Tensor, uniform: Tensor, view: int) -> Tensor:
        """See `__call__`."""


def made(views: Views, images: Tensor, uniform: Tensor, view: int) -> Tensor:
    return views.view(images, uniform, view)


@cache
def compiled() -> Callable[[Views, Tensor, Tensor, int], Tensor]:
    # One graph (tests/test_graphs.py), which is not asked for: runs of many sizes in a process are many graphs, and
    # torch makes an error of the ninth.
    return torch.compile(made, dynamic=False)


@dataclass(frozen=True)
class MocoViews(Views):
    """The two views of MoCo v3: random resized crop, colour jitter, grey, blur, solarisation, flip.

    Probabilities given as a pair belong to view 0 and view 1. Jitter strengths are those of brightness, contrast,
    saturation and hue. Colour operations other than brightness and contrast are skipped for grey images.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_prob: float = 0.8
    gray: float = 0.2
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_prob: tuple[float, float] = (1.0, 0.1)
    solarize_prob: tuple[float, float] = (0.0, 0.2)

    numbers = 2 * CROP_TRIES + 2 + 14

    def view(self, images: Tensor, uniform: Tensor, view: int) -> Tensor:
        return self.apply(images, self.parameters(uniform, images.shape[-2], images.shape[-1], view))

    def parameters(self, uniform: Tensor, height: int, width: int, view: int) -> MocoParameters:
        """Parameters of one view, from uniform numbers (N, `numbers`)."""
        boxes, switches, strengths, keys = uniform.split([2 * CROP_TRIES + 2, 5, 5, 4], dim=1)
        jittered, gray, blurred, solarized, flipped = switches.unbind(1)
        applied = jittered < self.jitter_prob
        *factors, hue = _jitter_factors(strengths[:, :4], self.jitter)
        factors = [torch.where(applied, factor, 1.0) for factor in factors]
        sigma = _between(strengths[:, 4], *self.blur_sigma)
        return MocoParameters(
            boxes=random_boxes(boxes, height, width, self.crop_scale),
            factors=torch.stack([*factors, torch.where(applied, hue - 1, 0.0)], dim=1),
            order=keys.argsort(dim=1, stable=True),
            gray=gray < self.gray,
            sigma=torch.where(blurred < self.blur_prob[view], sigma, 0.0),
            solarize=solarized < self.solarize_prob[view],
            flip=flipped < self.flip,
        )

    def apply(self, images: Tensor, parameters: MocoParameters) -> Tensor:
        """Make the view that `parameters` describe, of uint8 images (N, C, H, W); draws nothing."""
        fields = {name: value.to(images.device) for name, value in vars(parameters).items()}
        samples = len(images)
        if images.device.type == "cpu":  # in pieces that stay in the processor's cache
            samples = max(1, CPU_CHUNK // images[0].numel())
        pieces = range(0, len(images), samples)
        return torch.cat(
            [
                self._apply(
                    images[i : i + samples],
                    MocoParameters(**{name: value[i : i + samples] for name, value in fields.items()}),
                )
                for i in pieces
            ]
        )

    def _apply(self, images: Tensor, p: MocoParameters) -> Tensor:
        height, width = images.shape[-2:]
        views = transforms.crop_resize(images.float() / 255, p.boxes, height)
        views = transforms.colour_jitter(views, p.factors, p.order)
        if views.shape[1] == 3:
            views = transforms.grayscale(views, p.gray)
        radius = min(math.ceil(3 * self.blur_sigma[1]), height - 1, width - 1)
        views = transforms.apply_where(
            lambda chosen, sigma: transforms.gaussian_blur(chosen, sigma, radius), views, p.sigma > 0, p.sigma
        )
        views = transforms.solarize(views, p.solarize)
        return transforms.hflip(views, p.flip)


@dataclass(frozen=True)
class AffineParameters:
    """What `AffineViews` does to each of N samples."""

    degrees: Tensor  # (N,) clockwise
    translate: Tensor  # (N, 2) x, y as fractions of the image
    scale: Tensor  # (N,)
    factors: Tensor  # (N, 2): brightness, contrast


@dataclass(frozen=True)
class AffineViews(Views):
    """Views of symbols such as digits, which flips and strong crops would turn into others.

    A rotation of at most `degrees`, a shift of at most `translate` (fraction of the image), a `scale`, on a
    background of value `fill` (0 to 1), then brightness and contrast jitter of the given strengths.
    """

    degrees: float = 15.0
    translate: float = 0.1
    scale: tuple[float, float] = (0.8, 1.2)
    brightness: float = 0.4
    contrast: float = 0.4
    fill: float = 0.0

    numbers = 6

    def view(self, images: Tensor, uniform: Tensor, view: int) -> Tensor:
        """Both views have the same distribution."""
        assert view in (0, 1), view
        return self.apply(images, self.parameters(uniform))

    def parameters(self, uniform: Tensor) -> AffineParameters:
        """Parameters of one view, from uniform numbers (N, `numbers`) in [0, 1)."""
        return AffineParameters(
            degrees=_between(uniform[:, 0], -self.degrees, self.degrees),
            translate=_between(uniform[:, 1:3], -self.translate, self.translate),
            scale=_between(uniform[:, 3], *self.scale),
            factors=torch.stack(_jitter_factors(uniform[:, 4:], (self.brightness, self.contrast)), dim=1),
        )

    def apply(self, images: Tensor, parameters: AffineParameters) -> Tensor:
        """Make the view that `parameters` describe; draws nothing."""
        device, (height, width) = images.device, images.shape[-2:]
        p = AffineParameters(**{name: value.to(device) for name, value in vars(parameters).items()})
        pixels = torch.stack([p.translate[:, 0] * width, p.translate[:, 1] * height], dim=1)
        views = transforms.affine(images.float() / 255, p.degrees, pixels, p.scale, self.fill)
        views = transforms.adjust_brightness(views, p.factors[:, 0])
        return transforms.adjust_contrast(views, p.factors[:, 1])


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * uniform


def _jitter_factors(uniform: Tensor, strengths: Sequence[float]) -> list[Tensor]:
    """One factor (N,) in 1 +- strength, never below 0, for each column of `uniform`."""
    return [_between(uniform[:, k], max(0.0, 1 - s), 1 + s) for k, s in enumerate(strengths)]
