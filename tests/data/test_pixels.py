"""Every rule of docs/data.md about pixels, on files whose values are known because the test wrote their bytes."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms
from tests.data.made import DISPLAY_P3, png, profile, tiff

from epg.cli import main
from epg.config.sections import DataConfig
from epg.data.configured import open_training_data
from epg.data.dataset import open_dataset
from epg.data.decode import decode_image, look_at, open_flat
from epg.data.pixels.rules import RULES, PixelRules
from epg.errors import DataError, UserError
from epg.evaluation.image_folder import ImageFolder

SIZE = 24
RNG = np.random.default_rng(0)
IGNORE_ALPHA = PixelRules(background="none")


def values(bits, *channels):
    return RNG.integers(0, 2**bits, (SIZE, SIZE, *channels)).astype(np.uint16 if bits > 8 else np.uint8)


def rounded(sixteen):
    return (sixteen.astype(int) + 128) // 257


def decoded(data, channels=3, rules=RULES):
    return decode_image(data, SIZE, channels, rules=rules).astype(int)


def assert_shows(data, expected, channels=3, rules=RULES, off=0):
    """`expected` (H, W) or (H, W, C): what the decoded image must hold."""
    planes = np.asarray(expected)
    planes = planes[None] if planes.ndim == 2 else planes.transpose(2, 0, 1)
    shown = decoded(data, channels, rules)
    assert np.abs(shown - np.broadcast_to(planes, shown.shape)).max() <= off


def on_white(colours, alpha):
    return colours * (alpha / 255) + 255 * (1 - alpha / 255)


# 16 bits to 8 -----------------------------------------------------------------------------------------------------


def test_sixteen_bits_are_divided_by_257_and_rounded_whatever_the_colours():
    grey, colour, grey_alpha, colour_alpha = (values(16, *shape) for shape in ((), (3,), (2,), (4,)))
    colour[0, 0] = 255  # 0.99 of 8 bits: cut it would be 0
    assert_shows(png(grey, 16, 0), rounded(grey))
    assert_shows(png(grey, 16, 0), rounded(grey), channels=1)
    assert_shows(png(colour, 16, 2), rounded(colour))
    assert_shows(png(grey_alpha, 16, 4), rounded(grey_alpha[..., :1]), rules=IGNORE_ALPHA)
    assert_shows(png(colour_alpha, 16, 6), rounded(colour_alpha[..., :3]), rules=IGNORE_ALPHA)
    e = rounded(colour_alpha)
    assert_shows(png(colour_alpha, 16, 6), on_white(e[..., :3], e[..., 3:]), off=1)


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_tiffs(order):
    grey, colour, four = values(16), values(16, 3), values(16, 4)
    assert_shows(tiff(grey, 1, order), rounded(grey))
    assert look_at(tiff(grey, 1, order)) == (1, SIZE, SIZE)
    assert_shows(tiff(colour, 2, order), rounded(colour))
    e = rounded(four)
    assert_shows(tiff(four, 2, order, extra=2), on_white(e[..., :3], e[..., 3:]), off=1)
    assert_shows(tiff(four, 2, order, extra=0), e[..., :3])  # "unspecified": no transparency
    premultiplied = four.copy()
    premultiplied[..., :3] = four[..., :3].astype(np.uint64) * four[..., 3:] // 65535
    e = rounded(premultiplied)
    assert_shows(tiff(premultiplied, 2, order, extra=1), e[..., :3] + 255 - e[..., 3:], off=2)
    with pytest.raises(DataError, match="separate planes"):
        decoded(tiff(colour, 2, order, planar=2))
    eight = values(8, 3)
    assert_shows(tiff(eight, 2, order, planar=2), eight)


def test_white_is_zero_in_eight_and_sixteen_bits():
    grey = values(16)
    assert_shows(tiff(grey, 0), rounded(65535 - grey.astype(int)))
    assert_shows(tiff(values(8), 0), 255 - decoded(tiff(values(8), 1))[0], off=255)
    eight = values(8)
    assert_shows(tiff(eight, 0), 255 - eight.astype(int))


@pytest.mark.parametrize(
    ("kind", "sample_format", "words"),
    [
        (np.int16, 2, "16-bit signed"),
        (np.int8, 2, "8-bit signed"),
        (np.int32, 2, "32-bit signed"),
        (np.uint32, 1, "32-bit unsigned"),
        (np.float32, 3, "32-bit float"),
    ],
)
def test_values_without_a_known_range_are_asked_about_and_scaled_by_it(kind, sample_format, words):
    numbers = RNG.integers(0, 100, (SIZE, SIZE)).astype(kind)
    data = tiff(numbers, 1, sample_format=sample_format)
    with pytest.raises(DataError, match=rf"{words} pixels have no known range.*--range LOW HIGH"):
        decoded(data)
    scaled = np.floor(np.clip((numbers.astype(float) - 10) * 255 / 80, 0, 255) + 0.5)
    assert_shows(data, scaled, rules=PixelRules(range=(10, 90)))


def test_a_range_is_for_deep_values_only():
    twelve, eight = values(12, 3), values(8, 3)
    rules = PixelRules(range=(0, 4095))
    assert_shows(png(twelve, 16, 2), np.floor(twelve * (255 / 4095) + 0.5), rules=rules)
    assert_shows(png(eight, 8, 2), eight, rules=rules)


def test_not_a_number_is_refused():
    numbers = np.ones((SIZE, SIZE), np.float32)
    numbers[3, 3] = np.nan
    with pytest.raises(DataError, match="NaN"):
        decoded(tiff(numbers, 1, sample_format=3), rules=PixelRules(range=(0, 1)))


# Transparency -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_grey_of_a_png_is_the_one_it_names(bits):
    grey = values(bits)
    named = int(grey[1, 2])
    if bits == 16:
        grey[0, 0] = named ^ 1  # differs in the low byte only: opaque
    shown = rounded(grey) if bits == 16 else grey.astype(int) * 255 // (2**bits - 1)
    data = png(grey, bits, 0, [(b"tRNS", named.to_bytes(2, "big"))])
    assert_shows(data, np.where(grey == named, 255, shown))
    assert_shows(data, shown, rules=IGNORE_ALPHA)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_transparent_colour_of_a_png_is_the_one_it_names(bits):
    colour = values(bits, 3)
    colour[5, 5] = colour[2, 2]
    colour[5, 5, 0] ^= 1
    shown = rounded(colour) if bits == 16 else colour
    data = png(colour, bits, 2, [(b"tRNS", colour[2, 2].astype(">u2").tobytes())])
    assert_shows(data, np.where((colour == colour[2, 2]).all(axis=2, keepdims=True), 255, shown))


# Colour profiles --------------------------------------------------------------------------------------------------


def image_file(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_colours_of_a_profile_become_srgb(kind):
    p3 = profile("RGB ", primaries=DISPLAY_P3)
    image = Image.new("RGB", (SIZE, SIZE), (230, 40, 60))
    flat, origin = open_flat(image_file(image, kind, icc_profile=p3, quality=100), 3)
    assert origin.profile == "converted"
    assert not origin.plain
    assert np.abs(np.subtract(flat.getpixel((5, 5)), (252, 0, 47))).max() <= 3
    wide = image.copy()
    wide.putalpha(128)
    if kind != "JPEG":  # colours first, then the background
        shown = open_flat(image_file(wide, kind, icc_profile=p3), 3)[0].getpixel((5, 5))
        assert np.abs(np.subtract(shown, (253, 127, 151))).max() <= 6


def test_a_grey_profile_keeps_grey_and_a_gamma_brightens():
    grey = Image.new("L", (SIZE, SIZE), 100)
    for channels in (1, 3):
        shown = decoded(image_file(grey, icc_profile=profile("GRAY", 1.8)), channels)
        assert set(shown.ravel()) == {119}  # 255 (100/255)^(1.8) in sRGB
    sixteen = png(np.full((SIZE, SIZE), 100 * 257), 16, 0)
    with Image.open(io.BytesIO(sixteen)) as opened:
        assert set(decoded(image_file(opened, icc_profile=profile("GRAY", 1.8))).ravel()) == {119}


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_goes_through_its_profile(kind):
    cmyk = Image.new("CMYK", (SIZE, SIZE), (255, 255, 0, 0))
    assert set(decoded(image_file(cmyk, kind, quality=100))[0].ravel()) == {0}  # Pillow: blue
    shown = decoded(image_file(cmyk, kind, quality=100, icc_profile=profile("CMYK")))
    assert np.abs(shown - 119).max() <= 3  # L = 50: grey 119 of sRGB


def test_srgb_broken_and_foreign_profiles_change_no_pixel():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.fromarray(values(8, 3))
    for icc, done in (
        (srgb, "none"),
        (b"x" * 200, "unread"),
        (profile("RGB ", primaries=DISPLAY_P3)[:140], "unread"),
        (profile("GRAY"), "unread"),
        (profile("CMYK"), "unread"),
    ):
        flat, origin = open_flat(image_file(image, icc_profile=icc), 3)
        assert origin.profile == done
        np.testing.assert_array_equal(np.asarray(flat), np.asarray(image))


def test_other_claims_about_colour_are_noticed_and_not_followed():
    colour = values(8, 3)
    p3 = [(b"cICP", bytes([12, 13, 0, 1]))]
    linear = [(b"gAMA", (100000).to_bytes(4, "big"))]
    usual = [(b"gAMA", (45455).to_bytes(4, "big"))]
    srgb = [(b"cICP", bytes([1, 13, 0, 1]))]
    for chunks, claim in ((p3, True), (linear, True), (usual, False), (srgb, False), ([], False)):
        data = png(colour, 8, 2, chunks)
        assert open_flat(data, 3)[1].other_colours == claim
        assert_shows(data, colour)


# The whole set ----------------------------------------------------------------------------------------------------


def folder(path, files):
    path.mkdir()
    for number, data in enumerate(files):
        (path / f"{number:02d}{'.png' if data[:1] == bytes([0x89]) else '.tif'}").write_bytes(data)
    return str(path)


def prepared(capsys, *arguments):
    main(["prepare", *arguments, "--image-size", str(SIZE), "--workers", "0"])
    return capsys.readouterr().out


def test_twelve_bits_in_sixteen_are_noticed_over_the_set_and_scaled_on_demand(tmp_path, capsys):
    source = folder(tmp_path / "ct", [png(values(12), 16, 0) for _ in range(4)])
    out = prepared(capsys, source, str(tmp_path / "dark"), "--channels", "1")
    assert "4 of 4 images: of more than 8 bits" in out
    assert "12 bits" in out
    assert "nearly black" in out
    assert "--range 0 4095" in out
    out = prepared(capsys, source, str(tmp_path / "right"), "--channels", "1", "--range", "0", "4095")
    assert "--range" not in out
    assert "mean 0.5" in out or "mean 0.49" in out
    out = prepared(capsys, source, str(tmp_path / "clipped"), "--channels", "1", "--range", "0", "2000")
    assert "clipped" in out
    main(["inspect", str(tmp_path / "dark"), "--sheet", str(tmp_path / "sheet.png")])
    assert "--range 0 4095" in capsys.readouterr().out
    main(["inspect", source, "--sheet", str(tmp_path / "sheet.png"), "--workers", "0"])
    assert "--range 0 4095" in capsys.readouterr().out


def test_full_sixteen_bits_are_no_question(tmp_path, capsys):
    source = folder(tmp_path / "in", [png(values(16, 3), 16, 2) for _ in range(2)])
    assert "--range" not in prepared(capsys, source, str(tmp_path / "out"))


def test_a_fourth_band_is_asked_about_and_ignored_on_demand(tmp_path, capsys):
    bands = [values(8, 4) for _ in range(4)]
    source = folder(tmp_path / "naip", [tiff(image, 2, extra=2) for image in bands])
    out = prepared(capsys, source, str(tmp_path / "white"))
    assert "4 of 4 images: partly transparent and put on white" in out
    assert "--background none" in out
    out = prepared(capsys, source, str(tmp_path / "bands"), "--background", "none")
    assert "transparent" not in out
    mean = np.mean([image[..., :3].reshape(-1, 3).mean(axis=0) for image in bands], axis=0) / 255
    assert f"mean {', '.join(f'{value:.4f}' for value in mean)}" in out


def test_what_was_done_is_counted_with_an_example(tmp_path, capsys):
    image = Image.fromarray(values(8, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    small = Image.fromarray(values(8, 3)[:10, :10])
    source = folder(
        tmp_path / "in",
        [
            image_file(image),
            image_file(image, exif=exif),
            image_file(small),
            image_file(image, icc_profile=profile("RGB ", primaries=DISPLAY_P3)),
            image_file(image, icc_profile=b"broken"),
            png(values(8, 3), 8, 2, [(b"gAMA", (100000).to_bytes(4, "big"))]),
        ],
    )
    out = prepared(capsys, source, str(tmp_path / "out"))
    for line in (
        f"smaller than {SIZE} and enlarged (first: 02.png)",
        "turned upright (EXIF) (first: 01.png)",
        "converted from an embedded colour profile to sRGB (first: 03.png)",
        "with a colour profile that is broken or does not fit, taken as sRGB (first: 04.png)",
        "not sRGB by cICP, gAMA, cHRM or EXIF, which is not followed: taken as sRGB (first: 05.png)",
    ):
        assert f"1 of 6 images: {line}" in out


def test_samples_are_turned_upright_and_grey_palettes_and_big_endian_tiffs_are_grey(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray(values(8, 3)[:10])
    wide.save(tmp_path / "0.png", exif=exif)
    wide.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "1.png")
    source = ImageFolder(tmp_path)
    assert source.shape == (3, SIZE, 10)
    first, second = source.read(0, 2)
    assert (first == second).all()
    greys = tmp_path / "grey"
    greys.mkdir()
    (greys / "0.tif").write_bytes(tiff(values(16), 1, ">"))
    Image.fromarray(values(8)).convert("P").save(greys / "1.png")
    (greys / "2.png").write_bytes(png(values(16, 2), 16, 4))
    assert ImageFolder(greys).read(0, 3).shape == (3, 1, SIZE, SIZE)


def test_exact_scaling_keeps_the_mean_that_adms_brightens(tmp_path, capsys):
    noise = [Image.fromarray(RNG.integers(0, 255, (8 * SIZE, 8 * SIZE, 3)).astype(np.uint8)) for _ in range(4)]
    files = [image_file(image) for image in noise]
    true = np.mean([np.asarray(image).mean() for image in noise])
    adm, exact = (
        np.mean([decoded(data, rules=PixelRules(resize=how)).mean() for data in files]) for how in ("adm", "exact")
    )
    assert 1.0 < adm - true < 2.0  # half a level in each of three halvings
    assert abs(exact - true) < 0.1
    source = folder(tmp_path / "in", files)
    means = [prepared(capsys, source, str(tmp_path / how), "--resize", how) for how in ("adm", "exact")]
    assert means[0].split("mean")[1] != means[1].split("mean")[1]


def test_training_straight_from_a_folder_asks_and_scales_alike(tmp_path, capsys):
    source = folder(tmp_path / "ct", [png(values(12), 16, 0) for _ in range(4)])
    config = {"source": source, "image_size": SIZE, "channels": 1}
    as_it_is = open_training_data(DataConfig(**config))
    assert any("12 bits" in line and "--data.range 0 4095" in line for line in as_it_is.report())
    scaled = open_training_data(DataConfig(**config, range=(0, 4095)))
    assert not any("--data.range" in line for line in scaled.report())
    assert scaled.fingerprint() != as_it_is.fingerprint(), "other pixels"
    prepared(capsys, source, str(tmp_path / "set"), "--channels", "1", "--range", "0", "4095")
    kept = open_training_data(DataConfig(**{**config, "source": str(tmp_path / "set")}))
    assert (kept.images == scaled.images).all()
    assert any("4 of 4 images: of more than 8 bits" in line for line in kept.report())
    with pytest.raises(UserError, match="is prepared; this was decided when it was"):
        open_training_data(DataConfig(**{**config, "source": str(tmp_path / "set")}, range=(0, 4095)))
    with pytest.raises(UserError, match=r"--data.range 5 5: the value of black must be below"):
        open_training_data(DataConfig(**config, range=(5, 5)))


def test_a_large_set_is_looked_at_before_training(tmp_path):
    bands = [values(8, 4) for _ in range(3)]
    source = folder(tmp_path / "naip", [tiff(image, 2, extra=2) for image in bands])
    dataset = open_dataset(source, image_size=SIZE)  # not decoded into memory
    assert any("--data.background none" in line for line in dataset.report())
    ignored = open_dataset(source, image_size=SIZE, rules=IGNORE_ALPHA)
    assert (ignored[0][0] == bands[0][..., :3].transpose(2, 0, 1)).all()


@pytest.mark.parametrize(
    ("start", "told"),
    [(b"\n<!DOCTYPE html><title>404</title>", "a web page"), (b"\0\0\0\x18ftypheic", "HEIC: convert"),
     (b"\0\0\0\x20ftypavif", "AVIF: convert"), (b"\0\0\0\x20ftypisom", "a video"), (b"\xff\x0a\1\2", "JPEG XL"),
     (b"%PDF-1.4", "a PDF"), (b"PK\3\4", "zip"), (b"\0" * 300, "nothing but zeros"), (b"abc", "(PNG")],
)  # fmt: skip
def test_what_is_found_under_the_name_of_an_image(start, told):
    with pytest.raises(DataError, match="no image of a known kind") as error:
        decode_image(start.ljust(400, start[-1:]), 8, 3)
    assert told in str(error.value)
