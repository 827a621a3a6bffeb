"""What the files of a data set are by their names: images, labels, other programs' leavings, our own output."""

import contextlib
import os
import re
from pathlib import Path

from epg.data.decode import EXTENSIONS

IMAGES = tuple(extension.encode() for extension in EXTENSIONS)
LONGEST = 16  # bytes of a name's end that decide what it is
TEXTS = (b".csv", b".tsv", b".jsonl", b".json", b".txt", b".cls", b"metadata.parquet")
"""Small files that may hold labels."""
# Folders and files of systems, network drives and programs.
TOOLS = (
    "__MACOSX|@eaDir|#recycle|#snapshot|@recycle|@recently-snapshot|@tmp|@sharebin|$RECYCLE.BIN|RECYCLER|Thumbs.db|"
    "desktop.ini|System Volume Information|lost+found|__pycache__|node_modules|site-packages|venv|wandb|mlruns|"
    "lightning_logs"
)
SHEET = "contact-sheet.png"

_AS_ARRAY = "save its images as a uint8 array (N, H, W, C) in .npz, or as image files"
_TFRECORD = "TFRecord; export it to image files, WebDataset tars or parquet"
_PICKLE = "a pickle, which can run any code and is never loaded; export it to image files, parquet or .npz"
_BY_ENDING = {
    "heic heif": "convert it to JPEG or PNG",
    "avif": "convert it to PNG or WebP",
    "jxl jp2 j2k ico tga psd jps pcx": "convert it to PNG",
    "svg": "draw it as PNG",
    "pdf": "draw its pages as PNG",
    "dng cr2 cr3 nef arw": "develop it to PNG or JPEG",
    "dcm nii exr hdr fits": "convert it to PNG of 8 or 16 bits, with a range that you choose",
    "mp4 avi mov mkv webm": "take frames out of it as PNG",
    "tfrecord tfrecords": _TFRECORD,
    "mdb lmdb": "LMDB; export it to image files or parquet",
    "h5 hdf5 he5": f"HDF5; {_AS_ARRAY}",
    "mat": f"a MATLAB file; {_AS_ARRAY}",
    "zarr zarray zattrs": _AS_ARRAY,
    "rec": "RecordIO; export it to image files or parquet",
    "beton": "FFCV's format; export it to image files, parquet or WebDataset tars",
    "lance": "Lance; export it to parquet",
    "mds": "MosaicML's shards; export them to parquet or WebDataset tars",
    "npy npz": "an array of numbers; name the file itself as the source",
    "parquet arrow": "a table; name the folder that holds it as the source",
    "pkl pickle pt pth ckpt joblib": _PICKLE,
    "zip tar tgz tbz2 txz": "an archive within; unpack it, or name it as the source",
    "bin": "numbers without a word on their shape; save them as a uint8 array (N, H, W, C) in .npz",
    "gz bz2 xz zst lzma 7z rar": "unpack it, or pack it as zip or tar",
}
_CURES = {ending: cure for endings, cure in _BY_ENDING.items() for ending in endings.split()}
"""What is met in data sets of this field and not read, with what to do about it."""
_BY_NAME = {
    r".*[-.]idx\d-ubyte(\.gz)?": "IDX, as of MNIST; save its images as a uint8 array (N, H, W) and labels (N,) in .npz",
    r"(data|test|train)(_batch)?(_\d)?\.bin": "CIFAR's binary batches; save them as uint8 images (N, 32, 32, 3) and "
    "labels (N,) in .npz, or take uoft-cs/cifar10 from the Hub",
    r"data_batch_\d|test_batch|batches\.meta|train|test|meta": _PICKLE,  # CIFAR-10 and CIFAR-100
    r".*\.tfrecords?(-\d+-of-\d+)?|[a-z]+-\d+-of-\d+": _TFRECORD,
}


def is_image(name: bytes) -> bool:
    """Whether a path ends like those of images, in any case."""
    return name[-LONGEST:].lower().endswith(IMAGES)


def is_text(name: bytes) -> bool:
    """Whether a path ends like a small file that may hold labels."""
    return name[-LONGEST:].lower().endswith(TEXTS)


_tools = "|".join(map(re.escape, TOOLS.split("|"))).encode()
_hidden = re.compile(rb"(?:^|/)(?:\.(?!\.?(?:/|$))[^/]*|" + _tools + rb")(?:/|$)", re.IGNORECASE | re.DOTALL)


def is_hidden(name: bytes) -> bool:
    """Whether any part of a path belongs to a tool and not to the data: .git, @eaDir."""
    return _hidden.search(name) is not None


def list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the files and of the folders in a folder, sorted, those of tools left out; none if it is unreadable."""
    files, folders = list[str](), list[str]()
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        for entry in sorted(found, key=lambda entry: entry.name):
            with contextlib.suppress(OSError):  # a loop of links
                if not is_hidden(os.fsencode(entry.name)):
                    (folders if entry.is_dir() else files).append(entry.name)
    return files, folders


def kind_of(name: bytes) -> str:
    """What an unread file is called in a summary: its own name where that says more than its ending."""
    base = name.rpartition(b"/")[2].decode("utf-8", "backslashreplace")
    stem, _, suffix = base.rpartition(".")
    if re.fullmatch(r"cache-[0-9a-f]+\.arrow", base):
        return "cache-*.arrow"
    if not stem or not suffix.isalnum() or len(suffix) > 9:
        counted = any(map(str.isdigit, base)) and not cure_of(name)
        return base if len(base) < 40 and not counted else "no ending"
    return base if suffix.lower() in ("csv", "tsv", "jsonl", "npz", "mdb") and len(base) < 40 else f"*.{suffix.lower()}"


def cure_of(name: bytes) -> str | None:
    """What to do with a file of a known kind that is not read here."""
    base = name.rpartition(b"/")[2].decode("utf-8", "replace").lower()
    found = (cure for pattern, cure in _BY_NAME.items() if re.fullmatch(pattern, base, re.DOTALL))
    return next(found, None) or _CURES.get(base.rpartition(".")[2])
