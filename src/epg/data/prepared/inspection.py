"""`epg inspect`: what is in a prepared set, or in any source before it is prepared."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from epg.data.decode import open_flat
from epg.data.pixels.resize import center_crop
from epg.data.prepared.duplicates import Groups, equal_groups, similar_groups
from epg.data.prepared.encode import PixelOptions
from epg.data.prepared.finish import joined, rejected_of, summary_of
from epg.data.prepared.plan import make_job, settings
from epg.data.prepared.prepare import Progress, told
from epg.data.prepared.store import NAMES_FILE, REPORT_FILE, SHARDS, Store, is_store
from epg.data.sources.base import Rejected, SourceOptions
from epg.data.sources.open import open_source
from epg.data.workers.pool import run_jobs
from epg.errors import DataError

SHEET_IMAGES = 64
TILE = 112
CAPTION = 14


@dataclass(frozen=True)
class Inspection:
    """What `epg inspect` found."""

    kind: str
    manifest: dict[str, Any]
    """Of a prepared set, or what there would be in it."""
    index: NDArray[np.void]
    rejected: list[Rejected]
    name: Callable[[int], str]
    read: Callable[[int], bytes]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def classes(self) -> list[tuple[str, int]]:
        """Names and numbers of images; empty without labels."""
        return [(str(entry["name"]), int(entry["images"])) for entry in self.manifest["classes"]]

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(N, 2) width and height of the originals."""
        return np.stack([self.index["width"], self.index["height"]], axis=1).astype(np.int64)

    @cached_property
    def equal(self) -> Groups:
        return equal_groups(self.index["sha256"])

    @cached_property
    def similar(self) -> Groups:
        return similar_groups(np.ascontiguousarray(self.index["look"]))


def inspect_dataset(
    source: str,
    *,
    options: SourceOptions,
    pixels: PixelOptions,
    workers: int = 0,
    progress: Progress | None = None,
) -> Inspection:
    """Inspect a prepared set (at once, from its index) or any other source (by decoding every image).

    `pixels` says how images of a source are cut for mean, std and the search for duplicates.
    """
    folder = Path(source).expanduser()
    if is_store(folder):
        store = Store(folder)
        kind = f"prepared set of {store.manifest['source']}"
        return Inspection(kind, store.manifest, store.index, read_report(folder / REPORT_FILE), store.name, store.read)
    opened = open_source(source, options)
    job = make_job(opened, pixels)
    parts = run_jobs(job, range(len(job)), workers, told(progress, len(opened)))
    rejected = rejected_of(opened, parts)
    index, names = joined(parts)
    if not names:
        raise DataError(f"{source}: none of its {len(opened)} images can be used, such as {rejected[0]}")
    manifest = {**settings(source, pixels, options), **summary_of(opened, parts, index)}
    kept = np.delete(np.arange(len(opened)), [item for part in parts for item, *_ in part["rejected"]])
    return Inspection(
        opened.kind, manifest, index, rejected, names.__getitem__, lambda number: opened.read(int(kept[number]))
    )


def read_report(path: Path) -> list[Rejected]:
    """The images that a preparation could not use."""
    try:
        return [Rejected(**json.loads(line)) for line in path.read_text().splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); restore it from a copy or prepare again") from error


def size_histogram(sizes: NDArray[np.int64]) -> list[tuple[str, int]]:
    """How many images have their short side in 1..31, 32..63, 64..127 and so on; empty ends left out."""
    short = sizes.min(axis=1)
    edges = [1, *(2**power for power in range(5, 14)), 2**31]
    counts, _ = np.histogram(short, bins=edges)
    used = np.flatnonzero(counts)
    rows = range(used[0], used[-1] + 1) if len(used) else ()
    return [(f"{edges[k]}-{edges[k + 1] - 1}" if k < 9 else f"{edges[k]}+", int(counts[k])) for k in rows]


def contact_sheet(found: Inspection, count: int = SHEET_IMAGES) -> Image.Image:
    """Up to `count` images spread over all classes, each with its class or name below."""
    chosen, classes = spread(found.index["label"], count), found.classes
    columns = max(1, int(np.ceil(np.sqrt(len(chosen)))))
    rows = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (columns * (TILE + 2) + 2, rows * (TILE + CAPTION + 2) + 2), "white")
    draw = ImageDraw.Draw(sheet)
    for place, index in enumerate(chosen):
        x, y = 2 + place % columns * (TILE + 2), 2 + place // columns * (TILE + CAPTION + 2)
        label = int(found.index["label"][index])
        caption = classes[label][0] if label >= 0 else Path(found.name(index)).name
        image, _ = open_flat(found.read(index), 3)
        sheet.paste(center_crop(image, TILE), (x, y))
        while draw.textlength(caption) > TILE:
            caption = caption[:-1]
        draw.text((x, y + TILE), caption.encode("latin-1", "replace").decode("latin-1"), fill="black")
    return sheet


def spread(labels: NDArray[np.int64], count: int) -> list[int]:
    """At most `count` positions, from as many labels as possible, evenly spaced within each."""
    by_label = np.argsort(labels, kind="stable")
    groups = np.split(by_label, np.flatnonzero(np.diff(labels[by_label])) + 1)
    picked_groups = [groups[k] for k in np.unique(np.linspace(0, len(groups) - 1, min(count, len(groups))).astype(int))]
    each = max(1, count // len(picked_groups))
    return [
        int(group[k])
        for group in picked_groups
        for k in np.unique(np.linspace(0, len(group) - 1, min(each, len(group))).astype(int))
    ][:count]


def verify_store(folder: Path, workers: int = 0, progress: Progress | None = None) -> list[str]:
    """Everything in a store that differs from what was prepared, one line each; [] if it is intact.

    Raises DataError where manifest or index, which know the rest, are damaged themselves.
    """
    store = Store(folder)
    problems = [
        f"{folder / name}: differs from the manifest" for name in (NAMES_FILE, REPORT_FILE) if not store.is_intact(name)
    ]
    known = {file for file, _ in store.shards}
    problems += [
        f"{path}: not part of this set" for path in sorted((folder / SHARDS).iterdir()) if path.name not in known
    ]
    work, shards = partial(_verify_shard, store), range(len(store.shards))
    for found in run_jobs(work, shards, workers, told(progress, len(store))):
        problems += found
    return problems


def _verify_shard(store: Store, number: int, crashed: dict[int, str], on_item: Callable[[int], None]) -> list[str]:
    """Lines about one shard: changed images by name, else the shard if other bytes of it changed."""
    file, rows = store.shards[number]
    path = store.folder / SHARDS / file
    if not path.is_file():
        return [f"{path}: is missing, with {rows} images"]
    problems = []
    for index in range(int(store.starts[number]), int(store.starts[number + 1])):
        on_item(index)
        try:
            store.read(index)
        except DataError as error:
            problems.append(str(error).replace("\n", " "))
    if not problems and not store.is_intact(f"{SHARDS}/{file}"):
        problems.append(f"{path}: changed outside of its images")
    return problems
