"""What looks like classes or pictures and is none: label maps beside pictures, numbered pieces of one set."""

import contextlib
import io
import itertools
import re
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image

from epg.data.pixels.decode import FORMATS, decoding
from epg.data.sources.base import SourceOptions, readable
from epg.data.sources.names import Names
from epg.errors import DataError

MAX_FOLDERS = 8  # pictures and label maps lie in few
SHARE = 0.9
LOOKED_AT = 4
COLOURS = 64  # a label map has fewer
MAP_WORDS = frozenset(
    [
        *(
            "mask",
            "masks",
            "label",
            "labels",
            "annotation",
            "annotations",
            "annots",
            "trimap",
            "trimaps",
            "seg",
            "segs",
        ),
        *("segmentation", "segmentations", "segmentationclass", "segmentationobject", "gt", "gtfine", "gtcoarse"),
        *("groundtruth", "ground", "truth", "depth", "depths", "normal", "normals", "edge", "edges", "matte", "mattes"),
        *("alpha", "alphas", "parsing", "labelmap", "labelmaps", "target", "targets"),
    ]
)
MAP_END = re.compile(rf"[-_. ]({'|'.join(sorted(MAP_WORDS))}|l)([-_ ]?\d+)?$".encode(), re.IGNORECASE)  # of a stem


def refuse_label_maps(names: Names, read: Callable[[int], bytes], options: SourceOptions, where: str) -> None:
    """Raises DataError where one folder holds the pictures and another, of the same file stems, their label maps."""
    tops: dict[bytes, dict[bytes, int]] = {}
    for i, name in enumerate(names):
        top, _, rest = name.partition(b"/")
        stems = tops.setdefault(top, {})
        if len(tops) > MAX_FOLDERS:
            return
        stems.setdefault(rest.rpartition(b"/")[2].rpartition(b".")[0], i)
    maps = {}
    for top, stems in tops.items():
        for other, others in tops.items():
            shared = len(stems) > 1 and len(stems.keys() & others.keys()) >= SHARE * len(stems)
            named = bool(_words(top) & MAP_WORDS) and not _words(other) & MAP_WORDS
            if top == other or not (shared or named):
                continue
            if (shared and named) or (_are_maps(stems, read) and not _are_maps(others, read)):
                maps[top] = other
    if maps:
        top, other = min(maps.items())
        raise DataError(
            f"{where}: {readable(other)} and {readable(top)} look like pictures and their label maps, not like classes "
            f"(same file names). To train on the pictures, name their folder: {where}/{readable(other)}; if they are "
            f"classes, pass {options.flag('labels folder')}"
        )


def refuse_maps_beside(names: Names, options: SourceOptions, where: str) -> None:
    """Raises DataError where most pictures have a label map beside them: 1_mask.png, or masks/1.png below a class."""
    maps: dict[bytes, bytes] = {}
    for name in names:
        if (key := _mapped(name)) is not None:
            maps[key] = name
    if not maps:
        return
    pictures, found = 0, None
    for name in names:
        if _mapped(name) is None:
            folder, stem = _folder_and_stem(name)
            first = next((key for key in (folder + b"/" + stem, _above(folder) + b"/" + stem) if key in maps), None)
            pictures += 1 if first is None else -1
            found = found or (first and (name, maps[first]))
    if found and pictures < 0:
        raise DataError(
            f"{where}: {readable(found[1])} looks like the label map of {readable(found[0])}, and most pictures have "
            f"one. Move the maps to another folder; to train on them, too, pass {options.flag('labels folder')} or none"
        )


def _mapped(name: bytes) -> bytes | None:
    """Folder and stem of the picture whose label map this may be by its name, None where it is none."""
    folder, stem = _folder_and_stem(name)
    if end := MAP_END.search(stem):
        return folder + b"/" + stem[: end.start()]
    above, slash, last = folder.rpartition(b"/")
    return above + b"/" + stem if slash and _words(last) & MAP_WORDS else None


def _folder_and_stem(name: bytes) -> tuple[bytes, bytes]:
    folder, _, base = name.rpartition(b"/")
    return folder, base.rpartition(b".")[0]


def _above(folder: bytes) -> bytes:
    return folder.rpartition(b"/")[0]


@lru_cache(2**10)
def _words(name: bytes) -> set[str]:
    text = readable(name)
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    return set(re.findall("[a-z]+", apart.lower())) | {text.lower()}


def _are_maps(stems: dict[bytes, int], read: Callable[[int], bytes]) -> bool:
    """Whether all of some images have few colours."""
    picked = [list(stems.values())[k] for k in np.unique(np.linspace(0, len(stems) - 1, LOOKED_AT).astype(int))]
    return all(_has_few_colours(read, index) for index in picked)


def _has_few_colours(read: Callable[[int], bytes], index: int) -> bool:
    with contextlib.suppress(DataError), decoding(), Image.open(io.BytesIO(read(index)), formats=FORMATS) as image:
        image.thumbnail((512, 512), Image.Resampling.NEAREST)
        return image.convert("RGB").getcolors(COLOURS) is not None
    return False  # a broken image says nothing here


def refuse_chunks(names: Names, options: SourceOptions, where: str) -> None:
    """Raises DataError where folders are numbers, and only cut a numbered set into pieces (00000/img00000000.png)."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for name in names:
        top, _, rest = name.partition(b"/")
        digits = re.findall(rb"\d+", rest.rpartition(b"/")[2])
        if not top.isdigit() or len(top) < 2 or not digits:
            return
        folder, number = int(top), int(digits[-1])
        first[folder] = min(first.get(folder, number), number)
        last[folder] = max(last.get(folder, number), number)
    order = sorted(first)
    if len(order) > 1 and all(last[a] < first[b] for a, b in itertools.pairwise(order)):
        raise DataError(
            f"{where}: its numbered folders hold consecutive images, so they look like pieces of one set and not like "
            f"classes. Pass {options.flag('labels none')} if they are pieces, {options.flag('labels folder')} if they "
            "are classes"
        )
