"""`epg inspect`: what is in a prepared set, or in any source before it is prepared."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from epg.data.decode import open_flat
from epg.data.duplicates import Groups, equal_groups, similar_groups
from epg.data.encode import PixelOptions
from epg.data.finish import channel_statistics, read_parts, write_index
from epg.data.plan import make_plan
from epg.data.pool import run_jobs
from epg.data.prepare import Progress, build_missing
from epg.data.resize import center_crop
from epg.data.seen import Seen, merged
from epg.data.shards import PARTS, ShardJob
from epg.data.sources.base import Rejected, SourceOptions
from epg.data.sources.open import open_source
from epg.data.store import INDEX_FILE, NAMES_FILE, REPORT_FILE, SHARDS, Store, file_sha256, is_store
from epg.errors import DataError

SHEET_IMAGES = 64
TILE = 112
CAPTION = 14


@dataclass(frozen=True)
class Inspection:
    """What `epg inspect` found."""

    kind: str
    classes: list[tuple[str, int]]
    """Names and numbers of images; empty without labels."""
    labels: NDArray[np.int64]
    sizes: NDArray[np.int64]
    """(N, 2) width and height of the originals."""
    mean: list[float]
    std: list[float]
    """Of pixels in [0, 1], per channel."""
    rejected: list[Rejected]
    overview: list[str]
    """Where images and labels come from, and what was not read."""
    seen: list[str]
    """What decoding did to them, in sentences."""
    equal: Groups
    similar: Groups
    name: Callable[[int], str]
    read: Callable[[int], bytes]

    def __len__(self) -> int:
        return len(self.labels)


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
        manifest, index = store.manifest, store.index
        classes = [(str(entry["name"]), int(entry["images"])) for entry in manifest["classes"]]
        rejected = read_report(folder / REPORT_FILE)
        prepared = PixelOptions(**manifest["pixels"])
        seen = Seen.parse(manifest["seen"]).lines(prepared.image_size, prepared)
        kind = f"prepared set of {manifest['source']}"
        mean, std = manifest["mean"], manifest["std"]
        overview = list(manifest["overview"])
        return _inspection(kind, classes, index, mean, std, rejected, overview, seen, store.name, store.read)
    opened = open_source(source, options)
    plan = make_plan(source, opened, pixels, options)
    with tempfile.TemporaryDirectory(prefix="epg-inspect-") as name:
        work = Path(name)
        for inner in (PARTS, SHARDS):
            (work / inner).mkdir()
        build_missing(opened, ShardJob(work, plan["items_per_shard"], pixels, keep_images=False), workers, progress)
        parts = read_parts(work, plan)
        rejected = [*opened.rejected, *(Rejected(*item) for part in parts for item in part["rejected"])]
        total = sum(part["rows"] for part in parts)
        if total == 0:
            raise DataError(f"{source}: none of its {len(opened)} images can be used, such as {rejected[0]}")
        write_index(work, parts, total)
        index = np.load(work / INDEX_FILE, allow_pickle=False)
        names = (work / NAMES_FILE).read_bytes()
    mean, std = channel_statistics(parts)
    counts = np.bincount(index["label"][index["label"] >= 0], minlength=len(opened.class_names))
    classes = list(zip(opened.class_names, counts.tolist(), strict=True))
    seen = merged(part["seen"] for part in parts).lines(pixels.image_size, pixels)
    known = np.flatnonzero(~np.isin(np.arange(len(opened)), _rejected_items(opened, parts)))
    name_of = partial(_name, names, index["name_end"])
    read, overview = (lambda i: opened.read(int(known[i]))), opened.overview.lines()
    return _inspection(opened.kind, classes, index, mean, std, rejected, overview, seen, name_of, read)


def _rejected_items(opened: Any, parts: list[dict[str, Any]]) -> list[int]:
    """Numbers of the images that were rejected while decoding."""
    rejected = {name for part in parts for name, _ in part["rejected"]}
    return [item for item in range(len(opened)) if opened.describe(item) in rejected] if rejected else []


def _name(names: bytes, ends: NDArray[np.uint64], index: int) -> str:
    start = int(ends[index - 1]) if index else 0
    return names[start : int(ends[index])].decode("utf-8", "backslashreplace")


def _inspection(
    kind: str,
    classes: list[tuple[str, int]],
    index: NDArray[np.void],
    mean: list[float],
    std: list[float],
    rejected: list[Rejected],
    overview: list[str],
    seen: list[str],
    name: Callable[[int], str],
    read: Callable[[int], bytes],
) -> Inspection:
    sizes = np.stack([index["width"], index["height"]], axis=1).astype(np.int64)
    equal, similar = equal_groups(index["sha256"]), similar_groups(np.ascontiguousarray(index["look"]))
    labels = index["label"].astype(np.int64)
    return Inspection(kind, classes, labels, sizes, mean, std, rejected, overview, seen, equal, similar, name, read)


def read_report(path: Path) -> list[Rejected]:
    """The images that a preparation could not use."""
    import json

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
    rows = range(used[0], used[-1] + 1) if len(used) else range(0)
    return [(f"{edges[k]}-{edges[k + 1] - 1}" if k < 9 else f"{edges[k]}+", int(counts[k])) for k in rows]


def contact_sheet(found: Inspection, count: int = SHEET_IMAGES) -> Image.Image:
    """Up to `count` images spread over all classes, each with its class or name below."""
    chosen = spread(found.labels, count)
    columns = max(1, int(np.ceil(np.sqrt(len(chosen)))))
    rows = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (columns * (TILE + 2) + 2, rows * (TILE + CAPTION + 2) + 2), "white")
    draw = ImageDraw.Draw(sheet)
    for place, index in enumerate(chosen):
        x, y = 2 + place % columns * (TILE + 2), 2 + place // columns * (TILE + CAPTION + 2)
        label = int(found.labels[index])
        caption = found.classes[label][0] if label >= 0 else Path(found.name(index)).name
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
        f"{folder / name}: differs from the manifest"
        for name in (NAMES_FILE, REPORT_FILE)
        if not (folder / name).is_file() or file_sha256(folder / name) != store.manifest["files"][name]
    ]
    known = {file for file, _ in store.shards}
    problems += [
        f"{path}: not part of this set" for path in sorted((folder / SHARDS).iterdir()) if path.name not in known
    ]
    with tempfile.TemporaryDirectory(prefix="epg-verify-") as name:
        work = partial(_verify_shard, store, Path(name))
        shards = range(len(store.shards))
        total = len(store)
        run_jobs(work, shards, min(workers, len(shards)), lambda n: progress(n, total) if progress else None)
        for number in shards:
            problems += (Path(name) / str(number)).read_text().splitlines()
    return problems


def _verify_shard(
    store: Store, out: Path, number: int, crashed: dict[int, str], on_item: Callable[[int], None]
) -> None:
    """Lines about one shard into a file: changed images by name, else the shard if other bytes of it changed."""
    file, rows = store.shards[number]
    path = store.folder / SHARDS / file
    problems = []
    start = int(store.starts[number])
    if not path.is_file():
        problems.append(f"{path}: is missing, with {rows} images")
        rows = 0
    for index in range(start, start + rows):
        on_item(index)
        try:
            store.read(index)
        except DataError as error:
            problems.append(str(error).replace("\n", " "))
    if not problems and file_sha256(path) != store.manifest["shards"][number]["sha256"]:
        problems.append(f"{path}: changed outside of its images")
    (out / str(number)).write_text("".join(f"{line}\n" for line in problems))
