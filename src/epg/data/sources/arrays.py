"""Images as arrays of numbers: .npy, and .npz as ADM, MedMNIST, Keras and `epg sample --npz` write them."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epg.data.pixels.plain import encoded
from epg.data.sources.archives import LOCAL, LocalFile
from epg.data.sources.base import Images, Labelled, Overview, Source, SourceOptions
from epg.data.sources.labels import LABEL_WORDS, labels_of, rule_of, unlabelled
from epg.data.sources.names import Names
from epg.data.sources.splits import pick_split, refuse_split, split_names
from epg.errors import DataError
from epg.storage.npy import Header, read_header
from epg.storage.plain_file import open_plain

IMAGE_WORDS = ("arr_0", "images", "image", "x", "data", "imgs", "samples")
PARTNERS = {"arr_0": "arr_1", "x": "y"}  # of images: their labels
MAX_PACKED = 2**33  # bytes of a compressed array, which is unpacked into memory


@dataclass(frozen=True)
class Stored:
    """An array in a file: mapped where it lies there as it is, unpacked where it is compressed."""

    path: Path
    name: str | None
    """In an .npz; None is a .npy."""

    def open(self) -> NDArray[Any]:
        """The array. Raises DataError for pickled objects and damage."""
        try:
            if self.name is None:
                with open_plain(self.path) as file:
                    return self._mapped(read_header(file, self.path.stat().st_size), 0)
            with zipfile.ZipFile(self.path) as archive:
                info = archive.getinfo(f"{self.name}.npy")
                with archive.open(info) as stream:
                    header = read_header(stream, info.file_size)
                if info.compress_type == zipfile.ZIP_STORED:
                    return self._mapped(header, self._begins(info))
                if info.file_size > MAX_PACKED:
                    raise ValueError(f"compressed arrays of more than {MAX_PACKED} bytes: save them with np.savez")
            with np.load(self.path, allow_pickle=False) as arrays:
                return np.asarray(arrays[self.name])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
            what = self.path.name if self.name is None else f"{self.path.name}, {self.name}"
            pickled = "; pickles, which can run any code, are never loaded" if "object" in str(error).lower() else ""
            raise DataError(f"{what} cannot be read: {error}{pickled}") from error

    def _begins(self, info: zipfile.ZipInfo) -> int:
        """Where in the archive a stored entry lies."""
        with open_plain(self.path) as file:
            file.seek(info.header_offset)
            _, *lengths = LOCAL.unpack(file.read(LOCAL.size))
        return info.header_offset + LOCAL.size + sum(lengths)

    def _mapped(self, header: Header, begins: int) -> NDArray[Any]:
        order = "F" if header.fortran else "C"
        return np.memmap(self.path, header.dtype, "r", begins + header.offset, header.shape, order)  # type: ignore[call-overload]


class ArraySource(Source):
    """Images of a uint8 array (N, H, W), (N, H, W, C) or (N, C, H, W) of 1, 3 or 4 channels."""

    def __init__(self, images: Stored, labels: Stored | None, name: str, rule: str) -> None:
        self.stored = images
        self.array: NDArray[np.uint8] | None = images.open()
        called = name if images.name is None else f"{name}, array {images.name}"
        self.first = _channels_first(self.array.shape, self.array.dtype, called)
        count = len(self.array)
        labelled = unlabelled(count) if labels is None else _read(labels, count, called)
        rule += "no labels" if labels is None else rule_of(labelled, f"array {labels.name or labels.path.name}")
        notes = ["read as (N, channels, height, width)"] if self.first else []
        names = Names.of([b"image %d" % k for k in range(count)])
        sizes = np.full(count, self.array[:1].nbytes, dtype=np.int64)
        super().__init__("arrays", name, Images(names, sizes, *labelled, Overview(rule, (), notes)))

    def read(self, index: int) -> bytes:
        if self.array is None:
            self.array = self.stored.open()
        return encoded(np.moveaxis(self.array[index], 0, -1) if self.first else self.array[index])

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "array": None}


def _channels_first(shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> bool:
    """Whether images are (C, H, W). Raises DataError for what is no array of images."""
    if dtype != np.uint8:
        raise DataError(
            f"{what} is {dtype}, whose range is not known: save it as uint8, such as (x * 255).round().astype('uint8') "
            "for values from 0 to 1"
        )
    grey = len(shape) == 3 and shape[2] not in (1, 3, 4)  # else one picture, or lacking an axis
    if not (min(shape) > 0 and (grey or (len(shape) == 4 and {shape[1], shape[3]} & {1, 3, 4}))):
        raise DataError(
            f"{what} has the shape {shape}; (N, height, width, channels) of 1, 3 or 4 channels, or (N, height, width) "
            "is expected"
        )
    return len(shape) == 4 and shape[3] not in (1, 3, 4)


def _read(labels: Stored, count: int, what: str) -> Labelled:
    values = labels.open()
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or len(values) != count or values.dtype.kind not in "iuUSbf":
        raise DataError(
            f"{what}: {labels.name or labels.path.name} is {values.dtype} {values.shape}; one whole number or name for "
            f"each of the {count} images is needed, or pass --labels none"
        )
    return labels_of(values.tolist(), f"{what}: {labels.name or labels.path.name}")


def open_arrays(address: str, options: SourceOptions) -> Source | None:
    """An .npy or .npz file."""
    path = Path(address).expanduser()
    if not (path.suffix.lower() in (".npy", ".npz") and path.is_file()):
        return None
    LocalFile(path)().close()
    if path.suffix.lower() == ".npy":
        refuse_split(options.split, address)
        beside = _labels_beside(path) if options.by_column else None
        return ArraySource(Stored(path.resolve(), None), Stored(beside, None) if beside else None, path.name, "")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [entry.removesuffix(".npy") for entry in archive.namelist() if entry.endswith(".npy")]
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{address} is no .npz archive: {error}") from error
    image, label, rule = choose_arrays(names, path.name, options)
    labels = Stored(path.resolve(), label) if label else None
    return ArraySource(Stored(path.resolve(), image), labels, path.name, rule)


def _labels_beside(path: Path) -> Path | None:
    """The .npy of labels beside one of images: train_labels beside train_images, y beside x, or labels."""
    here = {_parts(file.stem): file for file in sorted(path.parent.glob("*.npy"), reverse=True) if file != path}
    split, word = _parts(path.stem)
    words = (PARTNERS.get(word, ""), *LABEL_WORDS, *(f"{word}_{label}" for label in LABEL_WORDS))
    places = [(split, label) for label in words] + [("", label) for label in LABEL_WORDS]
    return next((here[place] for place in places if place in here), None)


def choose_arrays(names: list[str], where: str, options: SourceOptions) -> tuple[str, str | None, str]:
    """Which arrays hold images and labels: by the flags, or by the names that are usual; and how they were chosen."""
    rule, listed = "", ", ".join(names) or "nothing"
    image, here, splits = options.image_column, names, split_names(names)
    if image is None:
        if splits:
            here = pick_split(splits, options.split, where)
            rule = f"split {options.split}: arrays {', '.join(here)}; "
        else:
            refuse_split(options.split, where)
        lower = {_parts(name)[1]: name for name in reversed(here)}
        image = next((lower[word] for word in IMAGE_WORDS if word in lower), None)
    if image not in names:
        raise DataError(
            f"{where} holds {listed}; none is called {', '.join(IMAGE_WORDS)}: choose with "
            f"{options.flag('image-column')}"
        )
    wanted = options.label_column
    if wanted is not None and wanted not in names:
        raise DataError(f"{options.flag('label-column', wanted)}: {where} has only {listed}")
    if not options.by_column:
        return image, None, rule
    split, word = _parts(image)
    others = {_parts(name): name for name in reversed(names) if name != image}
    words = (PARTNERS.get(word, ""), *LABEL_WORDS, "arr_1")
    label = wanted or next((others[split, label] for label in words if (split, label) in others), None)
    left = [name for (other, _), name in others.items() if other == split]
    if unread := [name for name in left if name != label]:
        rule += f"{', '.join(unread)} not read ({options.flag('label-column')} takes one as labels); "
    return image, label, rule


def _parts(name: str) -> tuple[str, str]:
    """The split that a name has, "" for none, and the rest: train_images, x_train."""
    parts = name.lower().split("_")
    found = [part for part in parts if split_names([part])]
    return (split_names(found)[found[0]] if found else ""), "_".join(part for part in parts if part not in found)
