"""Layouts that people have: read as they are meant, or refused or named with what to do. Through the commands."""

import io
import json
import os
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from tests.data.photos import encoded, photo

from epg.cli import main
from epg.data.dataset import NoSplitError, open_dataset
from epg.errors import DataError


def put(root, *names, size=(32, 32)):
    """A photograph for each name, in the format of its ending; other contents by a (name, bytes) pair."""
    for k, item in enumerate(names):
        name, data = item if isinstance(item, tuple) else (item, None)
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {"png": "PNG", "webp": "WEBP"}.get(name.rpartition(".")[2].lower(), "JPEG")
        path.write_bytes(encoded(photo(k, *size), kind) if data is None else data)
    return root


def grey(value):
    stream = io.BytesIO()
    Image.new("L", (32, 32), value).save(stream, "PNG")
    return stream.getvalue()


def opened(root, **options):
    return open_dataset(root, image_size=8, **options)


def labels_by_name(dataset):
    names = (dataset.describe(i).replace(":", "/").rpartition("/")[2].strip() for i in range(len(dataset)))
    return {n: dataset.class_names[k] if k >= 0 else None for n, k in zip(names, dataset.labels.tolist(), strict=True)}


def prepared(capsys, source, out, *flags):
    """Exit code and what was said, of `epg prepare`."""
    code = main(["prepare", str(source), str(out), "--image-size", "8", "--workers", "0", *flags])
    said = capsys.readouterr()
    return code, said.out + said.err


# Splits


@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "valid"), ("Train", "Test"), ("training", "testing"), ("TRAIN", "VAL"), ("train", "dev"), ("trn", "tst"),
     ("train2017", "val2017"), ("seg_train", "seg_test"), ("DIV2K_train_HR", "DIV2K_valid_HR"),
     ("imagesTrain", "imagesTest"), ("train_images", "eval_images"), ("Training Data", "Validation Data")],
)  # fmt: skip
def test_splits_in_any_spelling(tmp_path, train, test):
    put(tmp_path, f"{train}/cat/0.png", f"{train}/dog/0.png", f"{test}/dog/1.png")
    dataset = opened(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert len(dataset) == 2
    held = opened(tmp_path, split="test")
    assert held.class_names == ("cat", "dog")
    assert held.labels.tolist() == [1], "by the name of the class"


@pytest.mark.parametrize("names", [("train", "car"), ("valid", "invalid"), ("bullet_train", "steam_train"), ("a", "b")])
def test_classes_that_are_no_splits(tmp_path, names):
    dataset = opened(put(tmp_path, *(f"{name}/0.png" for name in names)))
    assert dataset.class_names == tuple(sorted(names))
    with pytest.raises(NoSplitError):
        opened(tmp_path, split="test")


def test_a_class_that_the_training_split_lacks_is_an_error(tmp_path):
    put(tmp_path, "train/cat/0.png", "train/dog/0.png", "test/emu/0.png")
    with pytest.raises(DataError, match=r"the training split of .* has no class emu; its 2 classes are cat, dog"):
        opened(tmp_path, split="test")


def test_several_folders_of_one_split_are_asked_about(tmp_path):
    put(tmp_path, "trainA/0.png", "trainB/0.png", "testA/0.png", "testB/0.png")
    with pytest.raises(DataError, match=r"several folders of the split 'train': trainA, trainB. Name the one"):
        opened(tmp_path)


def test_imagenet_as_kaggle_packs_it(tmp_path):
    base = "ILSVRC/Data/CLS-LOC"
    put(tmp_path, f"{base}/train/n01/a.JPEG", f"{base}/train/n02/b.JPEG", f"{base}/val/v.JPEG", f"{base}/test/t.JPEG")
    put(tmp_path, ("ILSVRC/Annotations/CLS-LOC/train/n01/a.xml", b"<x/>"), ("ILSVRC/ImageSets/train_cls.txt", b"a 1"))
    dataset = opened(tmp_path / "ILSVRC")
    assert dataset.class_names == ("n01", "n02")
    assert len(dataset) == 2
    assert any("Data/CLS-LOC/train/ (of test, train, val)" in line for line in dataset.report())


# ImageNet's own archives, shards


def tar_bytes(files):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_an_archive_for_each_class(tmp_path, kind):
    inner = {
        f"n0{c}440764.tar": tar_bytes({f"n0{c}440764_{i}.JPEG": encoded(photo(4 * c + i, 32, 32)) for i in range(2)})
        for c in (1, 2)
    }
    if kind == "tar":
        source = tmp_path / "ILSVRC2012_img_train.tar"
        source.write_bytes(tar_bytes(inner))
    else:
        source = put(tmp_path / "train", *inner.items())
    dataset = opened(source)
    assert dataset.class_names == ("n01440764", "n02440764")
    assert dataset.labels.tolist() == [0, 0, 1, 1]
    assert dataset[3][0].shape == (3, 8, 8)


def test_shards_of_several_splits_with_members_of_one_name(tmp_path):
    for split, number in (("train", 0), ("train", 1), ("val", 0)):
        files = {}
        for i in range(3):
            files |= {f"{i:04d}.jpg": encoded(photo(9 * number + i, 32, 32)), f"{i:04d}.cls": str(i % 2).encode()}
        put(tmp_path, (f"set-{split}-{number:06d}.tar", tar_bytes(files)))
    dataset = opened(tmp_path)
    assert len(dataset) == 6
    assert dataset.labels.tolist() == [0, 1, 0] * 2 or sorted(dataset.labels.tolist()) == [0, 0, 0, 0, 1, 1]
    assert len({dataset[i][0].tobytes() for i in range(6)}) == 6
    assert len(opened(tmp_path, split="val")) == 3
    (tmp_path / "set-val-000000.tar").unlink()
    with pytest.raises(DataError, match=r"only .*train"):
        opened(tmp_path, split="val")


def test_several_images_of_one_sample_are_asked_about(tmp_path, capsys):
    files = {}
    for i in range(4):
        for member in ("left.png", "right.png", "seg.png"):
            files[f"{i:06d}.{member}"] = encoded(photo(3 * i, 32, 32), "PNG")
        files[f"{i:06d}.json"] = json.dumps({"label": i % 2}).encode()
    put(tmp_path, ("pairs.tar", tar_bytes(files)))
    code, said = prepared(capsys, tmp_path / "pairs.tar", tmp_path / "out")
    assert code == 65
    assert "several images (left.png, right.png, seg.png)" in said
    assert "--image-column left.png" in said
    dataset = opened(tmp_path / "pairs.tar", image_column="right.png")
    assert labels_by_name(dataset) == {f"{i:06d}.right.png": str(i % 2) for i in range(4)}


# Label maps, pieces


@pytest.mark.parametrize(
    ("pictures", "maps"),
    [
        ("images", "masks"),
        ("JPEGImages", "SegmentationClass"),
        ("images", "annotations/trimaps"),
        ("x", "y"),
        ("rgb", "gt"),
    ],
)
def test_pictures_beside_their_label_maps_are_refused(tmp_path, pictures, maps, capsys):
    put(tmp_path / "in", *(f"{pictures}/{i:03d}.jpg" for i in range(5)))
    put(tmp_path / "in", *((f"{maps}/{i:03d}.png", grey(i)) for i in range(4)))
    code, said = prepared(capsys, tmp_path / "in", tmp_path / "out")
    assert code == 65
    assert "look like pictures and their label maps" in said
    assert f"in/{pictures}; if they are classes, pass --labels folder" in said
    assert len(opened(tmp_path / "in" / pictures)) == 5
    assert opened(tmp_path / "in", labels="folder").num_classes == 2


def test_pictures_and_label_maps_in_one_folder_are_asked_about(tmp_path):
    put(tmp_path, *(f"{i:03d}.jpg" for i in range(4)), *((f"{i:03d}.png", grey(i)) for i in range(4)))
    with pytest.raises(DataError, match=r"several images \(jpg, png\).*--data.image-column jpg"):
        opened(tmp_path)
    assert len(opened(tmp_path, image_column="jpg")) == 4


def test_numbered_pieces_of_one_set_are_no_classes(tmp_path):
    put(tmp_path, *(f"{k // 4:05d}/img{k:08d}.png" for k in range(12)))
    with pytest.raises(DataError, match=r"pieces of one set .*--data.labels none .*--data.labels folder"):
        opened(tmp_path)
    assert opened(tmp_path, labels="none").num_classes == 0


@pytest.mark.parametrize("labels", [None, []])
def test_an_edm_set_without_labels(tmp_path, labels):
    put(tmp_path, *(f"{k // 4:05d}/img{k:08d}.png" for k in range(8)))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert opened(tmp_path).num_classes == 0


def test_numbers_as_class_names_are_in_the_order_of_numbers(tmp_path):
    dataset = opened(put(tmp_path, *(f"{c}/{i}.png" for c in range(1, 13) for i in range(2))))
    assert dataset.class_names == tuple(str(c) for c in range(1, 13))


# Label files


def test_other_lists_are_named_with_the_way_to_use_them(tmp_path, capsys):
    put(tmp_path / "in", *(f"{i}.jpg" for i in range(4)))
    (tmp_path / "in" / "labels.csv").write_text("id,breed\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(4)))
    code, said = prepared(capsys, tmp_path / "in", tmp_path / "out")
    assert code == 0
    assert "labels.csv may hold labels and was not read. To use it: --label-file labels.csv" in said
    dataset = opened(tmp_path / "in", label_file="labels.csv")
    assert labels_by_name(dataset) == {f"{i}.jpg": "ab"[i % 2] for i in range(4)}


def test_one_label_a_line(tmp_path):
    put(tmp_path, *(f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(4)))
    (tmp_path / "ILSVRC2012_validation_ground_truth.txt").write_text("490\n361\n171\n822\n")
    assert any("--data.label-file ILSVRC2012" in line for line in opened(tmp_path).report())
    dataset = opened(tmp_path, label_file="ILSVRC2012_validation_ground_truth.txt")
    assert dataset.labels.tolist() == [490, 361, 171, 822]


@pytest.mark.parametrize(
    ("file", "row"),
    [
        ("val.txt", "{} {}"),
        ("val_annotations.txt", "{}\t{}\t0\t0\t62\t57"),
        ("identity.txt", "{} {}"),
        ("list.csv", "{},{}"),
    ],
)
def test_lists_without_a_header(tmp_path, file, row):
    put(tmp_path, *(f"images/v{i}.JPEG" for i in range(4)))
    (tmp_path / file).write_text("".join(row.format(f"v{i}.JPEG", f"n{i % 2}") + "\n" for i in range(4)))
    assert any(f"To use it: --data.label-file {file}" in line for line in opened(tmp_path).report())
    dataset = opened(tmp_path, label_file=file)
    assert labels_by_name(dataset) == {f"v{i}.JPEG": f"n{i % 2}" for i in range(4)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file_name,label\na.png,cat\nb.png,cat \n", "classes"),
        ("filename;class\na.png;cat\nb.png;cat\n", "classes"),
        ("image\tlabel\na\tcat\nb\tcat\n", "classes"),
        ("file_name, label\na.png, cat\nb.png, cat\n", "classes"),
        ("\ufefffile_name,label\r\na.png,cat\r\nb.png,cat\r\n", "classes"),
        ("file_name,age\na.png,3\nb.png,4\n", "age"),
        ("picture_of,label\na.png,cat\n", "its columns are picture_of, label"),
    ],
)
def test_dialects_of_metadata(tmp_path, text, expected):
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.csv").write_text(text, newline="")
    if expected == "classes":
        assert set(labels_by_name(opened(tmp_path)).values()) == {"cat"}
    elif expected == "age":
        assert any("--data.label-column one of age" in line for line in opened(tmp_path).report())
    else:
        with pytest.raises(DataError, match=expected):
            opened(tmp_path)


def test_names_in_either_unicode_form(tmp_path):
    put(tmp_path, "e\u0301.png", "b.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\n\u00e9.png,x\nb.png,y\n")
    assert set(labels_by_name(opened(tmp_path)).values()) == {"x", "y"}


def test_several_labels_of_an_image_are_refused(tmp_path):
    put(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "label": ["a", "b"]}))
    with pytest.raises(DataError, match="several labels of one image are not supported"):
        opened(tmp_path)


def test_a_value_of_its_own_for_every_image_is_no_class(tmp_path):
    put(tmp_path, *(f"{i:02d}.png" for i in range(12)))
    rows = "".join(f"{i:02d}.png,id{i},{i % 2}\n" for i in range(12))
    (tmp_path / "metadata.csv").write_text("file_name,label,target\n" + rows)
    dataset = opened(tmp_path)
    assert dataset.class_names == ("0", "1")
    assert any("column label of metadata.csv is different for nearly every image" in line for line in dataset.report())
    assert opened(tmp_path, label_column="label").num_classes == 12


def test_images_that_no_row_names_are_counted(tmp_path):
    put(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,x\nb.png,X\n")
    lines = opened(tmp_path).report()
    assert any("1 images that no row of metadata.csv names were left out" in line for line in lines)
    assert any("differ in case, spaces, zeros or Unicode form alone: 'X', 'x'" in line for line in lines)


# What is not read


def test_kinds_that_are_not_read_are_counted(tmp_path, capsys):
    put(
        tmp_path / "in",
        "a.png",
        "b.jfif",
        "c.jpe",
        ("d.heic", b"x"),
        ("e.heic", b"x"),
        ("f.avif", b"x"),
        ("g.xml", b""),
    )
    code, said = prepared(capsys, tmp_path / "in", tmp_path / "out")
    assert code == 0
    assert "3 images" in said
    assert "not read: 2 x *.heic, *.avif, *.xml" in said
    assert main(["inspect", str(tmp_path / "out"), "--sheet", str(tmp_path / "s.png")]) == 0
    assert "2 x *.heic" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "said"),
    [("data.mdb", "LMDB; export it"), ("data_batch_1", "pickle, which can run any code and is never loaded"),
     ("data_batch_1.bin", "CIFAR's binary batches"), ("train-images-idx3-ubyte.gz", "IDX, as of MNIST"),
     ("a.tfrecord-00000-of-00010", "TFRecord"), ("x.h5", "HDF5"), ("x.pkl", "never loaded"), ("x.heic", "convert it")],
)  # fmt: skip
def test_other_containers_are_named_with_what_to_do(tmp_path, name, said, capsys):
    put(tmp_path / "in", (name, b"\0" * 100))
    code, text = prepared(capsys, tmp_path / "in", tmp_path / "out")
    assert code == 65
    assert said in text
    code, text = prepared(capsys, tmp_path / "in" / name, tmp_path / "out")
    assert code == 65
    assert said in text


def test_git_lfs_pointers_are_named(tmp_path, capsys):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    put(tmp_path / "in", *((f"cat/{i}.png", pointer) for i in range(2)))
    for name in ("a.zip", "a.tar", "a.parquet", "a.npz"):
        (tmp_path / name).write_bytes(pointer)
        code, said = prepared(capsys, tmp_path / name, tmp_path / "out")
        assert (code, "git lfs pull" in said) == (65, True), said
    code, said = prepared(capsys, tmp_path / "in", tmp_path / "out2")
    assert code == 65
    assert "git lfs pull" in said
    with pytest.raises(DataError, match="git lfs pull"):
        opened(tmp_path / "in")[0]


def test_arrays_that_cannot_be_images(tmp_path):
    images = np.zeros((4, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "float.npz", images.astype(np.float32), np.arange(4))
    with pytest.raises(DataError, match=r"float32, whose range is not known: save it as uint8"):
        opened(tmp_path / "float.npz")
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"objects.npy cannot be read: .*never loaded"):
        opened(tmp_path / "objects.npy")
    np.savez(tmp_path / "objects.npz", np.array([{}], dtype=object))
    with pytest.raises(DataError, match="objects; pickles, which can run any code"):
        opened(tmp_path / "objects.npz")
    for name, after in (("claims.npy", ()), ("claims.npz", (bytes(4096),))):  # what follows would be read as images
        claims = io.BytesIO()
        head = {"descr": "|u1", "fortran_order": False, "shape": (9, 8, 8, 3)}
        np.lib.format.write_array_header_1_0(claims, head)
        content = claims.getvalue() + images.tobytes()
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for number, entry in enumerate((content, *after)):
                archive.writestr(f"arr_{number}.npy", entry)
        if not after:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}.* cannot be read: it is not as long as its header says"):
            opened(tmp_path / name, labels="none")
    np.savez(tmp_path / "names.npz", pictures=images)
    with pytest.raises(DataError, match=r"holds pictures; none is called .*--data.image-column"):
        opened(tmp_path / "names.npz")
    np.savez(tmp_path / "many.npz", images=images, labels=np.zeros((4, 14)))
    with pytest.raises(DataError, match=r"labels is float64 \(4, 14\); one whole number or name"):
        opened(tmp_path / "many.npz")
    assert opened(tmp_path / "many.npz", labels="none").num_classes == 0


# Our own output, and preparing again


def test_own_output_below_the_data_is_no_data(tmp_path, capsys, monkeypatch):
    root = put(tmp_path / "photos", *(f"{c}/{i}.png" for c in ("cat", "dog") for i in range(3)))
    monkeypatch.chdir(root)
    assert main(["inspect", ".", "--workers", "0"]) == 0
    assert os.path.exists("contact-sheet.png")
    put(root, "runs/small/pretraining/previews/0.png", ("runs/small/pretraining/run.lock", b""))
    put(root, "samples/000000.png", "samples/grid.png", ("samples/samples.json", b"{}"))
    assert main(["prepare", ".", "../out", "--image-size", "8", "--workers", "0"]) == 0
    said = capsys.readouterr().out
    assert "6 images of 2 classes" in said
    assert "runs/small/pretraining holds output of epg" in said
    assert main(["inspect", ".", "--workers", "0", "--sheet", "look.png"]) == 2
    assert "would become one" in capsys.readouterr().err


def test_preparing_again_notices_what_changed(tmp_path, capsys):
    root = put(tmp_path / "in", *(f"{c}/{i}.png" for c in ("cat", "dog") for i in range(3)))
    assert prepared(capsys, root, tmp_path / "out")[0] == 0
    code, said = prepared(capsys, root, tmp_path / "out")
    assert (code, "Already prepared" in said) == (0, True)
    put(root, "emu/0.png")
    code, said = prepared(capsys, root, tmp_path / "out")
    assert code == 2
    assert "has changed since it was prepared (6 images then, 7 now" in said


def test_training_says_what_it_saw(tmp_path, capsys):
    root = put(tmp_path / "in", *(f"{c}/{i}.png" for c in ("cat", "dog") for i in range(3)), ("cat/a.heic", b"x"))
    dataset = open_dataset(root, image_size=64)
    lines = "\n".join(dataset.report())
    assert "2 classes: cat (3), dog (3)" in lines
    assert "labels: the folder of each image" in lines
    assert "not read: *.heic" in lines
    assert "6 of 6 images: smaller than 64 and enlarged" in lines


def test_zip_names_of_other_systems(tmp_path):
    """macOS writes UTF-8 without its flag; some Windows programs write backslashes."""
    png = encoded(photo(1, 32, 32), "PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("caf\u00e9/a.png", png)
        info = zipfile.ZipInfo("x")
        info.filename = info.orig_filename = "dog\\b.png"
        archive.writestr(info, png)
    data = (tmp_path / "a.zip").read_bytes()
    for place in (data.find(b"PK\3\4") + 6, data.find(b"PK\1\2") + 8):
        data = data[:place] + b"\0\0" + data[place + 2 :]
    (tmp_path / "a.zip").write_bytes(data)
    assert opened(tmp_path / "a.zip").class_names == ("caf\u00e9", "dog")


# What looks like something else


def mask(k):
    image = Image.new("L", (32, 32))
    image.paste(k + 1, (4, 4, 20, 20))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("picture", "label_map"),
    [("{}.jpg", "{}_mask.png"), ("{}.jpg", "{}-gt.png"), ("benign/b ({}).png", "benign/b ({})_mask.png"),
     ("{}.jpg", "{}_L.png"), ("a{0}/images/{0}.jpg", "a{0}/masks/{0}.png"), ("a{0}/{0}.jpg", "a{0}/labels/{0}.png")],
)  # fmt: skip
def test_label_maps_beside_pictures_are_refused(tmp_path, capsys, picture, label_map):
    put(tmp_path / "set", *(picture.format(k) for k in range(4)))
    put(tmp_path / "set", *((label_map.format(k), mask(k)) for k in range(3)), ("note.txt", b"x"))
    code, said = prepared(capsys, tmp_path / "set", tmp_path / "out")
    assert code == 65
    assert "looks like the label map of" in said
    assert prepared(capsys, tmp_path / "set", tmp_path / "out", "--labels", "none")[0] == 0


def test_names_that_only_sound_like_label_maps(tmp_path):
    put(tmp_path, "mask/0.png", "mask/1_mask.png", "no_mask/0.png", "no_mask/2.png", "no_mask/3_l.png")
    assert opened(tmp_path).class_names == ("mask", "no_mask")


@pytest.mark.parametrize(
    "stems", [("s-00000", "s-00002"), ("s-00003", "s-00004", "s-00005"), ("00003", "00004"), ("x_10", "x_20")]
)
def test_shards_of_which_some_are_missing_are_no_classes(tmp_path, capsys, stems):
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, data in (("0.png", grey(9)), ("0.cls", b"3")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    put(tmp_path / "s", *((f"{stem}.tar", tar.getvalue()) for stem in stems))
    code, said = prepared(capsys, tmp_path / "s", tmp_path / "out")
    assert code == 65
    assert "--labels folder" in said
    assert "--labels column" in said
    code, said = prepared(capsys, tmp_path / "s", tmp_path / "out", "--labels", "column")
    assert code == 0
    assert f"3 ({len(stems)})" in said
    for stem in stems:
        (tmp_path / "s" / f"{stem}.tar").rename(tmp_path / "s" / f"n0{1440764 + int(stem[-2:]) ** 2}.tar")
    code, said = prepared(capsys, tmp_path / "s", tmp_path / "other", "--labels", "folder")
    assert code == 0, "WordNet ids are classes"
    assert f"{len(stems)} classes" in said


def test_missing_shards_that_names_speak_of_are_told(tmp_path, capsys):
    whole = zip_of(("0.png", grey(9)))
    put(tmp_path / "s", *((f"s-0000{k}-of-00005.zip", whole) for k in (1, 4)))
    code, said = prepared(capsys, tmp_path / "s", tmp_path / "out")
    assert code == 0
    assert "no labels" in said
    assert "only 2 of 5 shards are there" in said


def zip_of(*members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return stream.getvalue()


# Label files, once more


@pytest.mark.parametrize(
    ("labels", "code", "told"),
    [([["a.png", -1], ["b.png", -1]], 0, "no labels: all of dataset.json are -1"),
     ([["a.png", -1], ["b.png", 1]], 65, "negative"),
     ([["a.png", 0], ["a.png", 1], ["b.png", 0]], 65, "a.png has two labels"),
     ([["a.png", 0], ["b.png", 1], ["gone.png", 2]], 0, "1 images that dataset.json names are not there"),
     ([["a.png", [1]], ["b.png", [0]]], 0, "0 (1), 1 (1)"), ([["a.png", [0, 1]], ["b.png", [1, 0]]], 65, "no class")],
)  # fmt: skip
def test_labels_of_a_dataset_json(tmp_path, capsys, labels, code, told):
    put(tmp_path / "set", "a.png", "b.png", ("dataset.json", json.dumps({"labels": labels}).encode()))
    got, said = prepared(capsys, tmp_path / "set", tmp_path / "out")
    assert got == code
    assert told in said


@pytest.mark.parametrize(
    ("content", "told"),
    [("file_name,label\na.png,cat, big\nb.png,dog\n", "more cells"),
     ("file_name,label,label\na.png,1,2\nb.png,2,1\n", "two columns label"),
     ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "metadata.csv: it is a Git LFS pointer")],
)  # fmt: skip
def test_tables_that_say_two_things_are_refused(tmp_path, capsys, content, told):
    put(tmp_path / "set", "a.png", "b.png", ("metadata.csv", content.encode()))
    code, said = prepared(capsys, tmp_path / "set", tmp_path / "out")
    assert code == 65
    assert told in said


@pytest.mark.parametrize(
    ("file", "content"),
    [("labels.json", '{"a.png": "x", "b.png": "y"}'), ("t.csv", "ImageId,PredictionString\na,x 1 2 3 4\nb,y 1 2 3 4\n"),
     ("t.csv", "Image File Name,class index\na.png,x\nb.png,y\n"), ("t.csv", "file,label,\na.png,x,\nb.png,y,\n")],
)  # fmt: skip
def test_label_files_of_other_spellings(tmp_path, file, content):
    put(tmp_path, "a.png", "b.png", (file, content.encode()))
    assert labels_by_name(opened(tmp_path, label_file=file)) == {"a.png": "x", "b.png": "y"}


@pytest.mark.parametrize("names", [("café", "cafe\u0301"), ("1", "01"), ("a", "a "), ("Cat", "cat")])
def test_class_names_that_are_nearly_the_same_are_told(tmp_path, capsys, names):
    put(tmp_path / "set", *(f"{name}/{k}.png" for k, name in enumerate(names)))
    assert "Unicode form alone" in prepared(capsys, tmp_path / "set", tmp_path / "out")[1]


def test_unlabelled_images_beside_the_training_split_are_no_class(tmp_path):
    put(tmp_path, "train/a/0.png", "train/b/0.png", "unlabeled/2.png", "extra/a/3.png")
    assert opened(tmp_path).class_names == ("a", "b")


# Arrays, once more


@pytest.mark.parametrize(
    "names",
    [("data", "target"), ("train_images", "train_labels"), ("x_train", "y_train"), ("images", "fine_label"),
     ("image", "class_id"), ("X", "Y")],
)  # fmt: skip
@pytest.mark.parametrize("packed", [True, False])
def test_arrays_of_labels_by_their_names(tmp_path, names, packed):
    arrays = dict(zip(names, (np.zeros((4, 8, 8, 3), np.uint8), np.array([0.0, 1, 2, 1])[:, None]), strict=True))
    source = tmp_path / ("set.npz" if packed else f"{names[0]}.npy")
    if packed:
        np.savez(source, **arrays)
    else:
        for name, array in arrays.items():
            np.save(tmp_path / f"{name}.npy", array)
    assert opened(source).labels.tolist() == [0, 1, 2, 1]


def test_arrays_that_are_not_read_are_told(tmp_path, capsys):
    np.savez(tmp_path / "set.npz", images=np.zeros((4, 8, 8, 3), np.uint8), kind=np.arange(4))
    assert "kind not read (--label-column" in prepared(capsys, tmp_path / "set.npz", tmp_path / "out")[1]
    np.savez(tmp_path / "one.npz", images=np.zeros((8, 8, 3), np.uint8))
    assert "has the shape (8, 8, 3)" in prepared(capsys, tmp_path / "one.npz", tmp_path / "other")[1]


@pytest.mark.parametrize(
    ("name", "told"),
    [("cifar-100-python/train", "pickle"), ("train.beton", "FFCV"), ("x.lance/data/0.lance", "Lance"),
     ("shard.00000.mds", "MosaicML"), ("train-00000-of-00010", "TFRecord"), ("a.dcm", "range"), ("a.cr2", "develop"),
     ("a/b/x.npz", "name the file itself"), ("en/x/train-0.parquet", "name the folder that holds it"),
     ("t10k-images.idx3-ubyte", "IDX"), ("a.tar.zst", "unpack it"), ("x.zarr/.zgroup/0.zarray", "")],
)  # fmt: skip
def test_formats_of_other_tools_are_named_with_their_cure(tmp_path, capsys, name, told):
    code, said = prepared(capsys, put(tmp_path / "set", (name, b"x" * 99)), tmp_path / "out")
    assert code == 65
    assert told in said


# Squares


@pytest.mark.parametrize("size", [["64x32"], ["64", "32"], ["64,32"], ["[64, 32]"], ["64X64"]])
@pytest.mark.parametrize(
    "command", ["prepare digits out --image-size", "pretrain digits --data.image-size", "inspect digits --image-size"]
)
def test_only_squares_are_trained_on(tmp_path, monkeypatch, capsys, size, command):
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), *size]) == 2
    assert "only squares are trained on" in capsys.readouterr().err
    assert main(f"{command}=64x32".split()) == 2
    assert not list(tmp_path.iterdir())


def test_a_folder_may_be_called_by_a_number(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(put(tmp_path, "2024/a/0.png", "2024/b/0.png"))
    assert main(["prepare", "--image-size", "8", "2024", "out", "--workers", "0"]) == 0


def test_cropped_images_are_counted(tmp_path, capsys):
    put(tmp_path / "set", "a.png", "b.png", size=(48, 36))
    put(tmp_path / "set", "c.png")
    _, said = prepared(capsys, tmp_path / "set", tmp_path / "out")
    told = "2 of 3 images: not square; their centre square is trained on, without up to 25 % of an image."
    assert f"{told} To keep all of it, pad" in said
    assert any(told in line for line in opened(tmp_path / "set").report())
    assert any(told in line for line in opened(tmp_path / "out").report())


def test_what_is_said_of_some_images_says_so(tmp_path):
    put(tmp_path, *(f"{k}.png" for k in range(40)), size=(9, 6))
    assert "This is of 32 of 40 images; epg inspect looks at all of them." in opened(tmp_path).report()


def test_what_cannot_be_read_is_said_whatever_the_output_holds(tmp_path, capsys):
    put(tmp_path / "set", "a/0.png", "b/0.png")
    assert prepared(capsys, tmp_path / "set", tmp_path / "out")[0] == 0
    put(tmp_path / "lmdb", ("data.mdb", b"x" * 99))
    assert "LMDB; export it" in prepared(capsys, tmp_path / "lmdb", tmp_path / "out")[1]
    put(tmp_path / "other", "a/0.png", "b/0.png")
    assert "source: set -> other" in prepared(capsys, tmp_path / "other", tmp_path / "out")[1]
    assert "is a prepared set already" in prepared(capsys, tmp_path / "out", tmp_path / "again")[1]
