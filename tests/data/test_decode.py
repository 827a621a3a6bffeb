"""Real tiny files in every colour mode, the ADM crop by hand, and files that must be refused."""

import io
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from epg.data import decode
from epg.data.decode import decode_image
from epg.data.pixels.plain import decoded, encoded
from epg.data.pixels.resize import center_crop
from epg.errors import DataError


def photo(width, height, seed=0):
    """A smooth colourful image with some detail."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def encode(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def as_array(image):
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("width", "height", "halvings", "scaled", "left", "top"),
    [
        (100, 70, 1, (46, 32), 7, 0),  # 50x35
        (64, 300, 1, (32, 150), 0, 59),  # 32x150: no further scaling
        (33, 40, 0, (32, 39), 0, 3),
        (20, 11, 0, (58, 32), 13, 0),  # enlarged
        (32, 32, 0, (32, 32), 0, 0),
    ],
)
def test_adm_crop_equals_the_procedure_by_hand(width, height, halvings, scaled, left, top):
    image = photo(width, height)
    expected = image
    for _ in range(halvings):
        expected = expected.resize((expected.width // 2, expected.height // 2), Image.Resampling.BOX)
    expected = expected.resize(scaled, Image.Resampling.BICUBIC)
    expected = np.asarray(expected)[top : top + 32, left : left + 32]
    result = np.asarray(center_crop(image, 32))
    assert result.shape == (32, 32, 3)
    np.testing.assert_array_equal(result, expected)


def test_adm_crop_halves_as_often_as_it_can():
    image = photo(300, 260)
    expected = image
    for size in ((150, 130), (75, 65), (37, 32), (18, 16)):
        expected = expected.resize(size, Image.Resampling.BOX)
    np.testing.assert_array_equal(np.asarray(center_crop(image, 16)), np.asarray(expected)[:, 1:17])


def test_png_pixels_survive_exactly_from_bytes_and_from_a_path(tmp_path):
    image = photo(24, 24)
    path = tmp_path / "a.png"
    image.save(path)
    for source in (path, str(path), path.read_bytes()):
        result = decode_image(source, 24, 3)
        assert result.dtype == np.uint8
        assert result.shape == (3, 24, 24)
        assert result.transpose(1, 2, 0).flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(result, as_array(image))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stored", [1, 3, 4])
def test_an_array_of_the_asked_shape_is_not_decoded_and_gives_the_same(stored, channels):
    """As a file of the same pixels does, which is; so does one that is cut or longer than it says."""
    values = np.random.default_rng(0).integers(0, 256, (8, 8, stored), dtype=np.uint8)
    values[..., 3:] = 255
    file, stream = encoded(values), io.BytesIO()
    Image.fromarray(values.squeeze()).save(stream, "PNG")
    pixels, origin = decode.decode_with_origin(file, 8, channels, "x")
    expected, png = decode.decode_with_origin(stream.getvalue(), 8, channels, "x")
    np.testing.assert_array_equal(pixels, expected)
    assert origin == replace(png, format=origin.format)
    assert (decoded(file, 8, channels) is not None) == (stored == channels)
    if stored != 4:
        np.testing.assert_array_equal(decode_image(file + b"x", 8, channels), expected)
        with pytest.raises(DataError):
            decode_image(file[:-1], 8, channels)


def test_grey_is_luminance_and_repeats_over_three_channels():
    image = photo(16, 16)
    np.testing.assert_array_equal(decode_image(encode(image, "PNG"), 16, 1)[0], np.asarray(image.convert("L")))
    grey = decode_image(encode(image.convert("L"), "PNG"), 16, 3)
    np.testing.assert_array_equal(grey, np.stack([np.asarray(image.convert("L"))] * 3))


def test_exif_rotation_is_applied():
    image = photo(16, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    result = decode_image(encode(image, "PNG", exif=exif), 16, 3)
    np.testing.assert_array_equal(result, as_array(image.transpose(Image.Transpose.ROTATE_270)))
    assert not np.array_equal(result, as_array(image))


def test_transparency_becomes_white():
    image = photo(16, 16).convert("RGBA")
    alpha = np.zeros((16, 16), np.uint8)
    alpha[:, 4:] = 128
    alpha[:, 8:] = 255
    image.putalpha(Image.fromarray(alpha))
    result = decode_image(encode(image, "PNG"), 16, 3).astype(int)
    colour = as_array(image).astype(int)
    assert (result[:, :, :4] == 255).all()
    assert np.abs(result[:, :, 4:8] - (colour[:, :, 4:8] * 128 + 255 * 127) / 255).max() <= 1
    np.testing.assert_array_equal(result[:, :, 8:], colour[:, :, 8:])


def test_palette_with_and_without_transparency():
    image = photo(16, 16).quantize(8)
    np.testing.assert_array_equal(decode_image(encode(image, "PNG"), 16, 3), as_array(image))
    index = image.getpixel((0, 0))
    result = decode_image(encode(image, "PNG", transparency=index), 16, 3)
    clear = np.asarray(image) == index
    assert (result[:, clear] == 255).all()
    np.testing.assert_array_equal(result[:, ~clear], as_array(image)[:, ~clear])


def test_sixteen_bits_are_scaled_and_not_clipped():
    values = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    result = decode_image(encode(Image.fromarray(values), "PNG"), 16, 1)
    np.testing.assert_array_equal(result[0].ravel(), np.arange(256))


def test_cmyk_jpeg_keeps_its_colours():
    image = Image.new("RGB", (16, 16), (200, 60, 30))
    result = decode_image(encode(image.convert("CMYK"), "JPEG", quality=95), 16, 3)
    assert np.abs(result.astype(int).mean(axis=(1, 2)) - [200, 60, 30]).max() < 4


def test_bilevel_webp_gif_and_tiff():
    image = photo(16, 16)
    assert set(np.unique(decode_image(encode(image.convert("1"), "PNG"), 16, 1))) <= {0, 255}
    for options in ({"format": "WEBP", "lossless": True}, {"format": "TIFF"}):
        buffer = io.BytesIO()
        image.save(buffer, **options)
        np.testing.assert_array_equal(decode_image(buffer.getvalue(), 16, 3), as_array(image))
    frames = [photo(16, 16, seed).quantize(16) for seed in (0, 1)]
    animation = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode_image(animation, 16, 3), as_array(frames[0]))


def broken_files():
    png, jpeg = encode(photo(64, 64), "PNG"), encode(photo(64, 64), "JPEG")
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    return {
        "empty": b"",
        "truncated png": png[: len(png) // 2],
        "truncated jpeg": jpeg[: len(jpeg) // 2],
        "damaged png": bytes(flipped),
        "text": b"<html>404 not found</html>",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        "float": encode(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"),
        "elongated": encode(Image.new("RGB", (1, 40000)), "PNG"),
    }


@pytest.mark.parametrize("kind", sorted(broken_files()))
def test_broken_files_are_named_and_the_cure_given(tmp_path, kind):
    path = tmp_path / "cat.png"
    path.write_bytes(broken_files()[kind])
    with pytest.raises(DataError, match=r"cat\.png: cannot decode.*Replace it or remove it"):
        decode_image(path, 64, 3)
    with pytest.raises(DataError, match=r"^row 3: cannot decode"):
        decode_image(broken_files()[kind], 64, 3, name="row 3")


def test_the_float_and_empty_messages_say_what_is_wrong(tmp_path):
    with pytest.raises(DataError, match="32-bit float"):
        decode_image(broken_files()["float"], 8, 3)
    with pytest.raises(DataError, match="0 bytes"):
        decode_image(b"", 8, 3)


def test_huge_images_are_refused_before_their_pixels_are_decode_image(monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 1000)
    monkeypatch.setattr(decode, "_opaque", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DataError, match="64x64 pixels are more than the limit"):
        decode_image(encode(photo(64, 64), "PNG"), 16, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_a_data_error():
    bomb = encode(Image.new("1", (20000, 10000)), "PNG")
    with pytest.raises(DataError, match="cannot decode"):
        decode_image(bomb, 16, 3)


def test_a_pipe_is_refused_and_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="not a file"):
        decode_image(tmp_path / "pipe.png", 8, 3)
