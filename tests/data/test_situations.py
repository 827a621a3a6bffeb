"""What people's folders, lists and arrays look like beyond the layouts of tools: read as meant, asked, or told."""

import json
import os
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.photos import encoded, photo
from tests.data.test_layouts import grey, labels_by_name, opened, prepared, put

from epg.data.dataset import NoSplitError
from epg.errors import DataError

CLASSES = ("cat", "dog")


def classes(root, *folders, count=3):
    return put(root, *(f"{folder}/{c}/{i}.png" for folder in folders for c in CLASSES for i in range(count)))


# Splits and parts


@pytest.mark.parametrize(
    ("train", "test"),
    [("trainval", "test"), ("traindir", "valdir"), ("trainset", "testset"), ("imgtrain", "imgtest"),
     ("train", "holdout"), ("1_train", "2_val"), ("train_256", "val_256")],
)  # fmt: skip
def test_splits_grown_together_with_other_words(tmp_path, train, test):
    classes(tmp_path, train, test)
    assert (opened(tmp_path).class_names, len(opened(tmp_path))) == (CLASSES, 6)
    assert opened(tmp_path, split="test").class_names == CLASSES


@pytest.mark.parametrize("name", ["contest", "trainer", "valley", "partition", "extract"])
def test_words_that_only_begin_or_end_like_splits(tmp_path, name):
    assert opened(put(tmp_path, f"{name}/0.png", "train/0.png")).class_names == tuple(sorted((name, "train")))


@pytest.mark.parametrize(
    "folders", [("fold1", "fold2"), ("color", "grayscale", "segmented"), ("a/images", "b/images"), ("lernen", "test")]
)
def test_folders_of_the_same_names_in_each_are_asked_about(tmp_path, capsys, folders):
    classes(tmp_path / "in", *folders)
    code, said = prepared(capsys, tmp_path / "in", tmp_path / "out")
    assert (code, "hold folders of the same names (cat ...)" in said, "--labels folder" in said) == (65, True, True)
    named = f"{tmp_path}/in/{folders[0]}"
    assert prepared(capsys, named, tmp_path / "out")[0] == 0
    code, said = prepared(capsys, tmp_path / "in", tmp_path / "all", "--labels", "folder")
    assert f"of {len(folders)} classes" in said


def test_folders_called_by_sizes_are_asked_about(tmp_path):
    put(tmp_path, *(f"{size}x{size}/{i}.png" for size in (64, 128) for i in range(3)))
    with pytest.raises(DataError, match=r"128x128, 64x64 are called by sizes.*--data.labels folder"):
        opened(tmp_path)


def test_classes_may_have_folders_of_their_own(tmp_path):
    put(tmp_path, "cat/home/0.png", "cat/zoo/0.png", "dog/street/0.png")
    assert opened(tmp_path).class_names == CLASSES
    assert any("3 folders lie below" in line for line in opened(tmp_path).report())


def test_low_resolutions_and_thumbnails_are_no_classes(tmp_path):
    put(tmp_path / "a", *(f"HR/{i:04d}.png" for i in range(4)), *(f"LR/{i:04d}x4.png" for i in range(4)))
    with pytest.raises(DataError, match=r"HR and LR look like .* another version of them.*name their folder: .*/a/HR"):
        opened(tmp_path / "a")
    put(tmp_path / "b", *(f"{c}/{i}.png" for c in CLASSES for i in range(3)))
    put(tmp_path / "b", *(f"{c}/thumbs/{i}.png" for c in CLASSES for i in range(3)))
    with pytest.raises(DataError, match="another version of it"):
        opened(tmp_path / "b")


def test_a_split_inside_of_its_own_archive(tmp_path):
    for split in ("train", "val"):
        with zipfile.ZipFile(tmp_path / f"{split}.zip", "w") as archive:
            for c in CLASSES:
                archive.writestr(f"{split}/{c}/{split}.png", encoded(photo(1), "PNG"))
    assert labels_by_name(opened(tmp_path)) == {"train.png": "dog"}
    for split in ("val", "test"):
        assert labels_by_name(opened(tmp_path, split=split)) == {"val.png": "dog"}


# Lists of labels

ROWS = [(f"{i}.jpg", CLASSES[i % 2], "train" if i < 4 else "test") for i in range(8)]
TEXT = "file_name,label,{}\n" + "".join(f"{row[0]},{row[1]},{row[2]}\n" for row in ROWS)


@pytest.mark.parametrize("column", ["split", "data set", "phase"])
def test_a_column_of_splits_is_followed(tmp_path, column):
    put(tmp_path, *(row[0] for row in ROWS), ("metadata.csv", TEXT.format(column).encode()))
    train, test = opened(tmp_path), opened(tmp_path, split="test")
    assert (len(train), len(test), train.class_names) == (4, 4, CLASSES)
    assert f"split train: train in column {column} of metadata.csv; labels: column label" in train.report()[1]
    assert not any("left out" in line or "twice" in line for line in train.report())
    with pytest.raises(NoSplitError):
        opened(tmp_path, split="val")


def test_metadata_as_parquet_and_in_other_cases(tmp_path):
    put(tmp_path / "a", *(row[0] for row in ROWS))
    table = {"file_name": [row[0] for row in ROWS], "label": [row[1] for row in ROWS]}
    pq.write_table(pa.table(table), tmp_path / "a/metadata.parquet")
    assert opened(tmp_path / "a").class_names == CLASSES
    put(tmp_path / "b", *(row[0] for row in ROWS), ("Metadata.CSV", TEXT.format("x").encode()))
    assert opened(tmp_path / "b").class_names == CLASSES


@pytest.mark.parametrize("name", ["labels.json", "annotations.json", "train.jsonl", "train.csv", "Labels.TXT"])
def test_lists_of_labels_are_named(tmp_path, capsys, name):
    put(tmp_path / "in", *(f"images/{i}.jpg" for i in range(4)))
    rows = [{"file_name": f"images/{i}.jpg", "label": i % 2} for i in range(4)]
    text = {"json": json.dumps(rows), "jsonl": "\n".join(map(json.dumps, rows))}.get(name.rpartition(".")[2])
    text = text or "file_name,label\n" + "".join(f"images/{i}.jpg,{i % 2}\n" for i in range(4))
    put(tmp_path / "in", (name, text.encode()))
    code, said = prepared(capsys, tmp_path / "in", tmp_path / "out")
    assert (code, f"--label-file {name}" in said) == (0, True)
    assert "2 classes: 0 (2), 1 (2)" in prepared(capsys, tmp_path / "in", tmp_path / "o", "--label-file", name)[1]
    code, said = prepared(capsys, tmp_path / "in" / name, tmp_path / "o2")
    assert (code, "give the folder of the images, and --label-file" in said) == (65, True)


@pytest.mark.parametrize(
    ("suffix", "text", "names"),
    [("txt", "{}", CLASSES), ("cls.txt", "{}", CLASSES), ("txt", "a photo of a {}", ()), ("txt", "0 0.5 0.5 1 1", ())],
)
def test_a_word_beside_each_image_is_its_label(tmp_path, suffix, text, names):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i in range(12):
            for end, data in (("jpg", encoded(photo(i))), (suffix, text.format(CLASSES[i % 2]).encode())):
                put(tmp_path, (f"{i:04d}.{end}", data))
                archive.add(tmp_path / f"{i:04d}.{end}", f"{i:04d}.{end}")
    assert opened(tmp_path / "a.tar").class_names == names


def test_classes_in_file_names_are_told(tmp_path, capsys):
    put(tmp_path / "in", *(f"{c}.{i}.jpg" for c in CLASSES for i in range(4)))
    code, said = prepared(capsys, tmp_path / "in", tmp_path / "out")
    assert (code, "file names may hold classes (cat, dog)" in said) == (0, True)
    put(tmp_path / "plain", *(f"IMG_{i}.jpg" for i in range(4)), *(f"DSC_{i}.jpg" for i in range(4)))
    assert "may hold classes" not in prepared(capsys, tmp_path / "plain", tmp_path / "out2")[1]


# Folders


@pytest.mark.parametrize(
    "name",
    ["#recycle", "@Recycle", "@Recently-Snapshot", "#snapshot", "RECYCLER", "node_modules", "wandb", ".thumbnails"],
)
def test_folders_of_other_tools_are_no_classes(tmp_path, name):
    classes(tmp_path, "in")
    put(tmp_path / "in", f"{name}/x/0.png")
    assert opened(tmp_path / "in").class_names == CLASSES


@pytest.mark.parametrize("name", ["recycle", "wandb2", "@home", "#1", "runs"])
def test_other_names_are_classes(tmp_path, name):
    assert name in opened(put(tmp_path, "cat/0.png", f"{name}/0.png")).class_names


def test_folders_without_an_image_are_told(tmp_path):
    put(tmp_path, "cat/0.png", "dog/0.png", ("emu/0.heic", b"x"), ("fox/0", grey(1)))
    (tmp_path / "gnu").mkdir()
    assert "note: folders without an image that is read: emu, fox, gnu" in opened(tmp_path).report()


def test_links_to_what_is_there_itself_are_told(tmp_path):
    root = classes(tmp_path, "in") / "in"
    os.symlink(root / "cat", root / "latest")
    assert any("1 links lead to what is here itself" in line for line in opened(root).report())
    (tmp_path / "links").mkdir()
    for c in CLASSES:
        os.symlink(root / c, tmp_path / "links" / c)
    assert not any("links" in line for line in opened(tmp_path / "links").report()[1:])


def test_many_kinds_are_summed_up(tmp_path):
    put(tmp_path, "a.png", *((f"{c}{d}", b"x") for c in "abcde" for d in "uvwxyz"), ("IMG_1", b"x"), ("IMG_2", b"x"))
    line = next(line for line in opened(tmp_path).report() if line.startswith("not read"))
    assert line.startswith("not read: 2 x no ending, ")
    assert line.endswith("19 others")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [("{0:04d}/{1}{0:04d}.png", (12, 345)), ("{0:04d}/{0}.png", (12, 345)), ("{0}/{0}{1}f.png", ("3f", "a0"))],
)
def test_folders_that_are_parts_of_file_names_are_asked_about(tmp_path, pattern, names):
    put(tmp_path, *(pattern.format(name, i) for name in names for i in range(1, 3)))
    with pytest.raises(DataError, match=r"parts of the names of their images.*--data.labels none if they are pieces"):
        opened(tmp_path)


@pytest.mark.parametrize("pattern", ["{0:02d}/{0:02d}_{1}.png", "{0:02d}/{1:03d}.png", "n{0:04d}/n{0:04d}_{1}.png"])
def test_files_that_are_called_by_their_class_stay(tmp_path, pattern):
    put(tmp_path, *(pattern.format(k, i) for k in range(1, 4) for i in range(3)))
    assert opened(tmp_path).num_classes == 3


def test_label_maps_of_many_folders(tmp_path):
    def classes_of(*tops):
        return opened(put(tmp_path / "-".join(tops), *(f"{top}/{i}.jpg" for top in tops for i in range(3)))).class_names

    assert classes_of("normal", "pneumonia") == ("normal", "pneumonia")
    assert len(classes_of("center", "donut", "edge-loc")) == 3
    put(tmp_path / "city", *(f"leftImg8bit/{s}/u_{i}_leftImg8bit.png" for s in ("train", "val") for i in range(3)))
    put(tmp_path / "city", *((f"gtFine/{s}/u_{i}_gt.png", grey(i)) for s in ("train", "val") for i in range(3)))
    with pytest.raises(DataError, match="leftImg8bit and gtFine look like pictures"):
        opened(tmp_path / "city")


def test_files_beside_archives_are_told(tmp_path, capsys):
    put(tmp_path / "in", ("trainLabels.csv", b"id,label\n0,cat\n"))
    for split in ("train", "test"):
        with zipfile.ZipFile(tmp_path / f"in/{split}.zip", "w") as archive:
            archive.writestr(f"{split}/0.png", encoded(photo(1), "PNG"))
    code, said = prepared(capsys, tmp_path / "in", tmp_path / "out")
    assert (code, "not read: trainLabels.csv" in said) == (0, True)


def test_lists_of_splits_that_are_not_followed_are_told(tmp_path):
    put(tmp_path, *(f"images/{c}/{i}.jpg" for c in CLASSES for i in range(3)), ("meta/test.txt", b"cat/1\n"))
    assert any("meta/test.txt may list the images of splits" in line for line in opened(tmp_path).report())
    put(tmp_path, ("meta/test.txt", b"images/cat/0.jpg a\nimages/dog/0.jpg b\n"))
    assert not any("list the images" in line for line in opened(tmp_path, label_file="meta/test.txt").report())


def test_several_frames_are_counted(tmp_path):
    frames = [photo(i, 8, 8) for i in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.tif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "c.tif")
    assert any("2 of 3 images: of several frames or pages" in line for line in opened(tmp_path).report())


@pytest.mark.parametrize("path", ["/kaggle/input/x/images/{}.JPG", "images/{}.png", "x/images/{}", "{}"])
def test_paths_of_another_place_in_a_list(tmp_path, path):
    rows = "".join(f"{path.format(i)},{CLASSES[i % 2]}\n" for i in range(6))
    put(tmp_path, *(f"images/{i}.jpg" for i in range(6)), ("metadata.csv", f"path,label\n{rows}".encode()))
    dataset = opened(tmp_path)
    assert labels_by_name(dataset) == {f"{i}.jpg": CLASSES[i % 2] for i in range(6)}
    assert any("are taken without" in line for line in dataset.report()) == ("x/" in path)


def test_one_list_for_folders_with_files_of_the_same_names(tmp_path):
    rows = [(s, i, CLASSES[(i + (s == "test")) % 2]) for s in ("train", "test") for i in range(4)]
    text = "file_name,label\n" + "".join(f"{s}/{i}.jpg,{label}\n" for s, i, label in rows)
    put(tmp_path, *(f"{s}/{i}.jpg" for s, i, _ in rows), ("metadata.csv", text.encode()))
    for split in ("train", "test"):
        labels = labels_by_name(opened(tmp_path, split=split))
        assert labels == {f"{i}.jpg": label for s, i, label in rows if s == split}
    (tmp_path / "test/metadata.csv").write_bytes(text.encode())
    with pytest.raises(DataError, match="none of the 8 images"):
        opened(tmp_path / "test")  # whether train/0.jpg or test/0.jpg is meant cannot be known


def test_captions_beside_class_folders_are_told(tmp_path):
    rows = "".join(f"{c}/{i}.png,a photo {i}\n" for c in CLASSES for i in range(3))
    classes(tmp_path / "in", ".")
    put(tmp_path / "in", ("metadata.csv", f"file_name,text\n{rows}".encode()))
    assert any("--data.labels folder uses them instead" in line for line in opened(tmp_path / "in").report())
    assert opened(tmp_path / "in", labels="folder").class_names == CLASSES


# Arrays and tables


def test_labels_within_a_struct(tmp_path):
    images = [{"bytes": grey(i), "path": None} for i in range(6)]
    rows = {"image": images, "labels": [{"label": i % 3, "text": "x"} for i in range(6)]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    assert opened(tmp_path / "a.parquet").labels.tolist() == [0, 1, 2, 0, 1, 2]
    boxes = {"image": images, "objects": [{"category": [0, 1], "area": [1.0, 2.0]} for _ in range(6)]}
    pq.write_table(pa.table(boxes), tmp_path / "b.parquet")
    assert opened(tmp_path / "b.parquet").num_classes == 0
    assert opened(tmp_path / "a.parquet", label_column="labels.text").class_names == ("x",)


@pytest.mark.parametrize("suffix", [".tbz2", ".txz", ".TGZ"])
def test_short_endings_of_archives(tmp_path, suffix):
    with tarfile.open(
        tmp_path / f"a{suffix}", f"w:{ {'.tbz2': 'bz2', '.txz': 'xz', '.TGZ': 'gz'}[suffix] }"
    ) as archive:
        archive.add(put(tmp_path, "0.png") / "0.png", "cat/0.png")
    assert opened(tmp_path / f"a{suffix}").class_names == ("cat",)


def test_arrays_beside_labels_are_told(tmp_path):
    images = np.zeros((4, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(4) % 2, class_names=np.array(CLASSES))
    assert "class_names not read" in opened(tmp_path / "a.npz").report()[1]


def test_a_column_of_splits_in_a_table_is_told(tmp_path):
    rows = {"image": [grey(i) for i in range(4)], "label": [0, 1, 0, 1], "split": ["train", "test"] * 2}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    assert any("column split of a.parquet is not followed" in line for line in opened(tmp_path / "a.parquet").report())
