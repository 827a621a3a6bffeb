"""The end of a preparation: from the parts of all shards to index, names, report and manifest."""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from epg.data.seen import merged
from epg.data.shards import part_files, shard_file, write_durably
from epg.data.sources.base import Rejected, Source
from epg.data.store import (
    FORMAT_VERSION,
    INDEX,
    INDEX_FILE,
    MANIFEST,
    NAMES_FILE,
    REPORT_FILE,
    SHARDS,
    file_sha256,
    seal,
)
from epg.errors import DataError
from epg.files import hidden, sync_folder

SHOWN = 10


def finish(folder: Path, source: Source, plan: dict[str, Any], on_error: str) -> dict[str, Any]:
    """Write everything that is written once all shards are there; the manifest last.

    Raises DataError where no image is left, or, with `on_error` "fail", where one was rejected.
    """
    parts = read_parts(folder, plan)
    rejected = [*source.rejected, *(Rejected(*item) for part in parts for item in part["rejected"])]
    lines = "".join(json.dumps(asdict(item), ensure_ascii=True) + "\n" for item in rejected)
    write_durably(folder / REPORT_FILE, lines.encode())
    total = sum(part["rows"] for part in parts)
    if rejected and (on_error == "fail" or total == 0):
        shown = "\n".join(f"  {item.name}: {item.reason}" for item in rejected[:SHOWN])
        raise DataError(
            f"{len(rejected)} images cannot be used (all: {folder / REPORT_FILE}):\n{shown}\n"
            "Replace or remove them and delete the folder, or run the same command with --on-error skip"
        )
    write_index(folder, parts, total)
    index = np.load(folder / INDEX_FILE, mmap_mode="r", allow_pickle=False)
    counts = np.bincount(index["label"][index["label"] >= 0], minlength=len(source.class_names))
    mean, std = channel_statistics(parts)
    manifest = {
        "format_version": FORMAT_VERSION,
        **{key: plan[key] for key in ("epg", "source", "kind", "pixels", "options", "listing")},
        "images": total,
        "listed": plan["images"],
        "overview": source.overview.lines(),
        "rejected": len(rejected),
        "kept_originals": sum(part["kept"] for part in parts),
        "seen": asdict(merged(part["seen"] for part in parts)),
        "classes": [
            {"name": name, "images": int(count)} for name, count in zip(source.class_names, counts, strict=True)
        ],
        "mean": mean,
        "std": std,
        "content_sha256": content_sha256(index),
        "shards": [
            {"file": shard_file(number), **{key: part[key] for key in ("rows", "bytes", "sha256")}}
            for number, part in enumerate(parts)
            if part["rows"]
        ],
        "files": {name: file_sha256(folder / name) for name in (INDEX_FILE, NAMES_FILE, REPORT_FILE)},
    }
    write_durably(folder / MANIFEST, json.dumps(seal(manifest), indent=1).encode())
    return seal(manifest)


def channel_statistics(parts: Iterable[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Mean and std per channel of pixels in [0, 1], from exact integer sums."""
    parts = list(parts)
    pixels = sum(part["pixels"] for part in parts)
    totals = [
        [sum(column) for column in zip(*rows, strict=True)] for rows in zip(*(p["sums"] for p in parts), strict=True)
    ]
    mean = [total / pixels / 255 for total in totals[0]]
    # In whole numbers: the difference of two large floats would lose the digits that matter.
    squares = [(second * pixels - first**2) / pixels**2 for first, second in zip(*totals, strict=True)]
    return mean, [math.sqrt(square) / 255 for square in squares]


def content_sha256(index: Any) -> str:
    """One hash of all images and labels in order, whatever the shards."""
    import hashlib

    digest = hashlib.sha256()
    for start in range(0, len(index), 2**16):
        rows = index[start : start + 2**16]
        digest.update(np.ascontiguousarray(rows["sha256"]).tobytes())
        digest.update(np.ascontiguousarray(rows["label"]).tobytes())
    return digest.hexdigest()


def read_parts(folder: Path, plan: dict[str, Any]) -> list[dict[str, Any]]:
    """What the part files of all shards say. Raises DataError for a damaged one, which is removed to be made anew."""
    return [_read_part(folder, number) for number in range(-(-plan["images"] // plan["items_per_shard"]))]


def _read_part(folder: Path, number: int) -> dict[str, Any]:
    rows, summary = part_files(folder, number)
    try:
        part: dict[str, Any] = json.loads(summary.read_bytes())
        damaged = file_sha256(rows) != part["index_sha256"]
        stored = folder / SHARDS / shard_file(number)
        damaged = damaged or (part["sha256"] is not None and stored.stat().st_size != part["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        damaged = True
    if damaged:
        summary.unlink(missing_ok=True)
        raise DataError(f"{summary}: shard {number} was damaged; run the same command again to make it anew")
    return part


def write_index(folder: Path, parts: Iterable[dict[str, Any]], total: int) -> None:
    """Join the index rows and names of all parts, with constant memory."""
    temporary = hidden(folder / INDEX_FILE, "tmp"), hidden(folder / NAMES_FILE, "tmp")
    index = open_memmap(temporary[0], mode="w+", dtype=INDEX, shape=(total,))
    start, names_end = 0, 0
    with temporary[1].open("wb") as names:
        for number, part in enumerate(parts):
            if not part["rows"]:
                continue
            rows = np.load(part_files(folder, number)[0], allow_pickle=False)
            rows["name_end"] += np.uint64(names_end)
            index[start : start + len(rows)] = rows
            start += len(rows)
            names_end += names.write("".join(part["names"]).encode())
        names.flush()
        os.fsync(names.fileno())
    assert start == total
    index.flush()
    del index
    for path, name in zip(temporary, (INDEX_FILE, NAMES_FILE), strict=True):
        os.replace(path, folder / name)
    sync_folder(folder)
