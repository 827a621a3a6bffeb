"""Real files as users have them: class folders of photographs, splits, a parquet file."""

from collections.abc import Sequence
from pathlib import Path

from tests.data.photos import encoded, photo

CLASSES = ("cat", "dog", "emu")


def class_folders(folder: Path, each: int = 8, first: int = 0, side: int = 36, names: Sequence[str] = CLASSES) -> Path:
    """`each` JPEG photographs in a folder for each class, numbered from `first`."""
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + each):
            (folder / name / f"{i:03d}.jpg").write_bytes(encoded(photo(100 * number + i, side, side)))
    return folder


def split_folders(folder: Path) -> Path:
    """The same with a training and a test split."""
    class_folders(folder / "train")
    class_folders(folder / "test", each=4, first=50)
    return folder


def parquet_file(file: Path, folder: Path) -> Path:
    """The images of class folders as one parquet file with Hugging Face's features."""
    import datasets

    images = sorted(folder.glob("*/*.jpg"))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    rows = {
        "image": [{"bytes": image.read_bytes(), "path": image.name} for image in images],
        "label": [image.parent.name for image in images],
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(file))
    return file
