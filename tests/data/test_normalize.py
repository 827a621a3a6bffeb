"""Normalisation: the paper's constants, exact round trips, the range of real pixels."""

import pytest
import torch

from epg.data.views.normalize import Normalizer
from epg.errors import UserError

ALL_VALUES = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


@pytest.mark.parametrize("normalizer", [Normalizer.imagenet(), Normalizer.symmetric(3), Normalizer.symmetric(1)])
def test_round_trip_is_exact_for_every_pixel_value(normalizer):
    images = ALL_VALUES.repeat(2, normalizer.channels, 1, 1)
    encoded = normalizer.encode(images)
    assert encoded.dtype == torch.float32
    assert torch.equal(normalizer.decode(encoded), images)
    assert torch.equal(normalizer.decode(encoded.double()), images)
    torch.testing.assert_close(normalizer.decode_unit(encoded), images / 255)


def test_imagenet_values_are_the_papers_channel_by_channel():
    values = Normalizer.imagenet().encode(torch.full((1, 3, 1, 1), 51, dtype=torch.uint8)).flatten()
    expected = [(0.2 - 0.485) / 0.458, (0.2 - 0.456) / 0.448, (0.2 - 0.406) / 0.45]
    torch.testing.assert_close(values, torch.tensor(expected))


def test_symmetric_is_minus_one_to_one():
    low, high = Normalizer.symmetric(2).bounds()
    assert low.shape == high.shape == (2, 1, 1)
    assert torch.equal(low.flatten(), -torch.ones(2))
    assert torch.equal(high.flatten(), torch.ones(2))


def test_bounds_are_those_of_real_pixels():
    normalizer = Normalizer.imagenet()
    low, high = normalizer.bounds()
    encoded = normalizer.encode(ALL_VALUES.repeat(1, 3, 1, 1))
    torch.testing.assert_close(encoded.amin(dim=(0, 2, 3)), low.flatten())
    torch.testing.assert_close(encoded.amax(dim=(0, 2, 3)), high.flatten())
    assert low[2].item() == pytest.approx(-0.902, abs=1e-3)  # blue
    assert high[2].item() == pytest.approx(1.32, abs=1e-3)


def test_encode_unit_agrees_with_encode_in_any_float_type():
    normalizer = Normalizer.imagenet()
    images = ALL_VALUES.repeat(1, 3, 1, 1)
    expected = normalizer.encode(images)
    torch.testing.assert_close(normalizer.encode_unit(images / 255), expected)
    torch.testing.assert_close(normalizer.encode_unit(images.double() / 255), expected)
    assert normalizer.encode_unit((images / 255).bfloat16()).dtype == torch.float32


def test_decode_rounds_to_nearest_and_clamps():
    normalizer = Normalizer.symmetric(1)
    values = (torch.tensor([-40.0, 99.4, 99.6, 300.0]) / 255 * 2 - 1).reshape(1, 1, 1, 4)
    assert normalizer.decode(values).flatten().tolist() == [0, 99, 100, 255]


def test_it_can_be_compared_hashed_and_built_from_lists():
    assert Normalizer([0.5], [0.25]) == Normalizer.symmetric(1)
    assert len({Normalizer([0.5], [0.25]), Normalizer.symmetric(1)}) == 1


def test_wrong_channels_are_refused_instead_of_broadcast():
    with pytest.raises(UserError, match="3 channels"):
        Normalizer.imagenet().encode(ALL_VALUES)
    with pytest.raises(UserError, match="one value per channel"):
        Normalizer((0.5, 0.5), (0.25,))
    with pytest.raises(UserError, match="std > 0"):
        Normalizer((0.5,), (0.0,))
