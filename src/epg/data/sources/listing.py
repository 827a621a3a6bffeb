"""What a walk through a folder or an archive finds: images, label files, and what is not read."""

import itertools
from array import array
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from epg.data.sources.base import Rejected, readable
from epg.data.sources.kinds import SHEET, cure_of, is_hidden, is_image, is_text, kind_of
from epg.data.sources.names import Names, pick

# Files that only epg writes: a folder below the data with one of them holds its output, and no data.
OWN = frozenset({b"run.lock", b"samples.json", b"handover.json", b"recipe.yaml", b"model_index.json"})
# Pictures that commands write, and the file that they write beside each.
OWN_PICTURES = {
    **{f"{name}.png".encode(): f"{name}.json".encode() for name in ("sweep", "probe", "denoising", "neighbours")},
    b"grid.png": b"samples.json",
    **{f"animation.{kind}".encode(): b"samples.json" for kind in ("gif", "png", "webp")},
    b"curves.png": b"results.json",
    b"progress.png": b"results.json",
    b"real.png": b"results.json",
}
RECORDS = frozenset(OWN_PICTURES.values())


class Listing:
    """Takes in one file after the other; once it is `complete`, images have `names`, `sizes` in bytes and `numbers`,
    each (N,). A number is whatever finds a file again in its container."""

    def __init__(self, root: bytes = b"") -> None:
        self.root = root
        self.twice: list[bytes] = []
        """Links to what is listed itself, being below `root`."""
        self.images: list[bytes] = []
        self.places = array("q"), array("q")
        self.texts: dict[bytes, int] = {}
        """Small files that may hold labels, and their numbers."""
        self.kinds: Counter[str] = Counter()
        self.cures: dict[str, str] = {}
        self.bare: set[bytes] = set()
        """Folders that are empty or hold files that are not read."""
        self.notes: list[str] = []
        self.rejected: list[Rejected] = []
        self.own: set[bytes] = set()
        self.records: set[bytes] = set()

    def add(self, name: bytes, size: int, number: int = -1) -> None:
        """A regular file."""
        if is_hidden(name):
            return
        if is_image(name):
            self.images.append(name)
            self.places[0].append(size)
            self.places[1].append(number)
            return
        folder, _, base = name.rpartition(b"/")
        if base in OWN:
            self.own.add(folder)
        if base in RECORDS:
            self.records.add(name)
        if is_text(name):
            self.texts[name] = number
            return
        self.bare.add(folder)
        kind = kind_of(name)
        if kind not in self.kinds and (cure := cure_of(name)) is not None:
            self.cures[kind] = cure
        self.kinds[kind] += 1

    def reject(self, name: bytes, reason: str) -> None:
        if not is_hidden(name.replace(b"\\", b"/")):
            self.rejected.append(Rejected(readable(name), reason))

    def complete(self, *, ordered: bool = True) -> "Listing":
        """This listing, in the order of the names as bytes, or as it came where `ordered` is off.

        Our own output is left out, and of several files of one name all but the last, as unpacking would leave it.
        """
        names, self.images = self.images, []
        order = sorted(range(len(names)), key=names.__getitem__)
        kept = np.ones(len(names), dtype=bool)
        for before, after in itertools.pairwise(order):
            if names[before] == names[after]:
                self.reject(names[before], "a later member of the archive has the same name and is used instead")
                kept[before] = False
        self._leave_out_own(names, kept)
        if self.twice:
            links = f"{readable(self.twice[0])}{' ...' if len(self.twice) > 1 else ''}"
            self.notes.append(f"{len(self.twice)} links lead to what is here itself, which is read twice: {links}")
        chosen = np.array(order if ordered else range(len(names)), dtype=np.int64)
        chosen = chosen[kept[chosen]] if len(chosen) else chosen
        self.sizes, self.numbers = (np.array(values, dtype=np.int64)[chosen] for values in self.places)
        self.names = Names.of([names[i] for i in chosen.tolist()])
        return self

    def take(self, chosen: NDArray[np.int64]) -> tuple[Names, NDArray[np.int64], NDArray[np.int64]]:
        """Names, sizes and numbers of some images."""
        return self.names.take(chosen), pick(self.sizes, chosen), pick(self.numbers, chosen)

    def _leave_out_own(self, names: list[bytes], kept: NDArray[np.bool_]) -> None:
        """Take away what epg wrote itself below the data: runs, previews, samples, contact sheets, figures."""
        folders, pictures = sorted(folder for folder in self.own if folder), 0
        outputs: Counter[bytes] = Counter()
        for i, name in enumerate(names):
            folder, slash, base = name.rpartition(b"/")
            partner = OWN_PICTURES.get(base)
            if base == SHEET.encode() or (partner is not None and folder + slash + partner in self.records):
                kept[i] = False
                pictures += 1
            elif folders and (inside := _inside(folder, folders)) is not None:
                kept[i] = False
                outputs[inside] += 1
        self.notes += [
            f"{readable(folder)} holds output of epg (a run or samples); its {count} images are not read"
            for folder, count in sorted(outputs.items())
        ]
        self.notes += [f"{pictures} contact sheets or figures of epg were left out"] if pictures else []


def _inside(folder: bytes, folders: list[bytes]) -> bytes | None:
    return next((own for own in folders if folder == own or folder.startswith(own + b"/")), None)
