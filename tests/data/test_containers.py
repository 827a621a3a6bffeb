"""The same images in every container and layout: the same labels and the same pixels, prepared or read directly."""

import hashlib
import io
import json
import tarfile
import zipfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.data.photos import encoded, photo

from epg.data.dataset import open_dataset
from epg.data.prepared.encode import PixelOptions
from epg.data.prepared.prepare import prepare

SIZE, CLASSES, EACH = 16, ("ant", "bee", "cat"), 3


def images():
    """{(class, number): PNG of a photograph}"""
    return {(c, i): encoded(photo(10 * k + i, 40, 30), "PNG") for k, c in enumerate(CLASSES) for i in range(EACH)}


def content(dataset):
    """Sha256 over all labels, as class names, and pixels, whatever their order."""
    each = []
    for index in range(len(dataset)):
        pixels, label = dataset[index]
        name = dataset.class_names[label] if label >= 0 else ""
        each.append(hashlib.sha256(name.encode() + np.ascontiguousarray(pixels).tobytes()).digest())
    return len(each), dataset.class_names, hashlib.sha256(b"".join(sorted(each))).hexdigest()


# Layouts: files by relative path


def class_folders(prefix="", suffix=""):
    return {f"{prefix}{c}/{suffix}{c}{i}.png": data for (c, i), data in images().items()}


def described(name, text):
    flat = {f"{c}{i}.png": data for (c, i), data in images().items()}
    return {**flat, name: text.encode()}


ROWS = [(f"{c}{i}.png", c) for c, i in images()]
LAYOUTS = {
    "classes": class_folders,
    "deep": lambda: class_folders(suffix="deep/er/"),
    "within": lambda: class_folders("a/b/"),
    "splits": lambda: {**class_folders("Train/"), "valid/ant/x.png": encoded(photo(1), "PNG")},
    "far splits": lambda: {**class_folders("x/y/training_set/"), "x/y/test_set/ant/x.png": encoded(photo(1), "PNG")},
    "splits below": lambda: {**class_folders(suffix="train/"), "ant/test/x.png": encoded(photo(1), "PNG")},
    "csv": lambda: described("metadata.csv", "file_name,label\n" + "".join(f"{n},{c}\n" for n, c in ROWS)),
    "tsv": lambda: described("metadata.csv", "image;class\n" + "".join(f"{n} ; {c}\n" for n, c in ROWS)),
    "jsonl": lambda: described(
        "metadata.jsonl", "".join(json.dumps({"file_name": n, "label": c}) + "\n" for n, c in ROWS)
    ),
    "edm": lambda: {
        **{f"{k // 4:05d}/{n}": data for k, (n, data) in enumerate(described("x", "").items()) if n != "x"},
        "dataset.json": json.dumps(
            {"labels": [[f"{k // 4:05d}/{n}", c] for k, (n, c) in enumerate(ROWS)]}
        ).encode(),
    },
    "webdataset": lambda: {
        **{f"{c}{i}.png": data for (c, i), data in images().items()},
        **{f"{c}{i}.cls": c.encode() for c, i in images()},
    },
    "json beside": lambda: {
        **{f"{c}{i}.png": data for (c, i), data in images().items()},
        **{f"{c}{i}.json": json.dumps({"label": c, "caption": "x"}).encode() for c, i in images()},
    },
    "leavings": lambda: {
        **class_folders(),
        "__MACOSX/ant/._ant0.png": b"x",
        "@eaDir/ant0.png": b"x",
        "bee/.ipynb_checkpoints/bee0.png": b"x",
        "$RECYCLE.BIN/x.png": b"x",
        "bee/Thumbs.db": b"x",
        "runs/small/run.lock": b"",
        "runs/small/previews/step-1.png": b"x",
        "contact-sheet.png": b"x",
        "notes.txt": b"x",
    },
}  # fmt: skip


# Containers


def folder(place, files):
    for name, data in files.items():
        (place / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "f" / name).write_bytes(data)
    return place / "f"


def packed_zip(place, files):
    with zipfile.ZipFile(place / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return place / "a.zip"


def packed_tar(place, files, name="a.tar", mode="w"):
    with tarfile.open(place / name, mode) as archive:
        for path, data in files.items():
            member = tarfile.TarInfo(f"./{path}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return place / name


def packed_gz(place, files):
    return packed_tar(place, files, "a.tar.gz", "w:gz")


def shards(place, files):
    """Three archives; files of one sample stay together, label files come in the first."""
    (place / "s").mkdir()
    keys = sorted({name.rpartition(".")[0] for name in files})
    for number in range(3):
        mine = set(keys[number::3])
        chosen = {n: d for n, d in files.items() if n.rpartition(".")[0] in mine}
        packed_tar(place / "s", chosen, f"set-{number:05d}.tar")
    return place / "s"


CONTAINERS = [folder, packed_zip, packed_tar, packed_gz, shards]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return content(open_dataset(folder(tmp_path_factory.mktemp("x"), class_folders()), image_size=SIZE))


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_in_containers(tmp_path, layout, container, expected):
    source = container(tmp_path, LAYOUTS[layout]())
    assert content(open_dataset(source, image_size=SIZE)) == expected
    prepare(str(source), tmp_path / "out", PixelOptions(SIZE))
    assert content(open_dataset(tmp_path / "out", image_size=SIZE)) == expected


def as_parquet(place, pixels, labels):
    pq.write_table(pa.table({"image": pixels, "class": [CLASSES[k] for k in labels]}), place / "t.parquet", None)
    return place / "t.parquet"


def as_hub_parquet(place, pixels, labels):
    features = datasets.Features({"image": datasets.Image(), "kind": datasets.ClassLabel(names=list(CLASSES))})
    rows = {"image": [{"bytes": data, "path": None} for data in pixels], "kind": labels}
    datasets.Dataset.from_dict(rows, features).to_parquet(place / "train-00000-of-00001.parquet")
    datasets.Dataset.from_dict({k: v[:1] for k, v in rows.items()}, features).to_parquet(place / "test.parquet")
    return place


def as_saved(place, pixels, labels):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    rows = {"image": [{"bytes": data, "path": None} for data in pixels], "label": labels}
    saved = datasets.Dataset.from_dict(rows, features)
    saved.save_to_disk(place / "saved")
    datasets.load_from_disk(str(place / "saved")).map(lambda row: row, load_from_cache_file=False)
    (place / "saved" / "cache-0123456789abcdef.arrow").write_bytes(
        next((place / "saved").glob("data-*.arrow")).read_bytes()
    )
    return place / "saved"


def as_saved_splits(place, pixels, labels):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    rows = {"image": [{"bytes": data, "path": None} for data in pixels], "label": labels}
    train = datasets.Dataset.from_dict(rows, features)
    datasets.DatasetDict({"train": train, "validation": train.select([0])}).save_to_disk(place / "saved")
    return place / "saved"


def arrays(pixels, labels):
    stacked = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in pixels])
    return stacked, np.array([CLASSES[k] for k in labels])


def as_npz(place, pixels, labels):
    images, names = arrays(pixels, labels)
    np.savez(place / "a.npz", images, names)
    return place / "a.npz"


def as_packed_npz(place, pixels, labels):
    images, names = arrays(pixels, labels)
    np.savez_compressed(
        place / "a.npz", train_images=images, train_labels=names[:, None], val_images=images[:1], val_labels=names[:1]
    )
    return place / "a.npz"


def as_npy(place, pixels, labels):
    images, names = arrays(pixels, labels)
    np.save(place / "images.npy", np.asfortranarray(images.transpose(0, 3, 1, 2)))
    np.save(place / "labels.npy", names)
    return place / "images.npy"


TABLES = [as_parquet, as_hub_parquet, as_saved, as_saved_splits, as_npz, as_packed_npz, as_npy]


@pytest.mark.parametrize("table", TABLES)
def test_tables_and_arrays(tmp_path, table, expected, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "in").mkdir()
    pixels, labels = list(images().values()), [CLASSES.index(c) for c, _ in images()]
    source = table(tmp_path / "in", pixels, labels)
    dataset = open_dataset(source, image_size=SIZE)
    assert content(dataset) == expected
    dataset.order(0)  # from now on in any order, from a copy where it must be
    assert content(dataset) == expected
    prepare(str(source), tmp_path / "out", PixelOptions(SIZE))
    assert content(open_dataset(tmp_path / "out", image_size=SIZE)) == expected


@pytest.mark.parametrize("container", CONTAINERS)
def test_fingerprints_do_not_know_the_container_but_the_content(tmp_path, container):
    source = container(tmp_path, class_folders())
    (tmp_path / "other").mkdir()
    plain = open_dataset(folder(tmp_path / "other", class_folders()), image_size=SIZE)
    ordered = [c for c in CONTAINERS if c is not shards]
    if container in ordered:
        assert open_dataset(source, image_size=SIZE).fingerprint() == plain.fingerprint()
    files = class_folders()
    name = next(iter(files))
    changed = bytearray(files[name])
    changed[-20] ^= 1  # of the same size
    (tmp_path / "other" / "f" / name).write_bytes(bytes(changed))
    after = open_dataset(tmp_path / "other" / "f", image_size=SIZE)
    assert after.fingerprint() != plain.fingerprint()
