"""Views: distributions of the drawn parameters, independence of samples, and the whole chain against torchvision."""

import math

import pytest
import torch
from sklearn.datasets import load_digits, load_sample_image
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from epg.data.views import augment, transforms
from epg.data.views.augment import AffineViews, MocoViews, random_boxes, random_flip
from epg.randomness import uniform

MANY = 20_000


def numbers(views, count, seed):
    return uniform(range(count), (views.numbers,), seed, "test", device="cpu")


@pytest.fixture(scope="module")
def photos():
    """(8, 3, 64, 64) uint8 tiles of a photograph."""
    image = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)
    image = tv.resize(image, [200, 300])
    return torch.stack([image[:, 20 * i : 20 * i + 64, 30 * i : 30 * i + 64] for i in range(6)] * 2)[:8]


@pytest.fixture(scope="module")
def drawn():
    return [MocoViews().parameters(numbers(MocoViews, MANY, view), 64, 64, view) for view in (0, 1)]


def test_boxes_are_distributed_as_torchvisions():
    for height, width, scale in ((64, 64, (0.08, 1.0)), (40, 90, (0.5, 1.0)), (200, 20, (0.8, 1.0))):
        torch.manual_seed(0)
        image = torch.empty(3, height, width)
        reference = torch.tensor(
            [RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(4000)]
        ).double()
        ours = random_boxes(uniform(range(4000), (22,), 1, device="cpu"), height, width, scale).double()
        for column in range(4):
            a, b = ours[:, column].sort().values, reference[:, column].sort().values
            grid = torch.arange(0, max(height, width) + 1).double()
            distance = (torch.searchsorted(a, grid, right=True) - torch.searchsorted(b, grid, right=True)).abs()
            assert distance.max() / 4000 < 0.0436  # Kolmogorov-Smirnov, p = 0.001
        assert (ours[:, :2] >= 0).all()
        assert (ours[:, 0] + ours[:, 2] <= height).all()
        assert (ours[:, 1] + ours[:, 3] <= width).all()


def test_a_box_that_cannot_fit_is_the_largest_centred_one():
    uniform = torch.rand(50, 22)
    assert random_boxes(uniform, 100, 10, (1.0, 1.0)).unique(dim=0).tolist() == [[43, 0, 13, 10]]
    assert random_boxes(uniform, 10, 100, (1.0, 1.0)).unique(dim=0).tolist() == [[0, 43, 10, 13]]


def test_boxes_reach_every_place():
    boxes = random_boxes(uniform(range(MANY), (22,), 0, device="cpu"), 8, 8, (0.08, 1.0))
    assert boxes[:, 0].min() == 0
    assert (boxes[:, 0] + boxes[:, 2]).max() == 8
    small = boxes[(boxes[:, 2] == 3) & (boxes[:, 3] == 3)]
    counts = torch.bincount(small[:, 0], minlength=6).double()
    assert len(counts) == 6
    assert (counts / len(small) - 1 / 6).abs().max() < 5 * math.sqrt(5 / 36 / len(small))


def test_probabilities_are_those_of_moco_v3(drawn):
    expected = {
        "blur": (1.0, 0.1),
        "solarize": (0.0, 0.2),
        "gray": (0.2, 0.2),
        "flip": (0.5, 0.5),
        "jitter": (0.8, 0.8),
    }
    for view, p in enumerate(drawn):
        rates = {
            "blur": p.sigma > 0,
            "solarize": p.solarize,
            "gray": p.gray,
            "flip": p.flip,
            "jitter": p.factors[:, 3] != 0,
        }
        for name, chosen in rates.items():
            assert chosen.double().mean().item() == pytest.approx(expected[name][view], abs=0.015), (
                name,
                view,
            )


def test_strengths_are_uniform_in_their_range(drawn):
    p = drawn[0]
    jittered = p.factors[p.factors[:, 3] != 0]
    ranges = [(0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1)]
    columns = [jittered[:, k] for k in range(4)]
    for values, (low, high) in zip([*columns, p.sigma], [*ranges, (0.1, 2.0)], strict=True):
        scaled = ((values.double() - low) / (high - low)).sort().values
        assert scaled[0] > -1e-6
        assert scaled[-1] < 1 + 1e-6
        assert (scaled - torch.linspace(0, 1, len(scaled), dtype=torch.float64)).abs().max() < 0.016
    rest = p.factors[p.factors[:, 3] == 0]
    assert torch.equal(rest, torch.tensor([1.0, 1.0, 1.0, 0.0]).expand_as(rest))


def test_all_24_orders_are_equally_likely(drawn):
    _, counts = drawn[0].order.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert (counts / MANY - 1 / 24).abs().max() < 0.007


def test_parameters_are_independent_of_each_other(drawn):
    p = drawn[1]
    columns = [*p.boxes.T, *p.factors.T, *p.order.T[:2], p.gray, p.sigma, p.solarize, p.flip]
    correlation = torch.corrcoef(torch.stack([column.double() for column in columns])).abs()
    # Related by nature: a small box lies anywhere, a wide one is low, jitter is on for all four at once.
    groups = torch.tensor([0] * 4 + [1] * 4 + [2] * 2 + [3, 4, 5, 6])
    assert correlation[groups[:, None] != groups].max() < 0.035


def test_a_strong_jitter_never_turns_negative():
    p = MocoViews(jitter=(1.5, 1.0, 0.2, 0.1)).parameters(numbers(MocoViews, MANY, 0), 8, 8, 0)
    assert p.factors[:, 0].min() >= 0
    assert p.factors[:, 0].max() > 2.4


@pytest.mark.parametrize("views", [MocoViews(), AffineViews()])
@pytest.mark.parametrize("view", [0, 1])
def test_samples_are_independent(photos, views, view, monkeypatch):
    drawn = numbers(views, 8, 5)
    whole = views(photos, drawn, view)
    parts = [views(photos[:3], drawn[:3], view), views(photos[3:], drawn[3:], view)]
    assert whole.shape == photos.shape
    assert whole.dtype == torch.float32
    assert 0 <= whole.min() <= whole.max() <= 1 + 1e-6
    torch.testing.assert_close(whole, torch.cat(parts), atol=1e-6, rtol=0)
    other = torch.cat([drawn[:4], numbers(views, 8, 6)[4:]])
    assert (whole - views(photos, other, view))[:4].abs().max() < 1e-6
    assert (whole - views(photos, other, view))[4:].abs().mean() > 0.01
    monkeypatch.setattr(augment, "CPU_CHUNK", 3 * 64 * 64 * 3)  # three images at a time
    torch.testing.assert_close(views(photos, drawn, view), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("view", [0, 1])
def test_moco_views_are_the_torchvision_chain(photos, view):
    images = photos.repeat(6, 1, 1, 1)
    views = MocoViews(blur_prob=(0.5, 0.5), solarize_prob=(0.3, 0.3))
    p = views.parameters(numbers(views, len(images), view), 64, 64, view)
    result = views.apply(images, p)
    jitter = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    for i, image in enumerate(images / 255):
        image = tv.resized_crop(image, *p.boxes[i].tolist(), [64, 64], InterpolationMode.BILINEAR)
        for operation in p.order[i].tolist():
            image = jitter[operation](image, p.factors[i, operation].item())
        if p.gray[i]:
            image = tv.rgb_to_grayscale(image, num_output_channels=3)
        if p.sigma[i] > 0:
            image = tv.gaussian_blur(image, [13, 13], [p.sigma[i].item()] * 2)
        if p.solarize[i]:
            image = tv.solarize(image, 0.5)
        if p.flip[i]:
            image = tv.horizontal_flip(image)
        assert (result[i] - image).abs().mean() < 1e-3, i


def test_views_without_any_change_are_the_images(photos):
    still = MocoViews(
        crop_scale=(1.0, 1.0),
        flip=0.0,
        jitter_prob=0.0,
        gray=0.0,
        blur_prob=(0.0, 0.0),
        solarize_prob=(0.0, 0.0),
    )
    p = still.parameters(numbers(still, 8, 0), 64, 64, 0)
    whole = torch.tensor([0, 0, 64, 64]).expand(8, 4)
    result = still.apply(photos, augment.MocoParameters(**{**vars(p), "boxes": whole}))
    torch.testing.assert_close(result, photos / 255, atol=1e-6, rtol=0)
    calm = AffineViews(degrees=0, translate=0, scale=(1, 1), brightness=0, contrast=0)
    torch.testing.assert_close(calm(photos, numbers(calm, 8, 0), 0), photos / 255, atol=1e-5, rtol=0)


def test_grey_images_of_any_small_size():
    images = torch.from_numpy(load_digits().images[:8] * 15.9).to(torch.uint8)[:, None]
    for size in (8, 4, 2):
        result = MocoViews()(images[:, :, :size, :size], numbers(MocoViews, 8, 0), 0)
        assert result.shape == (8, 1, size, size)
        assert result.isfinite().all()


def test_affine_parameters_fill_their_ranges():
    views = AffineViews(degrees=20, translate=0.25, scale=(0.5, 1.5), brightness=0.3, contrast=0.1)
    p = views.parameters(numbers(views, MANY, 0))
    for values, low, high in (
        (p.degrees, -20, 20),
        (p.translate[:, 0], -0.25, 0.25),
        (p.translate[:, 1], -0.25, 0.25),
        (p.scale, 0.5, 1.5),
        (p.factors[:, 0], 0.7, 1.3),
        (p.factors[:, 1], 0.9, 1.1),
    ):
        scaled = ((values.double() - low) / (high - low)).sort().values
        assert (scaled - torch.linspace(0, 1, MANY, dtype=torch.float64)).abs().max() < 0.014


def test_affine_moves_by_fractions_of_the_image():
    dot = torch.zeros(1, 1, 20, 40, dtype=torch.uint8)
    dot[0, 0, 10, 20] = 255
    p = augment.AffineParameters(torch.zeros(1), torch.tensor([[0.25, -0.25]]), torch.ones(1), factors=torch.ones(1, 2))
    assert AffineViews().apply(dot, p).round().nonzero().tolist() == [[0, 0, 5, 30]]
    assert AffineViews(fill=0.5).apply(dot, p)[0, 0, -1, 0] == 0.5


def test_random_flip_mirrors_half_of_any_tensor(photos):
    values, drawn = torch.randn(MANY, 1, 1, 2).double(), uniform(range(MANY), (), 0, device="cpu")
    flipped = random_flip(values, drawn)
    mirrored = (flipped == values.flip(-1)).flatten(1).all(dim=1)
    assert ((flipped == values).flatten(1).all(dim=1) | mirrored).all()
    assert mirrored.double().mean().item() == pytest.approx(0.5, abs=0.015)
    parts = [random_flip(values[:10_001], drawn[:10_001]), random_flip(values[10_001:], drawn[10_001:])]
    assert torch.equal(flipped, torch.cat(parts))


@pytest.mark.parametrize("views", [MocoViews(), AffineViews()])
def test_applying_never_waits_for_a_device(photos, views):
    # Tensors without values: whatever needs one on the host (nonzero, item, a boolean index) raises.
    size = (64, 64, 0) if isinstance(views, MocoViews) else ()
    p = views.parameters(numbers(views, 8, 0), *size)
    result = views.apply(photos.to("meta"), p)
    assert result.shape == photos.shape
    assert result.dtype == torch.float32


@pytest.mark.parametrize("views", [MocoViews(), AffineViews()])
def test_views_are_not_spoiled_by_autocast(photos, views):
    drawn = numbers(views, 8, 0)
    clean = views(photos, drawn, 0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(views(photos, drawn, 0), clean)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("view", [0, 1])
@pytest.mark.parametrize(("tf32", "tolerance"), [(False, 1e-5), (True, 2e-4)])
def test_a_gpu_makes_the_same_views(photos, view, tf32, tolerance, monkeypatch):
    """With TF32, as in training, matrix products keep 11 bits: 1.05e-4 on an H200, a fortieth of a grey level."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", tf32)
    p = MocoViews().parameters(numbers(MocoViews, 8, 0), 64, 64, view)
    on_gpu = MocoViews().apply(photos.cuda(), p).cpu()
    assert (on_gpu - MocoViews().apply(photos, p)).abs().mean() < tolerance
    drawn = numbers(MocoViews, 8, 0)
    compiled = MocoViews()(photos.cuda(), drawn.cuda(), view, fused=True).cpu()
    assert (compiled - MocoViews()(photos, drawn, view)).abs().mean() < tolerance


def test_defaults_are_those_of_moco_v3(photos):
    """Its augmentation is made of torchvision's classes with these arguments, each with torchvision's defaults."""
    views, crop = MocoViews(), RandomResizedCrop(64, scale=(0.08, 1.0))
    assert views.crop_scale == tuple(crop.scale)
    assert pytest.approx(crop.ratio) == augment.CROP_RATIO
    jitter = ColorJitter(0.4, 0.4, 0.2, 0.1)
    p = views.parameters(numbers(views, MANY, 0), 64, 64, 1)
    for k, (low, high) in enumerate([jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue]):
        column = p.factors[:, k]
        assert column.min().item() == pytest.approx(low, abs=1e-3)
        assert column.max().item() == pytest.approx(high, abs=1e-3)
    assert (views.jitter_prob, views.gray, views.flip) == (0.8, 0.2, 0.5)
    assert (views.blur_sigma, views.blur_prob, views.solarize_prob) == ((0.1, 2.0), (1.0, 0.1), (0.0, 0.2))
    for image, box in zip(photos, p.boxes.tolist(), strict=False):
        expected = tv.resized_crop(image / 255, *box, [64, 64], crop.interpolation, antialias=crop.antialias)
        ours = transforms.crop_resize(image[None] / 255, torch.tensor([box]), 64)[0]
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
