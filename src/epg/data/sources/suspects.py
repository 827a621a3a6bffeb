"""What looks like classes or pictures and may be none, so that it is asked: members, label maps, parts of a set."""

import contextlib
import io
import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from epg.data.decode import FORMATS, decoding
from epg.data.sources.base import SourceOptions, readable
from epg.data.sources.kinds import is_image
from epg.data.sources.names import Names
from epg.errors import DataError

MAX_FOLDERS = 8  # pictures and label maps lie in few
SHARE = 0.9  # of the samples or pictures that have a partner, for it to be one
LOOKED_AT = 4
COLOURS = 64  # a label map has fewer
_map_words = (
    "mask|masks|msk|label|labels|lbl|annotation|annotations|annots|anno|trimap|trimaps|seg|segs|segmentation|"
    "segmentations|segmentationclass|segmentationobject|semantic|panoptic|gt|gtfine|gtcoarse|groundtruth|ground|truth|"
    "depth|depths|disparity|normals|edge|edges|matte|mattes|alpha|alphas|parsing|labelmap|labelmaps|target|"
    "targets|lr|lowres|thumb|thumbs|thumbnail|thumbnails"
)
MAP_WORDS = frozenset(_map_words.split("|"))
MAP_END = re.compile(rf"[-_. ]({_map_words}|l)([-_ ]?\d+)?$".encode(), re.IGNORECASE)  # of a stem
FACTOR = re.compile(rb"x[2348]$")  # of a stem: enlarged or made smaller so many times
BUCKET, BUCKET_NAME = re.compile(rb"[0-9a-f]{2,4}", re.IGNORECASE), re.compile(rb"[0-9a-f]+", re.IGNORECASE)
MAPS = re.compile("gt|mask|seg|annot|label|trimap")
SIZED = re.compile(rb"\D{0,20}\d+ ?(x ?\d+|px|p)", re.IGNORECASE)


def choose_member(names: Names, options: SourceOptions, where: str) -> NDArray[np.int64]:
    """Which images to use where samples hold several, as in a WebDataset (0001.left.png, 0001.right.png, 0001.json):
    the member that `image_column` names.

    Raises DataError where there are several and none is named, or the named one is not there.
    """
    keys, members = set[bytes](), []
    for name in names:
        folder, slash, base = name.rpartition(b"/")
        stem, _, member = base.partition(b".")
        keys.add(folder + slash + stem)
        members.append(member.lower())
    kinds, wanted = Counter(members), options.image_column
    if wanted is not None:
        chosen = [i for i, member in enumerate(members) if member == wanted.lower().lstrip(".").encode()]
        if not chosen:
            listed = ", ".join(sorted(kind.decode("utf-8", "replace") for kind, _ in kinds.most_common(8)))
            raise DataError(f"{options.flag('image-column', wanted)}: the images of {where} end in {listed}")
        return np.array(chosen, dtype=np.int64)
    shared = (kind for kind, count in kinds.items() if count >= SHARE * len(keys) and is_image(b"." + kind))
    # cat.0.jpg, cat.1.jpg: numbers count the images of a class
    several = sorted(kind.decode("utf-8", "replace") for kind in shared if not kind.partition(b".")[0].isdigit())
    if len(keys) > 1 and len(several) > 1:
        raise DataError(
            f"{where}: every sample has several images ({', '.join(several)}), which may be pictures and their label "
            f"maps: choose one with {options.flag('image-column', several[0])}"
        )
    return np.arange(len(names))


def refuse_parts(folders: Sequence[bytes], options: SourceOptions, where: str) -> None:
    """Raises DataError where the first folders look like parts or versions of one set: they hold folders of the same
    names (fold1/cat, fold2/cat), or are called by sizes (64x64, 128x128)."""
    inner: dict[bytes, set[bytes]] = {}
    for folder in folders:
        top, _, rest = folder.partition(b"/")
        inner.setdefault(top, set()).add(rest.rpartition(b"/")[2])
    shared = set.intersection(*inner.values()) - {b""}
    same = len(shared) > 1 and len(shared) * 2 >= max(map(len, inner.values()))
    if len(inner) > 1 and (same or all(map(SIZED.fullmatch, inner))):
        tops = ", ".join(map(readable, sorted(inner)[:4]))
        why = f"hold folders of the same names ({readable(min(shared))} ...)" if same else "are called by sizes"
        raise DataError(
            f"{where}: {tops} {why}, so they look like parts or versions of one set and not like classes. Name the one "
            f"to use, such as {where}/{readable(min(inner))}; if they are classes, pass {options.flag('labels folder')}"
        )


def refuse_label_maps(names: Names, read: Callable[[int], bytes], options: SourceOptions, where: str) -> None:
    """Raises DataError where one folder holds the pictures and another, of the same file stems, their label maps."""
    tops: dict[bytes, dict[bytes, int]] = {}
    for i, name in enumerate(names):
        stems = tops.setdefault(name.partition(b"/")[0], {})
        if len(tops) > MAX_FOLDERS:
            return
        stems.setdefault(FACTOR.sub(b"", _folder_and_stem(name)[1]), i)
    maps = {}
    pairs = list(itertools.permutations(tops.items(), 2))
    plain = [top for top in tops if not _words(top) & MAP_WORDS]
    counted = any(_share(a, b) for (top, a), (other, b) in pairs if top in plain and other in plain)  # all from 0 on
    for (top, stems), (other, others) in pairs:
        shared, named, word = _share(stems, others), top not in plain and other in plain, readable(top).lower()
        sure = word in MAP_WORDS and (shared or (MAPS.match(word) and SHARE * len(others) <= len(stems)))
        few = (shared or named) and _are_maps(stems, read) and not _are_maps(others, read)
        if few or (named and (sure or (shared and not counted))):
            maps[top] = other
    if maps:
        top, other = min(maps.items())
        raise DataError(
            f"{where}: {readable(other)} and {readable(top)} look like pictures and their label maps (or another "
            f"version of them), not like classes. To train on the pictures, name their folder: "
            f"{where}/{readable(other)}; if they are classes, pass {options.flag('labels folder')}"
        )


def _share(stems: dict[bytes, int], others: dict[bytes, int]) -> bool:
    return len(stems) > 1 and len(stems.keys() & others.keys()) >= SHARE * len(stems)


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
            above = folder.rpartition(b"/")[0]
            first = next((key for key in (folder + b"/" + stem, above + b"/" + stem) if key in maps), None)
            pictures += 1 if first is None else -1
            found = found or (first and (name, maps[first]))
    if found and pictures < 0:
        raise DataError(
            f"{where}: {readable(found[1])} looks like the label map of {readable(found[0])} (or another version of "
            "it), and most pictures have one. Move the maps to another folder; to train on them, too, pass "
            f"{options.flag('labels folder')} or none"
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


@lru_cache(2**10)
def _words(name: bytes) -> set[str]:
    text = readable(name)
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    return set(re.findall("[a-z]+", apart.lower())) | {text.lower()}


def _are_maps(stems: dict[bytes, int], read: Callable[[int], bytes]) -> bool:
    """Whether all of some images have few colours."""
    indices = list(stems.values())
    picked = np.unique(np.linspace(0, len(indices) - 1, LOOKED_AT).astype(int))
    return all(_has_few_colours(read, indices[k]) for k in picked)


def _has_few_colours(read: Callable[[int], bytes], index: int) -> bool:
    with contextlib.suppress(DataError), decoding(), Image.open(io.BytesIO(read(index)), formats=FORMATS) as image:
        image.thumbnail((512, 512), Image.Resampling.NEAREST)
        return image.convert("RGB").getcolors(COLOURS) is not None
    return False  # a broken image says nothing here


def _are_buckets(names: Names) -> bool:
    tops = set[bytes]()
    for name in names:
        top, _, rest = name.partition(b"/")
        stem = _folder_and_stem(rest)[1]
        if not BUCKET.fullmatch(top) or not BUCKET_NAME.fullmatch(stem):
            return False
        if not (stem.startswith(top) or stem.endswith(top.lstrip(b"0"))):
            return False
        tops.add(top)
    return len(tops) > 1


def refuse_chunks(names: Names, options: SourceOptions, where: str) -> None:
    """Raises DataError where folders only cut a set into pieces: numbers of consecutive images
    (00000/img00000000.png), or the beginning or end of what each image is called (3f/3fa2.png, 0123/4560123.png)."""
    if _are_buckets(names):
        raise DataError(
            f"{where}: its folders are parts of the names of their images ({readable(names[0])}), so they look like "
            f"pieces of one set and not like classes. Pass {options.flag('labels none')} if they are pieces, "
            f"{options.flag('labels folder')} if they are classes"
        )
    held: dict[int, tuple[int, int]] = {}
    for name in names:
        top, _, rest = name.partition(b"/")
        digits = re.findall(rb"\d+", rest.rpartition(b"/")[2])
        if not top.isdigit() or len(top) < 2 or not digits:
            return
        number = int(digits[-1])
        first, last = held.get(int(top), (number, number))
        held[int(top)] = min(first, number), max(last, number)
    order = [held[folder] for folder in sorted(held)]
    if len(order) > 1 and all(before[1] < after[0] for before, after in itertools.pairwise(order)):
        raise DataError(
            f"{where}: its numbered folders hold consecutive images, so they look like pieces of one set and not like "
            f"classes. Pass {options.flag('labels none')} if they are pieces, {options.flag('labels folder')} if they "
            "are classes"
        )
