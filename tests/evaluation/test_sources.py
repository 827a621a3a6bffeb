"""Samples as people have them: ADM's archives and folders of images, also damaged and hostile ones."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from epg.errors import DataError
from epg.evaluation.image_folder import ImageFolder
from epg.evaluation.npz import NpzSource
from epg.sampling.files import write_npz
from tests.evaluation.helpers import random_images


def nhwc(images: Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy()


def write_folder(folder: Path, images: Tensor, ending: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(nhwc(images)):
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(folder / f"{i:06d}{ending}")
    return folder


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("channels", [1, 3])
def test_archive(tmp_path: Path, save, channels: int) -> None:  # type: ignore[no-untyped-def]
    images, labels = random_images(50, channels=channels), np.arange(50) % 7
    save(tmp_path / "samples.npz", arr_0=nhwc(images), arr_1=labels)
    source = NpzSource(tmp_path / "samples.npz")
    assert (source.count, source.shape) == (50, (channels, 8, 8))
    assert source.labels is not None
    assert source.labels.tolist() == labels.tolist()
    for start, stop in [(0, 10), (20, 50), (3, 4)]:  # forwards, and back again
        assert torch.equal(source.read(start, stop), images[start:stop])
    assert torch.equal(NpzSource(tmp_path / "samples.npz", count=5).read(0, 5), images[:5])


def test_our_own_archive(tmp_path: Path) -> None:
    """What `epg sample --npz` writes is read back."""
    images = random_images(9)
    folder = write_folder(tmp_path, images)
    write_npz(tmp_path / "samples.npz", sorted(folder.glob("0*.png")), (8, 8, 3), None)
    source = NpzSource(tmp_path / "samples.npz")
    assert source.labels is None
    assert torch.equal(source.read(0, 9), images)


def archive(file: Path, **entries: bytes) -> Path:
    with zipfile.ZipFile(file, "w") as out:
        for name, content in entries.items():
            out.writestr(f"{name}.npy", content)
    return file


def npy(array: np.ndarray, **options: bool) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, **options)
    return stream.getvalue()


def claims(shape: tuple[int, ...], content: bytes) -> bytes:
    """A header that promises more (or less) than there is."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue() + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.zeros((4, 8, 8, 3), np.float32)), "uint8 .* is expected"),
        (npy(np.zeros((4, 3, 8, 8), np.uint8)), "uint8 .* is expected"),
        (npy(np.zeros((0, 8, 8, 3), np.uint8)), "no images"),
        (npy(np.array([{}, {}], dtype=object), allow_pickle=True), "holds Python objects"),
        (npy(np.zeros((4, 8, 8, 3), np.uint8, order="F")), "only plain arrays"),
        (claims((2**40, 8, 8, 3), b"x"), "not as long as its header"),
        (claims((-1, 8, 8, 3), b""), "not as long as its header"),
        (claims((1, 99999, 1, 3), bytes(3 * 99999)), "larger than 4096"),
        (b"\x93NUMPY\x01\x00\xff\xff{'descr'", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_archives_that_are_not_what_they_say(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        NpzSource(archive(tmp_path / "x.npz", arr_0=content))


def test_no_archive(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match=r"not an .npz archive"):
        NpzSource(tmp_path / "text.npz")
    with pytest.raises(DataError, match="arr_0 is missing; it holds mu"):
        NpzSource(archive(tmp_path / "stats.npz", mu=npy(np.zeros(3))))


def test_damaged_pixels_are_noticed(tmp_path: Path) -> None:
    file = tmp_path / "samples.npz"
    np.savez(file, arr_0=nhwc(random_images(50)))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"arr_0 cannot be read .*CRC"):
        NpzSource(file).read(0, 50)


@pytest.mark.parametrize("channels", [1, 3])
def test_folder(tmp_path: Path, channels: int) -> None:
    images = random_images(12, channels=channels)
    write_folder(tmp_path, images)
    Image.new("RGB", (99, 50)).save(tmp_path / "grid.png")  # as `epg sample` leaves one
    source = ImageFolder(tmp_path)
    assert (source.count, source.shape, source.labels, source.warnings) == (12, (channels, 8, 8), None, [])
    assert torch.equal(source.read(3, 12), images[3:])


def test_class_folders_are_labels(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_folder(tmp_path / name, random_images(2))
    source = ImageFolder(tmp_path)
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 1, 1]


def test_sizes_are_not_mixed_and_not_scaled(tmp_path: Path) -> None:
    write_folder(tmp_path, random_images(3))
    Image.new("RGB", (9, 8)).save(tmp_path / "z.png")
    with pytest.raises(DataError, match=r"z.png: 9x8 colour, but 000000.png is 8x8 colour"):
        ImageFolder(tmp_path).read(0, 4)
    Image.new("L", (8, 8)).save(tmp_path / "z.png")
    with pytest.raises(DataError, match=r"z.png: 8x8 grey, but"):
        ImageFolder(tmp_path).read(0, 4)


def test_jpeg_samples_are_told(tmp_path: Path) -> None:
    write_folder(tmp_path, random_images(3))
    write_folder(tmp_path, random_images(2), ".jpg")
    (told,) = ImageFolder(tmp_path).warnings
    assert "2 of the samples are JPEG files; the other 3 are not" in told


def test_broken_and_missing_images(tmp_path: Path) -> None:
    write_folder(tmp_path, random_images(2))
    whole = (tmp_path / "000001.png").read_bytes()
    (tmp_path / "000001.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"000001.png: cannot decode"):
        ImageFolder(tmp_path).read(0, 2)
    (tmp_path / "000001.png").write_text("no image")
    with pytest.raises(DataError, match=r"000001.png: no image"):
        ImageFolder(tmp_path).read(0, 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        ImageFolder(tmp_path / "empty")
