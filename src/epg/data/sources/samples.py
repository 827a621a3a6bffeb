"""Files that belong to one sample, as in a WebDataset: 0001.left.png, 0001.right.png, 0001.json."""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from epg.data.sources.base import SourceOptions
from epg.data.sources.kinds import is_image_suffix
from epg.data.sources.names import Names
from epg.errors import DataError

SHARE = 0.9  # of all samples that have a member of a kind, for it to be one


def key_and_member(name: bytes) -> tuple[bytes, bytes]:
    """What a sample is called, and which member of it this is: ("a/0001", "left.png")."""
    folder, slash, base = name.rpartition(b"/")
    stem, _, member = base.partition(b".")
    return folder + slash + stem, member


def choose_member(names: Names, texts: dict[bytes, int], options: SourceOptions, where: str) -> NDArray[np.int64]:
    """Which images to use where samples hold several: the member that `image_column` names.

    Raises DataError where there are several and none is named, or the named one is not there.
    """
    kinds: Counter[bytes] = Counter()
    keys, members = set[bytes](), []
    for name in names:
        key, member = key_and_member(name)
        kinds[member.lower()] += 1
        members.append(member.lower())
        keys.add(key)
    wanted = options.image_column
    if wanted is not None:
        chosen = [i for i, member in enumerate(members) if member == wanted.lower().lstrip(".").encode()]
        if not chosen:
            listed = ", ".join(sorted(kind.decode("utf-8", "replace") for kind, _ in kinds.most_common(8)))
            raise DataError(f"{options.flag('image-column', wanted)}: the images of {where} end in {listed}")
        return np.array(chosen, dtype=np.int64)
    several = [
        kind for kind, count in kinds.items() if count >= SHARE * len(keys) and is_image_suffix(b"." + kind[-12:])
    ]
    if len(keys) > 1 and len(several) > 1:
        listed = ", ".join(sorted(kind.decode("utf-8", "replace") for kind in several))
        raise DataError(
            f"{where}: every sample has several images ({listed}), which may be pictures and their label maps: choose "
            f"one with {options.flag('image-column', sorted(several)[0].decode('utf-8', 'replace'))}"
        )
    return np.arange(len(names))
