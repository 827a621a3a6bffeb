"""Files that are complete or not there, and the archive that ADM's evaluator reads."""

import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from epg.errors import ArtefactError, OutputError, cause
from epg.storage.files import replacing
from epg.storage.plain_file import open_plain

PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
PNG_LEVEL = 1  # a third of the default's time for 256 pixels, and 5 % larger
DECODERS = 4  # threads


def replace_file(file: Path, content: bytes) -> None:
    """Writes a file under its name only once it is complete. Raises OutputError."""
    with writing(file) as temporary:
        temporary.write_bytes(content)


@contextmanager
def writing(file: Path) -> Iterator[Path]:
    """Gives a temporary name; the file gets its own when the block ends well. Raises OutputError for an OSError."""
    try:
        with replacing(file) as temporary:
            yield temporary
    except OSError as error:
        raise OutputError(
            f"{file}: cannot be written ({cause(error)}). The same command then continues where it stopped."
        ) from error


def png(image: NDArray[np.uint8]) -> bytes:
    """The PNG file of one image (H, W, C)."""
    stream = io.BytesIO()
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.save(stream, "PNG", compress_level=PNG_LEVEL)
    return stream.getvalue()


def is_complete_png(file: Path) -> bool:
    """Whether a file ends as a PNG does: a power failure may leave one cut off or empty."""
    try:
        with open_plain(file) as stream:
            stream.seek(-len(PNG_END), os.SEEK_END)
            return stream.read() == PNG_END
    except OSError:
        return False


def read_png(file: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The image (H, W, C). Raises ArtefactError where it is damaged or of another shape."""
    try:
        with open_plain(file) as stream, Image.open(stream, formats=["PNG"]) as picture:
            if (picture.height, picture.width, len(picture.getbands())) != shape:
                raise ValueError(f"of shape {(picture.height, picture.width, len(picture.getbands()))}, not {shape}")
            return np.asarray(picture, np.uint8).reshape(shape)
    except (OSError, ValueError, SyntaxError) as error:
        raise ArtefactError(f"{file}: damaged ({error}). Remove it; the same command then draws it again.") from error


def read_pngs(files: Sequence[Path], shape: tuple[int, int, int]) -> Iterator[NDArray[np.uint8]]:
    """Images (H, W, C) in order, decoded a few at a time."""
    with ThreadPoolExecutor(DECODERS) as pool:
        rest = iter(files)
        while part := list(islice(rest, 8 * DECODERS)):
            yield from pool.map(lambda file: read_png(file, shape), part)


def write_npz(
    file: Path, pictures: Sequence[Path], shape: tuple[int, int, int], labels: NDArray[np.int64] | None
) -> None:
    """ADM's .npz from PNG files: arr_0 uint8 (N, H, W, C) and arr_1 int64 (N,), one image in memory at a time."""
    with writing(file) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as stream:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(pictures), *shape)}
            np.lib.format.write_array_header_1_0(stream, header)
            for image in read_pngs(pictures, shape):
                stream.write(image.tobytes())
        if labels is not None:
            with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as stream:
                np.lib.format.write_array(stream, labels, allow_pickle=False)


def images_in_npz(file: Path) -> int:
    """How many images an archive of ours holds; -1 where there is none, or one that was cut off."""
    try:
        with open_plain(file) as raw, zipfile.ZipFile(raw) as archive, archive.open("arr_0.npy") as stream:
            np.lib.format.read_magic(stream)
            return int(np.lib.format.read_array_header_1_0(stream)[0][0])
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile):
        return -1
