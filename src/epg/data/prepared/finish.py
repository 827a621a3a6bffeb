"""The end of a preparation: from the parts of all shards to index, names, report and manifest."""

import base64
import hashlib
import io
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epg.data.prepared.seen import Seen
from epg.data.prepared.shards import part_file, shard_file, write_durably
from epg.data.prepared.store import (
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
from epg.data.sources.base import Rejected, Source
from epg.errors import DataError

SHOWN = 10
Part = dict[str, Any]


def finish(folder: Path, source: Source, plan: dict[str, Any], on_error: str) -> dict[str, Any]:
    """Write everything that is written once all shards are there; the manifest last.

    Raises DataError where no image is left, or, with `on_error` "fail", where one was rejected.
    """
    parts = [_read_part(folder, number) for number in range(plan["shards"])]
    rejected = rejected_of(source, parts)
    lines = "".join(json.dumps(asdict(item), ensure_ascii=True) + "\n" for item in rejected)
    write_durably(folder / REPORT_FILE, lines.encode())
    if rejected and (on_error == "fail" or not any(part["rows"] for part in parts)):
        shown = "\n".join(f"  {item.name}: {item.reason}" for item in rejected[:SHOWN])
        raise DataError(
            f"{len(rejected)} images cannot be used (all: {folder / REPORT_FILE}):\n{shown}\n"
            "Replace or remove them and delete the folder, or run the same command with --on-error skip"
        )
    index, names = joined(parts)
    stream = io.BytesIO()
    np.save(stream, index, allow_pickle=False)
    write_durably(folder / INDEX_FILE, stream.getvalue())
    write_durably(folder / NAMES_FILE, "".join(names).encode())
    manifest = {
        "format_version": FORMAT_VERSION,
        **{key: plan[key] for key in ("epg", "source", "kind", "pixels", "options", "listing", "listed")},
        **summary_of(source, parts, index),
        "rejected": len(rejected),
        "kept_originals": sum(part["kept"] for part in parts),
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


def rejected_of(source: Source, parts: list[Part]) -> list[Rejected]:
    """What could not be used: found in listing the source, then in decoding."""
    return [*source.rejected, *(Rejected(name, reason) for part in parts for _, name, reason in part["rejected"])]


def joined(parts: list[Part]) -> tuple[NDArray[np.void], list[str]]:
    """The index of all images, and their names."""
    index = np.concatenate([np.frombuffer(base64.b64decode(part["index"]), INDEX) for part in parts])
    names = [name for part in parts for name in part["names"]]
    index["name_end"] = np.cumsum([len(name.encode()) for name in names])
    return index, names


def summary_of(source: Source, parts: list[Part], index: NDArray[np.void]) -> dict[str, Any]:
    """What a manifest says of the images as a whole."""
    counts = np.bincount(index["label"][index["label"] >= 0], minlength=len(source.class_names))
    mean, std = channel_statistics(parts)
    seen = Seen()
    for part in parts:
        seen.merge(Seen(**part["seen"]))
    return {
        "images": len(index),
        "overview": source.overview.lines(),
        "seen": asdict(seen),
        "classes": [
            {"name": name, "images": int(count)} for name, count in zip(source.class_names, counts, strict=True)
        ],
        "mean": mean,
        "std": std,
    }


def channel_statistics(parts: list[Part]) -> tuple[list[float], list[float]]:
    """Mean and std per channel of pixels in [0, 1].

    In whole numbers: the difference of two large floats would lose the digits that matter.
    """
    pixels = sum(part["pixels"] for part in parts)
    values, squares = np.array([part["sums"] for part in parts], dtype=object).sum(axis=0).tolist()
    mean = [total / pixels / 255 for total in values]
    variance = [(second * pixels - first**2) / pixels**2 for first, second in zip(values, squares, strict=True)]
    return mean, [math.sqrt(value) / 255 for value in variance]


def content_sha256(index: NDArray[np.void]) -> str:
    """One hash of all images and labels in order, whatever the shards."""
    digest = hashlib.sha256()
    for start in range(0, len(index), 2**16):
        rows = index[start : start + 2**16]
        digest.update(np.ascontiguousarray(rows["sha256"]).tobytes())
        digest.update(np.ascontiguousarray(rows["label"]).tobytes())
    return digest.hexdigest()


def _read_part(folder: Path, number: int) -> Part:
    """Raises DataError for a damaged part, which is removed to be made anew."""
    path = part_file(folder, number)
    try:
        part: Part = json.loads(path.read_bytes())
        stored = folder / SHARDS / shard_file(number)
        whole = seal(part) == part and (not part["rows"] or stored.stat().st_size == part["bytes"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        path.unlink(missing_ok=True)
        raise DataError(f"{path}: shard {number} was damaged; run the same command again to make it anew")
    return part
