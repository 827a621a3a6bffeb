"""Every kind of source, made for real in a temporary folder, ends in the same prepared images."""

import csv
import io
import json
import logging
import os
import subprocess
import sys
import tarfile
import zipfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.data.fake_hub import fake_hub
from tests.data.photos import encoded, photo, photo_folder

from epg.data.dataset import open_dataset
from epg.data.prepared.encode import PixelOptions, decode_stored
from epg.data.prepared.prepare import prepare
from epg.data.prepared.store import Store
from epg.data.sources import remote
from epg.data.sources.base import SourceOptions
from epg.data.sources.open import open_source
from epg.data.sources.remote import RemoteFile, RemoteFolderSource
from epg.data.sources.tables import TableSource
from epg.errors import DataError, UserError


def opened(path, **options):
    return open_source(str(path), SourceOptions(**options))


def contents(source):
    """{name: (class or None, bytes)}"""
    names = source.class_names
    return {
        source.describe(i): (names[source.labels[i]] if source.labels[i] >= 0 else None, source.read(i))
        for i in range(len(source))
    }


def expected(folder):
    return {f"{p.parent.name}/{p.name}": (p.parent.name, p.read_bytes()) for p in folder.glob("*/*.*")}


# Folders


def test_class_folders_nested_with_extensions_of_any_case(tmp_path):
    root = photo_folder(tmp_path / "in", classes=2, each=2)
    (root / "class0" / "deep" / "er").mkdir(parents=True)
    for name in ("class0/deep/er/x.JPEG", "class1/y.Png", "class1/z.TIF"):
        (root / name).write_bytes(encoded(photo(1), "JPEG" if name.endswith("G") else "PNG"))
    for name in ("class1/.hidden.jpg", "class1/notes.txt", "class1/Thumbs.db"):
        (root / name).write_bytes(b"x")
    found = contents(opened(root))
    assert len(found) == 7
    assert found["class0/deep/er/x.JPEG"][0] == "class0"
    assert found["class1/z.TIF"][0] == "class1"


def test_flat_and_mixed_folders(tmp_path):
    root = photo_folder(tmp_path / "in", classes=1, each=2)
    assert {label for label, _ in contents(opened(root / "class0")).values()} == {None}
    (root / "loose.jpg").write_bytes(encoded(photo(1)))
    with pytest.raises(DataError, match=r"loose\.jpg, lie in no class folder.*--labels none"):
        opened(root)
    assert {label for label, _ in contents(opened(root, labels="none")).values()} == {None}


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_splits(tmp_path, kind):
    root = tmp_path / "in"
    root.mkdir()
    photo_folder(root / "train", classes=2, each=2)
    photo_folder(root / "val", classes=2, each=1)
    source = root if kind == "folder" else pack(root, tmp_path / f"in.{kind}", prefix="in/")
    assert len(opened(source)) == 4
    assert len(opened(source, split="val")) == len(opened(source, split="test")) == 2
    assert contents(opened(source)) == expected(root / "train")
    with pytest.raises(UserError, match="choose one of"):
        opened(source, split="dev")


def test_a_missing_split_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no 'val' split: no folder or file"):
        opened(photo_folder(tmp_path / "in"), split="val")


def test_names_of_any_bytes(tmp_path):
    root = photo_folder(tmp_path / "in", classes=1, each=1)
    names = [b"\xff\xfe.jpg", b"new\nline.jpg", b"\xe2\x82\xac.jpg", b"a" * 251 + b".jpg", b"'; drop [red].jpg"]
    for i, name in enumerate(names):
        with open(os.path.join(os.fsencode(root), b"class0", name), "wb") as stream:
            stream.write(encoded(photo(i)))
    prepared = prepare(str(root), tmp_path / "out", PixelOptions(16), workers=1)
    assert prepared.manifest["images"] == 6
    assert prepared.manifest["rejected"] == 0
    from epg.data.prepared.store import Store

    stored = {Store(tmp_path / "out").name(i) for i in range(6)}
    assert {"class0/\\xff\\xfe.jpg", "class0/new\\nline.jpg", "class0/€.jpg"} <= stored


def test_links_that_loop_or_lead_nowhere_are_reported(tmp_path):
    root = photo_folder(tmp_path / "in", classes=1, each=1)
    (root / "class0" / "again").symlink_to(root)
    (root / "class0" / "self.jpg").symlink_to(root / "class0" / "self.jpg")
    (root / "class0" / "gone.jpg").symlink_to(root / "nothing.jpg")
    (root / "class0" / "copy.jpg").symlink_to(root / "class0" / "0.jpg")
    source = opened(root)
    assert sorted(contents(source)) == ["class0/0.jpg", "class0/copy.jpg"]
    reasons = {item.name: item.reason for item in source.rejected}
    assert "not followed" in reasons["class0/again"]
    assert set(reasons) == {"class0/again", "class0/self.jpg", "class0/gone.jpg"}


# Metadata


def write_metadata(root, rows, kind):
    if kind == "csv":
        with open(root / "metadata.csv", "w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("packed", ["folder", "zip", "tar.gz"])
def test_metadata_files_give_labels_by_column(tmp_path, kind, packed):
    root = photo_folder(tmp_path / "in", classes=2, each=3)
    rows = [
        {"file_name": "class0/0.jpg", "label": "cat", "breed": 1},
        {"file_name": "./class0/1.jpg", "label": "ant", "breed": 0},
        {"file_name": "class1/0.jpg", "label": "cat", "breed": 3},
        {"file_name": "class1/1.jpg", "label": "", "breed": 3},
        {"file_name": "../secret.jpg", "label": "cat", "breed": 3},
    ]
    write_metadata(root, rows, kind)
    source_path = root if packed == "folder" else pack(root, tmp_path / f"in.{packed}", prefix="top/")
    source = opened(source_path)
    assert source.class_names == ("ant", "cat")
    by_name = {name: label for name, (label, _) in contents(source).items()}
    assert by_name == {"class0/0.jpg": "cat", "class0/1.jpg": "ant", "class1/0.jpg": "cat"}
    assert {item.name for item in source.rejected} == {"class1/1.jpg", "../secret.jpg"}
    by_breed = opened(source_path, label_column="breed")
    assert by_breed.class_names == ("0", "1", "2", "3")
    assert opened(source_path, labels="none").class_names == ()
    with pytest.raises(DataError, match=r"--label-column colour.*file_name, label, breed"):
        opened(source_path, label_column="colour")


def test_metadata_that_cannot_be_read_is_named(tmp_path):
    root = photo_folder(tmp_path / "in")
    (root / "metadata.jsonl").write_text('{"file_name": "a.jpg"\n')
    with pytest.raises(DataError, match=r"metadata\.jsonl cannot be read"):
        opened(root)
    (root / "metadata.jsonl").unlink()
    (root / "metadata.csv").write_text("picture,label\na,b\n")
    with pytest.raises(DataError, match=r"every row needs a file_name.*its columns are picture, label"):
        opened(root)
    (root / "metadata.csv").write_text("name,label\na,b\n")
    with pytest.raises(DataError, match="none of the 1 images that its column name names"):
        opened(root)


# Archives


def pack(root, out, prefix=""):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    if out.name.endswith(".zip"):
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for i, path in enumerate(files):
                method = zipfile.ZIP_STORED if i % 2 else zipfile.ZIP_DEFLATED
                archive.write(path, prefix + str(path.relative_to(root)), method)
        return out
    mode = {"tar": "w", "gz": "w:gz", "bz2": "w:bz2", "xz": "w:xz", "tgz": "w:gz"}[out.name.rsplit(".", 1)[1]]
    with tarfile.open(out, mode) as archive:
        for path in files:
            archive.add(path, prefix + str(path.relative_to(root)))
    return out


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"])
@pytest.mark.parametrize("prefix", ["", "./", "some/where/"])
def test_archives_hold_the_same_as_folders(tmp_path, suffix, prefix):
    root = photo_folder(tmp_path / "in", classes=3, each=2)
    source = opened(pack(root, tmp_path / f"a.{suffix}", prefix))
    assert contents(source) == expected(root)
    order = np.random.default_rng(0).permutation(len(source))  # also backwards through a compressed archive
    assert [source.read(int(i)) for i in order] == [expected(root)[source.describe(int(i))][1] for i in order]


def test_an_archive_is_prepared_by_several_processes(tmp_path):
    root = photo_folder(tmp_path / "in", classes=4, each=10)
    archives = [pack(root, tmp_path / f"a.{suffix}") for suffix in ("zip", "tar.gz")]
    hashes = {
        prepare(str(a), tmp_path / f"{a.name}-{w}", PixelOptions(16), workers=w).manifest["content_sha256"]
        for a in archives
        for w in (0, 2)
    }
    assert len(hashes) == 1


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_dialects_and_long_names(tmp_path, tar_format):
    data = encoded(photo(1))
    names = ["class0/a.jpg", "class0/" + "x" * 90 + "/b.jpg"]
    if tar_format != tarfile.USTAR_FORMAT:
        names += ["class0/" + "y" * 200 + "/" + "z" * 100 + ".jpg", "class0/é€.jpg"]
    with tarfile.open(tmp_path / "a.tar", "w", format=tar_format) as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    assert set(contents(opened(tmp_path / "a.tar"))) == set(names)


def unlike(kinds, rng):
    """A tar of members of any kind in any order, what its images are, and which cannot be read."""
    stream, images, links = io.BytesIO(), {}, set()
    for i, kind in enumerate(kinds):
        member = tarfile.TarInfo(f"c{i % 3}/{i}.png")
        data = rng.bytes(int(rng.choice([1, 300, 511, 512, 513, 3000])))
        member.size = len(data)
        tar_format = tarfile.USTAR_FORMAT
        if kind == "folder":
            member.name, member.type, member.size = f"c{i % 3}", tarfile.DIRTYPE, 0
        elif kind == "old folder":
            member.name, member.size = f"c{i % 3}/{i}.png/", 0
        elif kind == "link":
            member.type, member.linkname, member.size = tarfile.SYMTYPE, "0.png", 0
            links.add(member.name)
        elif kind == "text":
            member.name += ".txt"
        else:
            if kind == "dot":
                member.name = f"./{member.name}"
            elif kind in ("gnu", "pax", "prefix"):
                member.name = f"c{i % 3}/{'x' * 95}/{i}.png"
                tar_format = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}.get(kind, tar_format)
            images[member.name.removeprefix("./")] = data
        stream.write(member.tobuf(tar_format))
        stream.write(data[: member.size] + bytes(-member.size % 512))
    return stream.getvalue() + bytes(1024), images, links


def test_members_of_all_kinds_are_read_alike(tmp_path):
    rng = np.random.default_rng(0)
    others = ["folder", "old folder", "link", "text", "dot", "gnu", "pax", "prefix"]
    kinds = [kind for other in rng.permutation(others * 3) for kind in ["file"] * rng.integers(90) + [str(other)]]
    data, images, links = unlike(kinds, rng)
    (tmp_path / "a.tar").write_bytes(data)
    source = opened(tmp_path / "a.tar")
    assert {source.describe(i): source.read(i) for i in range(len(source))} == images
    assert {rejected.name for rejected in source.rejected} == links
    with tarfile.open(tmp_path / "a.tar") as archive:  # says the same
        files = [member.name.removeprefix("./") for member in archive if member.isfile()]
    assert set(images) == {name for name in files if name.endswith(".png")}


@pytest.mark.parametrize("place", [0, 124, 150, 300])
def test_a_damaged_header_among_ordinary_ones_is_found(tmp_path, place):
    data, images, _ = unlike(["file"] * 200, np.random.default_rng(0))
    whole = opened_bytes(tmp_path, data)
    start = sorted(whole.entries["offset"].tolist())[150] - 512
    damaged = bytearray(data)
    damaged[start + place] ^= 1
    assert len(whole) == len(images)
    with pytest.raises(DataError, match=f"no tar header at byte {start}"):
        opened_bytes(tmp_path, bytes(damaged))


def opened_bytes(folder, data):
    (folder / "a.tar").write_bytes(data)
    return opened(folder / "a.tar")


def test_a_zip_whose_names_and_comments_look_like_records(tmp_path):
    members = {f"c/{i}" + "PK\x01\x02" * (i % 3) + "x" * 40 + ".png": bytes([i]) * (i + 1) for i in range(60)}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i, (name, data) in enumerate(members.items()):
            info = zipfile.ZipInfo(name)
            info.comment = b"PK\x01\x02" * (20 * (i % 2))
            archive.writestr(info, data)
    source = opened(tmp_path / "a.zip")
    assert {source.names[i].decode(): source.read(i) for i in range(60)} == members


def test_webdataset_style_tars_work_without_labels(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i in range(3):
            for suffix, data in ((".jpg", encoded(photo(i))), (".cls", b"3")):
                member = tarfile.TarInfo(f"{i:05d}{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    assert set(contents(opened(tmp_path / "a.tar"))) == {f"{i:05d}.jpg" for i in range(3)}


def test_a_zip_beyond_65535_members_is_read(tmp_path):
    data = encoded(Image.new("RGB", (1, 1)), "PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in range(66_000):
            archive.writestr(f"c/{i}.png", data)
    source = opened(tmp_path / "a.zip")
    assert len(source) == 66_000
    assert source.read(65_999) == data


# Tables


def table_of(root, with_names=True):
    files = sorted(root.glob("*/*.jpg"))
    labels = [int(path.parent.name[-1]) for path in files]
    features = {"picture": {"_type": "Image"}, "kind": {"_type": "ClassLabel", "names": ["class0", "class1", "class2"]}}
    schema = pa.schema(
        [("picture", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("kind", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})} if with_names else None,
    )
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    return pa.table([pa.array(images, schema.field(0).type), pa.array(labels)], schema=schema)


def write_table(table, path):
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=4)
    else:
        new = pa.ipc.new_stream if "stream" in path.name else pa.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow"])
def test_tables(tmp_path, name):
    root = photo_folder(tmp_path / "in", classes=3, each=3)
    source = opened(write_table(table_of(root), tmp_path / name))
    assert sorted(contents(source).values()) == sorted(expected(root).values())
    assert source.class_names == ("class0", "class1", "class2")
    assert opened(tmp_path / name, labels="none").class_names == ()
    with pytest.raises(DataError, match=r"--image-column nope.*picture, kind"):
        opened(tmp_path / name, image_column="nope")
    prepared = prepare(str(tmp_path / name), tmp_path / "out", PixelOptions(16), workers=1)
    assert prepared.manifest["images"] == 9


BYTES = [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())]
STRUCTS = [pa.struct([("bytes", kind), ("path", pa.string())]) for kind in BYTES[:3]]


@pytest.mark.parametrize("kind", [*BYTES, *STRUCTS], ids=str)
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_images_of_every_type_of_column_and_beside_the_table(tmp_path, name, kind):
    images = [encoded(photo(number, 16, 16), "PNG") for number in range(4)]
    values = list(images)
    if pa.types.is_struct(kind):
        values = [{"bytes": image, "path": None} for image in images]
        (tmp_path / "beside").mkdir()
        (tmp_path / "beside" / "1.png").write_bytes(images[1])
        values[1] = {"bytes": None, "path": "beside/1.png"}
    column = pa.array(images).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(values, kind)
    path = write_table(pa.table({"picture": column}), tmp_path / name)
    assert [opened(path).read(i) for i in range(4)] == images
    direct = open_dataset(path, image_size=16)
    direct.order(0)  # makes the copy that is read at random
    store = Store(prepare(str(path), tmp_path / "out", PixelOptions(16)).folder)
    assert all((direct[i][0] == decode_stored(store.read(i), 16, 3)).all() for i in range(4))


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname", "link.png", "gone.png"])
def test_a_table_cannot_name_images_outside_of_its_folder(tmp_path, path):
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(encoded(photo(1, 16, 16), "PNG"))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    column = pa.array([{"bytes": None, "path": path}], STRUCTS[0])
    table = write_table(pa.table({"picture": column}), folder / "a.parquet")
    words = "is not there" if path == "gone.png" else "outside of the folder of the table"
    with pytest.raises(DataError, match=rf"its image (is )?{path}.*{words}|its image {path} {words}"):
        opened(table).read(0)


def test_tables_without_features_take_the_named_label_column(tmp_path):
    root = photo_folder(tmp_path / "in", classes=3, each=3)
    path = write_table(table_of(root, with_names=False), tmp_path / "a.parquet")
    assert opened(path).class_names == ()
    assert opened(path, label_column="kind").class_names == ("0", "1", "2")
    with pytest.raises(DataError, match="no label column"):
        opened(path, labels="column")


def test_folders_of_tables_by_split(tmp_path):
    root = photo_folder(tmp_path / "in", classes=3, each=3)
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        write_table(table_of(root), tmp_path / "hub" / "data" / f"{name}.parquet")
    assert len(opened(tmp_path / "hub")) == 18
    assert len(opened(tmp_path / "hub", split="test")) == 9
    with pytest.raises(UserError, match="has no 'val' split, only test-00000-of-00001, train"):
        opened(tmp_path / "hub", split="val")


def test_rows_without_an_image_are_reported(tmp_path):
    root = photo_folder(tmp_path / "in", classes=3, each=3)
    table = table_of(root)
    images = table.column(0).to_pylist()
    images[2] = None
    images[4] = {"bytes": None, "path": "/etc/passwd"}
    table = table.set_column(0, table.schema.field(0), pa.array(images, table.schema.field(0).type))
    prepared = prepare(str(write_table(table, tmp_path / "a.parquet")), tmp_path / "out", PixelOptions(16))
    assert prepared.manifest["rejected"] == 2
    assert "a.parquet row 4" in (tmp_path / "out" / "report.jsonl").read_text()


def test_files_that_are_no_tables_are_named(tmp_path):
    for name in ("a.parquet", "a.arrow"):
        (tmp_path / name).write_bytes(b"not a table at all")
        with pytest.raises(DataError, match=f"{name} is not a readable"):
            opened(tmp_path / name)


# Hub and object stores


def test_hub_names_go_through_datasets(tmp_path, monkeypatch):
    """The library loads local folders by the same call as Hub names: the path below it is the real one."""
    import datasets

    from epg.data.sources.remote import from_datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    root = photo_folder(tmp_path / "in", classes=3, each=3)
    (tmp_path / "hub").mkdir()
    write_table(table_of(root), tmp_path / "hub" / "train-00000-of-00001.parquet")
    source = from_datasets(str(tmp_path / "hub"), SourceOptions())
    assert sorted(contents(source).values()) == sorted(expected(root).values())
    with pytest.raises(DataError, match="has no 'validation' split"):
        from_datasets(str(tmp_path / "hub"), SourceOptions(split="validation"))


FROM_HUB = """
import sys
from pathlib import Path
from epg.cli import main
from epg.data.dataset import open_dataset
from epg.data.loading.loader import BatchLoader
out = Path(sys.argv[1])
flags = ["--image-size", "32", "--workers", "0"]
columns = ["--image-column", "picture", "--label-column", "kind"]
assert main(["prepare", "someone/pets", str(out / "a"), *flags, "--split", "validation", *columns]) == 0
assert main(["prepare", "hf://datasets/someone/pets", str(out / "b"), *flags]) == 0
streamed = open_dataset("hf://datasets/someone/pets", image_size=32)
(batch,) = next(iter(BatchLoader(streamed, batch_size=9, seed=0)))
assert sorted(batch.labels.tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
assert main(["prepare", "someone/nothing", str(out / "c"), *flags]) == 65
"""


def test_a_hub_data_set_by_name_and_by_address(tmp_path):
    """Against a server on this machine that speaks the Hub's protocol, in a process that knows no other Hub."""
    for split in ("train", "validation"):
        root = photo_folder(tmp_path / split, classes=3, each=3)
        (tmp_path / "hub" / "data").mkdir(parents=True, exist_ok=True)
        write_table(table_of(root), tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    with fake_hub(tmp_path / "hub", "someone/pets") as (address, asked):
        env = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", FROM_HUB, str(tmp_path)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert any("/resolve/" in path and path.endswith("validation-00000-of-00001.parquet") for path in asked)
    assert "someone/nothing: the Hub data set cannot be loaded" in done.stderr
    for name in ("a", "b"):
        store = Store(tmp_path / name)
        assert len(store) == 9
        assert [entry["images"] for entry in store.manifest["classes"]] == [3, 3, 3]
    assert Store(tmp_path / "a").manifest["source"] == "someone/pets"
    assert Store(tmp_path / "b").manifest["source"] == "hf://datasets/someone/pets"


def test_the_hub_is_asked_again_in_silence(monkeypatch, capsys):
    """Its library would warn of each of its tries; what comes of them is one error."""
    import datasets

    library, heard = logging.getLogger("huggingface_hub.utils._http"), []

    def unreachable(name):
        heard.append(library.isEnabledFor(logging.WARNING))
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "get_dataset_split_names", unreachable)
    with pytest.raises(DataError, match="Check the name and the connection"):
        remote.from_datasets("nobody/nothing", SourceOptions())
    assert [*heard, library.isEnabledFor(logging.WARNING)] == [False, True]
    assert "nobody/nothing: the Hub is asked for it" in capsys.readouterr().err


def test_an_unreachable_hub_is_explained(tmp_path):
    code = "import sys; from epg.cli import main; sys.exit(main())"
    flags = ["prepare", "nobody/nothing-of-this-name", str(tmp_path / "out"), "--image-size", "32"]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "c"), "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 65, done.stderr
    assert "Without internet: download it elsewhere" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "address",
    ["pipe:cat /etc/passwd", "http://127.0.0.1:9/x", "file:///etc", "memory://x", "zip::s3://b/x.zip", "ssh://h/x",
     "s3://b/x::file:///etc", "local:///etc", "simplecache::s3://b", "github://a:b@c/d"],
)  # fmt: skip
def test_other_schemes_are_refused_before_anything_is_opened(address, tmp_path):
    with pytest.raises((UserError, DataError), match=r"no such source|neither a file"):
        opened(address)


def test_object_stores(tmp_path):
    """On fsspec's in-memory store, which behaves like a bucket."""
    root = photo_folder(tmp_path / "in", classes=3, each=2)
    files = fsspec.filesystem("memory")
    files.rm("/bucket", recursive=True) if files.exists("/bucket") else None
    for path in root.rglob("*.jpg"):
        files.pipe(f"/bucket/train/{path.relative_to(root)}", path.read_bytes())
        files.pipe(f"/bucket/val/{path.relative_to(root)}", path.read_bytes())
    source = RemoteFolderSource(files, "/bucket", "s3://bucket", SourceOptions())
    assert contents(source) == expected(root)
    files.pipe("/bucket/t.parquet", write_table(table_of(root), tmp_path / "t.parquet").read_bytes())
    table = TableSource([("t.parquet", RemoteFile(files, "/bucket/t.parquet"))], "s3://bucket/t", SourceOptions())
    assert sorted(contents(table).values()) == sorted(expected(root).values())


def test_an_outage_ends_a_preparation_and_drops_no_image(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE_S", 0.001)
    failures = iter([ConnectionResetError("reset"), TimeoutError("slow")])

    def flaky():
        for error in failures:
            raise error
        return 7

    assert remote.attempt(flaky, "s3://b/x") == 7

    def down():
        raise ConnectionResetError("reset")

    with pytest.raises(UserError, match=r"s3://b/x: ConnectionResetError.*run the same command again") as caught:
        remote.attempt(down, "s3://b/x")
    assert not isinstance(caught.value, DataError)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match="pip install s3fs"):
        remote.connect("s3://bucket/x")


def test_addresses_lose_their_secrets():
    assert remote.public_name("s3://key:secret@bucket/x?token=1") == "s3://bucket/x"
