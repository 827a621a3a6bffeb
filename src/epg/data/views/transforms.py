"""Batched image operations with one parameter per sample: (N, C, H, W) floats in [0, 1] in, the same out.

Each gives what torchvision's functional of the same name gives for every sample alone. Nothing here draws random
numbers or waits for the device.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # what the numbers in `order` of colour_jitter mean
LUMINANCE = (0.2989, 0.587, 0.114)  # weights of R, G, B


def per_sample(values: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1, 1)."""
    return values[:, None, None, None]


def apply_where(operation: Callable[..., Tensor], images: Tensor, mask: Tensor, *parameters: Tensor) -> Tensor:
    """`operation(images, *parameters)` for the samples in `mask` (N,) bool; the others unchanged.

    Every parameter has one row per sample. On the CPU only the chosen samples are computed; elsewhere all are, as
    choosing them would make the host wait for the device.
    """
    if images.device.type != "cpu":
        return torch.where(per_sample(mask), operation(images, *parameters), images)
    chosen = mask.nonzero()[:, 0]
    if len(chosen) == len(images):
        return operation(images, *parameters)
    if len(chosen) == 0:
        return images
    changed = operation(images[chosen], *(parameter[chosen] for parameter in parameters))
    return images.index_copy(0, chosen, changed)


# Geometry ---------------------------------------------------------------------------------------------------------


def crop_resize(images: Tensor, boxes: Tensor, out_size: int) -> Tensor:
    """Cut `boxes` (N, 4) of top, left, height, width in pixels and resize them to `out_size` squared.

    Bilinear with antialiasing, as torchvision's RandomResizedCrop, which MoCo v3 uses. Pixels outside a box never
    contribute. Two matrix products with one resampling matrix per sample and direction.
    """
    top, left, height, width = boxes.float().unbind(1)
    n, c, h, w = images.shape
    rows = _resampling_matrix(top, height, h, out_size)  # (N, out, H)
    columns = _resampling_matrix(left, width, w, out_size)  # (N, out, W)
    images = images.reshape(n, c * h, w) @ columns.mT  # (N, C*H, out)
    images = rows[:, None] @ images.reshape(n, c, h, out_size)
    return images.clamp(0, 1)


def hflip(images: Tensor, mask: Tensor) -> Tensor:
    """Mirror the samples in `mask` (N,) bool left to right; any values are allowed."""
    return torch.where(per_sample(mask), images.flip(-1), images)


def affine(images: Tensor, degrees: Tensor, translate: Tensor, scale: Tensor, fill: float = 0.0) -> Tensor:
    """Rotate clockwise by `degrees` (N,) and scale by `scale` (N,) about the centre, then move by `translate`.

    `translate` (N, 2) is x, y in pixels. Bilinear; `fill` is the value beyond the borders.
    """
    h, w = images.shape[-2:]
    angle = torch.deg2rad(degrees)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    x, y = translate.unbind(1)
    # Where each output pixel comes from: R(-angle) (p - translate) / scale, in units of half the image.
    theta = torch.stack(
        [
            *(cos, sin * h / w, -(cos * x + sin * y) * 2 / w),
            *(-sin * w / h, cos, -(cos * y - sin * x) * 2 / h),
        ],
        dim=1,
    ).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images - fill, grid, align_corners=False) + fill


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur with standard deviations `sigma` (N,) pixels, kernel size `2 * radius + 1`, borders reflected.

    Sigma 0 leaves a sample as it is. `radius` must be smaller than the image.
    """
    taps = torch.arange(-radius, radius + 1, device=images.device)
    kernels = torch.exp(-0.5 * (taps / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernels = kernels / kernels.sum(dim=1, keepdim=True)  # (N, K)
    rows, columns = (_blur_matrix(kernels, taps, length) for length in images.shape[-2:])
    n, c, h, w = images.shape
    images = (images.reshape(n, c * h, w) @ columns.mT).reshape(n, c, h, w)
    return rows[:, None] @ images


# Colour -----------------------------------------------------------------------------------------------------------


def luminance(images: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 1, H, W); images of another number of channels are averaged over it."""
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
    red, green, blue = images.split(1, dim=1)
    return (LUMINANCE[0] * red).add_(green, alpha=LUMINANCE[1]).add_(blue, alpha=LUMINANCE[2])


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with black; `factor` (N,), 1 changes nothing."""
    return (images * per_sample(factor)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean luminance; `factor` (N,), 1 changes nothing."""
    mean = luminance(images).mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean, images, per_sample(factor)).clamp_(0, 1)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue (HSV) by `shift` (N,) turns, -0.5 to 0.5; 0 changes nothing. Colour images only."""
    red, green, blue = images.unbind(1)  # (N, H, W)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    safe = chroma.clamp(min=1e-12)  # where chroma is 0, so are the differences below
    hue = torch.where(  # in sixths of a turn: 0 red, 2 green, 4 blue
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    ).add_(6 * shift[:, None, None])

    def channel(n: int) -> Tensor:
        # The well-known closed form of HSV to RGB: v - c clip(min(k, 4 - k), 0, 1) with k = (n + hue) mod 6.
        k = hue + n
        k -= 6 * torch.floor(k / 6)
        return value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)

    return torch.stack([channel(5), channel(3), channel(1)], dim=1)


def colour_jitter(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation, hue with `factors` (N, 4), in each sample's own `order` (N, 4).

    A row of `order` is a permutation of the four operations, first one first. Saturation and hue are skipped for
    images without three channels.
    """
    # Hue is by far the dearest: it is computed once, between the other operations that come before and after it.
    place = (order == HUE).int().argmax(dim=1)
    for slot in range(3):
        images = _blend(images, factors, order[:, slot], slot < place)
    if images.shape[1] == 3:
        images = apply_where(adjust_hue, images, factors[:, HUE] != 0, factors[:, HUE])
    for slot in range(1, 4):
        images = _blend(images, factors, order[:, slot], slot > place)
    return images


def _blend(images: Tensor, factors: Tensor, operation: Tensor, active: Tensor) -> Tensor:
    """One of brightness, contrast, saturation per sample: a blend with black, mean luminance or luminance."""
    factor = factors.gather(1, operation[:, None])[:, 0]
    active = active & (factor != 1)
    if images.shape[1] != 3:
        active = active & (operation != SATURATION)

    def blend(images: Tensor, factor: Tensor, operation: Tensor) -> Tensor:
        grey = luminance(images)
        mean = grey.mean(dim=(1, 2, 3), keepdim=True)
        other = grey * per_sample(operation == SATURATION) + mean * per_sample(operation == CONTRAST)
        return torch.lerp(other, images, per_sample(factor)).clamp_(0, 1)

    return apply_where(blend, images, active, factor, operation)


def grayscale(images: Tensor, mask: Tensor) -> Tensor:
    """Replace the samples in `mask` (N,) bool by their luminance, in every channel."""
    return apply_where(lambda chosen: luminance(chosen).expand_as(chosen), images, mask)


def solarize(images: Tensor, mask: Tensor, threshold: float = 0.5) -> Tensor:
    """Invert the values >= `threshold` of the samples in `mask` (N,) bool."""
    return torch.where(per_sample(mask) & (images >= threshold), 1 - images, images)


# Matrices ---------------------------------------------------------------------------------------------------------


def _resampling_matrix(start: Tensor, length: Tensor, size: int, out_size: int) -> Tensor:
    """(N, out_size, size) bilinear weights of pixels start..start+length of an axis, with antialiasing."""
    scale = (length / out_size)[:, None, None]
    stretch = scale.clamp(min=1)  # the filter is widened when shrinking
    outputs = torch.arange(out_size, device=start.device)[:, None] + 0.5
    inputs = torch.arange(size, device=start.device)[None, :] + 0.5 - start[:, None, None]  # (N, 1, size)
    distance = (inputs - outputs * scale).abs() / stretch
    weights = (1 - distance).clamp(min=0) * ((inputs > 0) & (inputs < length[:, None, None]))
    return weights / weights.sum(dim=2, keepdim=True)


def _blur_matrix(kernels: Tensor, taps: Tensor, length: int) -> Tensor:
    """(N, length, length) matrices that convolve an axis with `kernels` (N, K), reflecting at its ends."""
    positions = torch.arange(length, device=kernels.device)
    source = (positions[:, None] + taps).abs()  # (length, K)
    source = length - 1 - (length - 1 - source).abs()
    # A product with a constant of zeros and ones, not scatter_add, whose order of summation varies on a GPU.
    places = (source.mT[:, :, None] == positions).to(kernels.dtype)  # (K, length, length)
    return (kernels @ places.flatten(1)).view(-1, length, length)
