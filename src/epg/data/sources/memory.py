"""Images that a program has in memory: arrays, lists, map-style data sets of torch, a `Dataset` of Hugging Face."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from epg.data.pixels.plain import encoded
from epg.data.sources.base import Images, Labelled, Overview, Source, SourceOptions, checked
from epg.data.sources.files import read_file
from epg.data.sources.labels import find_image_column, labels_of, read_labels, rule_of, unlabelled
from epg.data.sources.names import Names
from epg.errors import DataError

PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")
READ_TWICE = 8  # items, to see whether they are the same each time


class Items(Protocol):
    """Anything with a length whose items have numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class ItemsSource(Source):
    """Images, or pairs of an image and its label, by number; all are read once, and hashed, when it is opened.

    An image is an array or tensor (H, W), (H, W, C) or (C, H, W), uint8 or from 0 to 1, a PIL image, or a path.
    `labels` are given where the items have none. Raises DataError for whatever else an item is, and for items that
    change from one time to the next: of such images nothing could tell whether a run is continued with the same ones.
    """

    def __init__(self, items: Items, labels: Items | None, options: SourceOptions) -> None:
        self.items = items
        count = len(items)
        if count == 0:
            raise DataError("data: holds no images")
        self.paired = labels is None and isinstance(items[0], tuple | list) and len(items[0]) == 2
        if labels is not None and len(labels) != count:
            raise DataError(f"data: {count} images and {len(labels)} labels; one for each is needed")
        hashes, found = list[bytes](), list[object]()
        for index in range(count):
            image, label = self.item(index)
            hashes.append(hashlib.sha256(content(image, index)).digest())
            found.append(plain(label if labels is None else labels[index]))
        for index in np.unique(np.linspace(0, count - 1, READ_TWICE).astype(int)).tolist():
            if hashlib.sha256(content(self.item(index)[0], index)).digest() != hashes[index]:
                raise DataError(
                    f"data: image {index} is another one each time it is read, so no run could be continued with it. "
                    "Leave random transforms out: flips and views are made in training"
                )
        self.hashes = b"".join(hashes)
        labelled = unlabelled(count)
        if options.by_column and (self.paired or labels is not None):
            labelled = named(labels_of(found, "the labels in data"), getattr(items, "classes", ()))
        rule = rule_of(labelled, "those given") if labelled[1] else "no labels"
        names = Names.of([b"image %d" % index for index in range(count)])
        sizes = np.full(count, -1, dtype=np.int64)
        super().__init__("memory", "data", Images(names, sizes, *labelled, Overview(f"images in memory; {rule}")))

    def item(self, index: int) -> tuple[Any, Any]:
        """Image and label (None where it has none)."""
        item = self.items[index]
        if not self.paired:
            return item, None
        if not (isinstance(item, tuple | list) and len(item) == 2):
            raise DataError(f"data: item {index} is no pair of image and label, as the first one is")
        return item[0], item[1]

    def read(self, index: int) -> bytes:
        return content(self.item(index)[0], index)

    def identity(self) -> tuple[str, Iterator[bytes]]:
        return "memory", iter([self.hashes, np.ascontiguousarray(self.labels, dtype="<i8").tobytes()])


class DatasetSource(Source):
    """A `datasets.Dataset`: encoded images of one column, labels of another, found as in a parquet file.

    Transforms and formats that are set on it are left out. Its identity is that of its content, as a table's.
    """

    def __init__(self, dataset: Any, options: SourceOptions) -> None:
        import datasets

        schema = dataset.features.arrow_schema
        self.column = find_image_column(schema, options, "data")
        plain_rows = dataset.with_format(None)

        def values(column: str) -> list[Any]:
            name, _, field = column.partition(".") if column not in dataset.column_names else (column, "", "")
            rows = list(plain_rows.select_columns([name])[name])
            return [row[field] for row in rows] if field else rows

        if len(dataset) == 0:
            raise DataError("data: holds no rows")
        labelled, said = read_labels(schema, values, len(dataset), options, "data")
        rows = plain_rows.select_columns([self.column])
        is_image = isinstance(dataset.features[self.column], datasets.Image)
        self.rows = rows.cast_column(self.column, datasets.Image(decode=False)) if is_image else rows
        names = Names.of([b"row %d" % index for index in range(len(dataset))])
        sizes = np.full(len(dataset), -1, dtype=np.int64)
        overview = Overview(f"a Dataset in memory; {said.rule}", said.unread, said.notes)
        super().__init__("dataset", "data", Images(names, sizes, *labelled, overview))

    def read(self, index: int) -> bytes:
        value = self.rows[index][self.column]
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None and isinstance(value, dict) and value.get("path"):
            return read_file(str(value["path"]))
        if not isinstance(data, bytes):
            raise DataError(f"column {self.column!r} is empty or holds no encoded image in this row; remove this row")
        return checked(data)


def open_memory(data: Items, options: SourceOptions) -> Source:
    """A source of what a program has in memory. Raises DataError for what has no length or no order."""
    library = type(data).__module__.partition(".")[0]
    if library == "datasets":
        if type(data).__name__ == "DatasetDict":
            raise DataError("data: holds several splits; give one of them, such as data['train']")
        if type(data).__name__ == "Dataset":
            return DatasetSource(data, options)
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")) or isinstance(data, dict):
        raise DataError(
            f"data: a {type(data).__name__} has no numbered items, by which training keeps its order and is continued. "
            "Give a list, an array, a map-style Dataset, or the address of images on disk"
        )
    if isinstance(data, tuple) and len(data) == 2:
        return ItemsSource(data[0], data[1], options)
    return ItemsSource(data, None, options)


def content(image: Any, index: int) -> bytes:
    """The file of an image. Raises DataError, naming its number, for what is none."""
    if isinstance(image, str | Path):
        return read_file(image)
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        stream = io.BytesIO()
        (upright if upright.mode in PNG_MODES else upright.convert("RGB")).save(stream, "PNG", compress_level=0)
        return stream.getvalue()
    if not isinstance(image, np.ndarray | torch.Tensor):
        raise DataError(f"data: item {index} is a {type(image).__name__}; an array, a PIL image or a path is expected")
    pixels = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else image
    return encoded(as_bytes(channels_last(pixels, index), index))


def channels_last(pixels: NDArray[Any], index: int) -> NDArray[Any]:
    """(H, W) or (H, W, C) of an image that may have its channels first."""
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4) and pixels.shape[0] in (1, 3, 4):
        pixels = np.moveaxis(pixels, 0, -1)
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4))) or 0 in pixels.shape:
        raise DataError(
            f"data: item {index} has the shape {pixels.shape}; (height, width), (height, width, channels) or "
            "(channels, height, width) of 1, 3 or 4 channels is expected"
        )
    return pixels


def as_bytes(pixels: NDArray[Any], index: int) -> NDArray[np.uint8]:
    """uint8 as it is, numbers from 0 to 1 times 255."""
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    low, high = float(pixels.min()), float(pixels.max())
    if pixels.dtype.kind != "f" or not (low >= 0 and high <= 1):
        raise DataError(
            f"data: item {index} is {pixels.dtype} from {low:g} to {high:g}, whose range is not known; uint8, or "
            "floats from 0 (black) to 1 (white), are expected"
        )
    return np.round(np.ascontiguousarray(pixels) * 255).astype(np.uint8)


def plain(label: Any) -> object:
    """A label of numpy or torch as Python's own."""
    return label.tolist() if isinstance(label, np.ndarray | np.generic | torch.Tensor) else label


def named(labelled: Labelled, classes: Sequence[str]) -> Labelled:
    """Numbers with the names that a data set of torchvision has for them."""
    labels, names = labelled
    numbered = names == tuple(map(str, range(len(names))))
    known = isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
    return (labels, tuple(classes)) if known and numbered and len(classes) >= len(names) else labelled
