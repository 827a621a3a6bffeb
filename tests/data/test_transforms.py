"""Every batched operation against torchvision's, sample by sample, on a real photograph."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from epg.data.views import transforms

N = 6


@pytest.fixture(scope="module")
def photos():
    """(N, 3, 96, 96) floats: different crops of two photographs."""
    crops = []
    for i in range(N):
        image = Image.fromarray(load_sample_image(("china.jpg", "flower.jpg")[i % 2]))
        crops.append(np.asarray(image.resize((160, 110)).crop((10 * i, 2 * i, 10 * i + 96, 2 * i + 96))))
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 255


def assert_like(result, expected, limit):
    expected = torch.stack(expected)
    assert result.shape == expected.shape
    assert result.dtype == torch.float32
    assert (result - expected).abs().max().item() <= limit


BOXES = torch.tensor(
    [[0, 0, 96, 96], [10, 20, 30, 40], [50, 3, 46, 90], [95, 95, 1, 1], [3, 60, 90, 12], [20, 20, 64, 64]]
)


@pytest.mark.parametrize("size", [32, 64, 96, 130])
def test_crop_resize(photos, size):
    expected = [
        tv.resized_crop(image, *box, [size, size], InterpolationMode.BILINEAR, antialias=True).clamp(0, 1)
        for image, box in zip(photos, BOXES.tolist(), strict=True)
    ]
    assert_like(transforms.crop_resize(photos, BOXES, size), expected, 1e-5)


def test_crop_resize_never_sees_pixels_outside_its_box(photos):
    poisoned = torch.full_like(photos, 1e6)
    for image, original, (top, left, height, width) in zip(poisoned, photos, BOXES.tolist(), strict=True):
        image[:, top : top + height, left : left + width] = original[:, top : top + height, left : left + width]
    clean = transforms.crop_resize(photos, BOXES, 48)
    assert torch.equal(transforms.crop_resize(poisoned, BOXES, 48), clean)


def test_hflip(photos):
    mask = torch.tensor([True, False] * 3)
    result = transforms.hflip(photos, mask)
    assert torch.equal(result[::2], tv.horizontal_flip(photos[::2]))
    assert torch.equal(result[1::2], photos[1::2])


FACTORS = torch.tensor([0.0, 0.6, 0.9, 1.0, 1.3, 2.5])


@pytest.mark.parametrize("name", ["brightness", "contrast"])
def test_blends(photos, name):
    expected = [
        getattr(tv, f"adjust_{name}")(image, factor) for image, factor in zip(photos, FACTORS.tolist(), strict=True)
    ]
    assert_like(getattr(transforms, f"adjust_{name}")(photos, FACTORS), expected, 1e-6)


@pytest.mark.parametrize("name", ["brightness", "contrast"])
def test_blends_of_grey_images(photos, name):
    grey = photos[:, :1]
    expected = [
        getattr(tv, f"adjust_{name}")(image, factor) for image, factor in zip(grey, FACTORS.tolist(), strict=True)
    ]
    assert_like(getattr(transforms, f"adjust_{name}")(grey, FACTORS), expected, 1e-6)


def test_hue(photos):
    photos = photos.clone()
    photos[0, :, :8] = 0.5  # grey has no hue
    photos[1, :, :8] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    shifts = torch.tensor([-0.5, -0.2, -0.01, 0.0, 0.1, 0.5])
    expected = [tv.adjust_hue(image, shift) for image, shift in zip(photos, shifts.tolist(), strict=True)]
    assert_like(transforms.adjust_hue(photos, shifts), expected, 2e-4)


def test_colour_jitter_in_every_order(photos):
    operations = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    orders = list(itertools.permutations(range(4)))
    factors = torch.tensor([[1.4, 0.6, 1.2, 0.1], [0.7, 1.4, 0.8, -0.1], [1.0, 1.3, 1.0, 0.05]]).repeat(8, 1)
    images = photos[:3].repeat(8, 1, 1, 1)
    expected = []
    for image, order, factor in zip(images, orders, factors.tolist(), strict=True):
        for operation in order:
            image = operations[operation](image, factor[operation])
        expected.append(image)
    result = transforms.colour_jitter(images, factors, torch.tensor(orders))
    assert_like(result, expected, 2e-3)
    assert (result - torch.stack(expected)).abs().mean() < 1e-5
    wrong = transforms.colour_jitter(images, factors, torch.tensor(orders).flip(1))
    assert (wrong - torch.stack(expected)).abs().mean() > 5e-3  # the order matters, so the test can tell


def test_neutral_colour_jitter_changes_nothing(photos):
    factors = torch.tensor([[1.0, 1.0, 1.0, 0.0]]).repeat(N, 1)
    order = torch.stack([torch.randperm(4) for _ in range(N)])
    assert torch.equal(transforms.colour_jitter(photos, factors, order), photos)


def test_colour_jitter_of_grey_images_is_brightness_and_contrast(photos):
    grey = photos[:2, :1]
    factors = torch.tensor([[1.4, 0.6, 0.5, 0.1]]).repeat(2, 1)
    order = torch.tensor([[2, 1, 3, 0], [0, 3, 1, 2]])
    expected = [
        tv.adjust_brightness(tv.adjust_contrast(grey[0], 0.6), 1.4),
        tv.adjust_contrast(tv.adjust_brightness(grey[1], 1.4), 0.6),
    ]
    assert_like(transforms.colour_jitter(grey, factors, order), expected, 1e-6)


def test_grayscale(photos):
    mask = torch.tensor([True, False] * 3)
    result = transforms.grayscale(photos, mask)
    torch.testing.assert_close(result[::2], tv.rgb_to_grayscale(photos[::2], num_output_channels=3))
    assert torch.equal(result[1::2], photos[1::2])


@pytest.mark.parametrize("radius", [1, 6, 20])
def test_gaussian_blur(photos, radius):
    sigma = torch.tensor([0.1, 0.5, 1.0, 1.5, 2.0, 5.0])
    size = [2 * radius + 1] * 2
    expected = [tv.gaussian_blur(image, size, [s, s]) for image, s in zip(photos, sigma.tolist(), strict=True)]
    assert_like(transforms.gaussian_blur(photos, sigma, radius), expected, 1e-5)


def test_blur_of_sigma_zero_changes_nothing(photos):
    assert torch.equal(transforms.gaussian_blur(photos, torch.zeros(N), 6), photos)


def test_blur_of_images_that_are_not_square(photos):
    wide = photos[:, :, :40]
    expected = [tv.gaussian_blur(image, [9, 9], [1.3, 1.3]) for image in wide]
    assert_like(transforms.gaussian_blur(wide, torch.full((N,), 1.3), 4), expected, 1e-5)


def test_solarize(photos):
    mask = torch.tensor([True, False] * 3)
    result = transforms.solarize(photos, mask)
    assert torch.equal(result[::2], tv.solarize(photos[::2], 0.5))
    assert torch.equal(result[1::2], photos[1::2])


@pytest.mark.parametrize("fill", [0.0, 0.7])
@pytest.mark.parametrize("height", [96, 60])
def test_affine(photos, fill, height):
    photos = photos[:, :, :height]
    degrees = torch.tensor([0.0, 15.0, -15.0, 90.0, 5.0, -170.0])
    translate = torch.tensor([[0, 0], [3, -5], [0, 9], [-20, 0], [1, 1], [8, 2]])
    scale = torch.tensor([1.0, 1.0, 0.8, 1.2, 0.5, 2.0])
    # Without its own `fill`, which weights the pixels next to the border twice.
    expected = [
        tv.affine(image - fill, *parameters, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR) + fill
        for image, *parameters in zip(photos, degrees.tolist(), translate.tolist(), scale.tolist(), strict=True)
    ]
    assert_like(transforms.affine(photos, degrees, translate.float(), scale, fill), expected, 1e-4)


@pytest.mark.parametrize("chosen", [[], [2], [0, 1, 2, 3, 4, 5]])
def test_apply_where_computes_only_the_chosen_samples(photos, chosen):
    mask = torch.zeros(N, dtype=torch.bool)
    mask[chosen] = True
    seen = []

    def add(images, amounts):
        seen.append(len(images))
        return images + amounts[:, None, None, None]

    before = photos.clone()
    result = transforms.apply_where(add, photos, mask, torch.arange(N))
    expected = photos + (torch.arange(N) * mask)[:, None, None, None]
    assert torch.equal(result, expected)
    assert torch.equal(photos, before)
    assert sum(seen) == len(chosen)
