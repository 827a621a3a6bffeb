"""Real photographs (two come with scikit-learn), cut into many, and folders of them."""

import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image


@cache
def pictures():
    return [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]  # 640x427


def photo(seed, width=None, height=None):
    """A part of a real photograph, RGB, different for every seed; of random size where none is given."""
    rng = np.random.default_rng(seed)
    source = pictures()[seed % 2]
    width = width or int(rng.integers(90, 400))
    height = height or int(rng.integers(90, 400))
    left, top = int(rng.integers(0, 640 - width + 1)), int(rng.integers(0, 427 - height + 1))
    return source.crop((left, top, left + width, top + height))


def encoded(image, file_format="JPEG", **options):
    stream = io.BytesIO()
    image.save(stream, file_format, **({"quality": 92} if file_format == "JPEG" else {}), **options)
    return stream.getvalue()


def photo_folder(folder, classes=3, each=4, **size):
    """`classes` folders of `each` JPEG photographs."""
    for c in range(classes):
        (folder / f"class{c}").mkdir(parents=True)
        for i in range(each):
            (folder / f"class{c}" / f"{i}.jpg").write_bytes(encoded(photo(10 * c + i, **size)))
    return folder


def adm_by_hand(path, size):
    """The published procedure with Pillow alone, step by step, for a JPEG or PNG photograph: (size, size, 3)."""
    image = Image.open(path)
    image.load()
    while min(*image.size) >= 2 * size:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.BOX)
    scale = size / min(*image.size)
    image = image.resize(tuple(round(x * scale) for x in image.size), resample=Image.BICUBIC)
    array = np.array(image.convert("RGB"))
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[top : top + size, left : left + size]


def tree(folder):
    """Every file below a folder and its bytes."""
    folder = Path(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
