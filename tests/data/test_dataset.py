"""Sources of images: digits, folders and parquet files, made for real in a temporary folder."""

import os
import pickle
import shutil
import signal

import datasets
import numpy as np
import pytest
from PIL import Image

from epg.data.dataset import CachedDataset, NoSplitError, open_dataset
from epg.data.decode import decode_image
from epg.errors import DataError, InterruptedRunError, UserError

SIZE = 8


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def colour(value):
    return Image.new("RGB", (SIZE, SIZE), (value, 2 * value, 255 - value))


def write(folder, **files):
    """Write `name=value` as folder/name.png of that colour; `__` stands for a sub-folder."""
    for name, value in files.items():
        path = folder / (name.replace("__", "/") + ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        colour(value).save(path)
    return folder


def reds(dataset):
    return [int(dataset[i][0][0, 0, 0]) for i in range(len(dataset))]


def open_small(source, **options):
    return open_dataset(source, image_size=SIZE, **options)


# Digits


def test_digits_are_the_librarys_images_in_a_fixed_stratified_split():
    from sklearn.datasets import load_digits

    train, test = (open_dataset("digits", image_size=8, channels=1, split=s) for s in ("train", "test"))
    assert train.class_names == test.class_names == tuple("0123456789")
    assert train.num_classes == 10
    source = load_digits()
    assert sorted([*train.source.indices, *test.source.indices]) == list(range(1797))
    for label in range(10):
        total = (source.target == label).sum()
        assert (test.labels == label).sum() == round(0.2 * total)
    for dataset in (train, test):
        for i in (0, 100, len(dataset) - 1):
            image, label = dataset[i]
            assert image.shape == (1, 8, 8)
            assert image.dtype == np.uint8
            original = dataset.source.indices[i]
            assert label == source.target[original]
            assert np.abs(image[0] - source.images[original] * 255 / 16).max() <= 0.5
    assert np.concatenate([train[i][0].ravel() for i in range(100)]).max() == 255
    assert test.source.indices[:5].tolist() == FROZEN_TEST_DIGITS  # published results depend on the split


FROZEN_TEST_DIGITS = [1, 4, 17, 20, 22]


def test_digits_resize_and_repeat():
    small = open_dataset("digits", image_size=4, channels=1)
    large = open_dataset("digits", image_size=16, channels=3)
    exact = open_dataset("digits", image_size=8, channels=1)
    assert np.abs(small[0][0] - exact[0][0].reshape(1, 4, 2, 4, 2).mean(axis=(2, 4))).max() <= 1
    assert large[0][0].shape == (3, 16, 16)
    assert (large[0][0] == large[0][0][:1]).all()
    assert abs(large[0][0].mean() - exact[0][0].mean()) < 8


def test_digits_have_only_two_splits():
    with pytest.raises(NoSplitError, match="validation"):
        open_small("digits", split="validation")


# Folders


def test_class_folders_are_sorted_searched_deeply_and_hidden_files_ignored(tmp_path):
    write(tmp_path, zebra__a=1, ant__deep__er__b=2, ant__a=3)
    colour(4).save(tmp_path / "ant" / "c.PNG")
    (tmp_path / "ant" / "notes.txt").write_text("x")
    write(tmp_path, **{".hidden__a": 9, "ant__.a": 9})
    write(tmp_path, **{"ant__.trash__a": 9})
    (tmp_path / "empty").mkdir()
    dataset = open_small(tmp_path)
    assert dataset.class_names == ("ant", "zebra")
    assert dataset.labels.tolist() == [0, 0, 0, 1]
    assert dataset.labels.dtype == np.int64
    assert reds(dataset) == [3, 4, 2, 1]
    assert dataset.describe(2) == str(tmp_path / "ant/deep/er/b.png")
    image, label = dataset[3]
    assert label == 1
    assert image[:, 0, 0].tolist() == [1, 2, 254]


def test_flat_folder_has_no_labels(tmp_path):
    dataset = open_small(write(tmp_path, b=2, a=1))
    assert dataset.class_names == ()
    assert dataset.num_classes == 0
    assert reds(dataset) == [1, 2]
    assert dataset[0][1] == -1


def test_one_class_folder_is_one_class(tmp_path):
    dataset = open_small(write(tmp_path, cat__a=1))
    assert dataset.class_names == ("cat",)
    assert dataset[0][1] == 0


@pytest.mark.parametrize("test_name", ["test", "val", "validation"])
def test_split_folders_are_picked(tmp_path, test_name):
    write(tmp_path, train__a__x=1, train__b__x=2, **{f"{test_name}__a__x": 3})
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "boxes.xml").write_text("x")
    assert reds(open_small(tmp_path)) == [1, 2]
    assert reds(open_small(tmp_path, split="test")) == [3]
    assert open_small(tmp_path).fingerprint() == open_small(tmp_path / "train").fingerprint()


def test_split_folders_may_be_flat_or_hold_parquet(tmp_path):
    write(tmp_path, train__x=1, test__x=2)
    assert reds(open_small(tmp_path, split="test")) == [2]
    (tmp_path / "p").mkdir()
    write_parquet(tmp_path / "p" / "train" / "train-0.parquet", [1, 2])
    write_parquet(tmp_path / "p" / "test" / "test-0.parquet", [3])
    assert reds(open_small(tmp_path / "p", split="test")) == [3]


def test_test_is_preferred_to_validation(tmp_path):
    write(tmp_path, train__x=1, val__x=2, test__x=3)
    assert reds(open_small(tmp_path, split="test")) == [3]
    assert reds(open_small(tmp_path, split="validation")) == [2]


def test_a_class_called_train_stays_a_class(tmp_path):
    dataset = open_small(write(tmp_path, train__x=1, car__x=2))
    assert dataset.class_names == ("car", "train")
    with pytest.raises(DataError, match="split folders"):
        open_small(write(tmp_path, test__x=3))


def test_missing_splits_can_be_caught(tmp_path):
    write(tmp_path, a__x=1)
    write(tmp_path / "s", train__x=1)
    for source in (tmp_path / "a", tmp_path / "s"):
        with pytest.raises(NoSplitError, match="test"):
            open_small(source, split="test")
    with pytest.raises(NoSplitError, match="choose one of"):
        open_small(tmp_path / "a", split="tets")


def test_images_beside_class_folders_are_refused(tmp_path):
    with pytest.raises(
        DataError,
        match=r"such as x\.png, lie in no class folder, 1 others do, such as a/x.png. Move.*--data.labels none",
    ):
        open_small(write(tmp_path, a__x=1, x=2))


def test_empty_and_missing_sources_say_what_is_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"no images; files looked for: .*\*\.png.*\*\.parquet"):
        open_small(tmp_path)
    with pytest.raises(DataError, match=r"--data.source .*nothing: does not exist"):
        open_small(tmp_path / "nothing")
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"a.zip: a damaged zip archive or none at all"):
        open_small(tmp_path / "a.zip")


def test_a_broken_image_is_named(tmp_path):
    write(tmp_path, a=1)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"b\.png: cannot decode"):
        open_small(tmp_path)[1]


def test_a_stop_signal_within_an_image_is_no_damaged_image(tmp_path):
    write(tmp_path, a=1)
    dataset = open_small(tmp_path)

    def stop(number, frame):
        raise InterruptedRunError("stopped")

    before = signal.signal(signal.SIGALRM, stop)

    def read_on():
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        while True:  # until it arrives, nearly always while decoding
            decode_image(tmp_path / "a.png", SIZE, 3)
            dataset[0]

    try:
        with pytest.raises(InterruptedRunError, match=r"^stopped$"):
            read_on()
    finally:
        signal.signal(signal.SIGALRM, before)


def test_links_are_followed_but_not_for_ever(tmp_path):
    write(tmp_path / "elsewhere", x=1)
    write(tmp_path / "data", b__x=2)
    (tmp_path / "data" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "b" / "loop").symlink_to(tmp_path / "data")
    dataset = open_small(tmp_path / "data")
    assert dataset.class_names == ("a", "b")
    assert 1 in reds(dataset)


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    colour(5).save(tmp_path / name)
    dataset = open_small(tmp_path)
    assert reds(dataset) == [5]
    assert len(dataset.fingerprint()) == 64


def test_wrong_options_name_their_flag(tmp_path):
    write(tmp_path, a=1)
    with pytest.raises(UserError, match=r"--data.image-size 0"):
        open_dataset(tmp_path, image_size=0)
    with pytest.raises(UserError, match=r"--data.channels 2"):
        open_small(tmp_path, channels=2)
    with pytest.raises(UserError, match=r"holds no metadata.csv .*--data.label-file"):
        open_small(tmp_path, label_column="x")
    with pytest.raises(UserError, match=r"--data.image-column"):
        open_small("digits", image_column="x")


# Fingerprints


def test_fingerprint_is_of_the_content_and_not_of_place_or_time(tmp_path):
    write(tmp_path / "one", a__x=1, b__y=2)
    base = open_small(tmp_path / "one").fingerprint()
    write(tmp_path / "two", b__y=2, a__x=1)  # written in another order
    os.utime(tmp_path / "two" / "a" / "x.png", (0, 0))
    assert open_small(tmp_path / "two").fingerprint() == base
    different = {
        open_dataset(tmp_path / "one", image_size=4).fingerprint(),
        open_small(tmp_path / "one", channels=1).fingerprint(),
        open_small(tmp_path / "one" / "a").fingerprint(),
    }
    shutil.move(tmp_path / "two" / "a" / "x.png", tmp_path / "two" / "b" / "x.png")
    different.add(open_small(tmp_path / "two").fingerprint())
    write(tmp_path / "one", a__z=1)
    different.add(open_small(tmp_path / "one").fingerprint())
    assert len(different | {base}) == 6


def test_fingerprints_of_digits_and_parquet(tmp_path):
    prints = {open_small("digits", split=s).fingerprint() for s in ("train", "test")}
    file = write_parquet(tmp_path / "a" / "x.parquet", [1, 2], labels=[0, 1])
    prints.add(open_small(file).fingerprint())
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert open_small(tmp_path / "b" / "x.parquet").fingerprint() in prints
    write_parquet(tmp_path / "c" / "x.parquet", [1, 2], labels=[1, 0])
    prints.add(open_small(tmp_path / "c" / "x.parquet").fingerprint())
    assert len(prints) == 4


# Parquet


def write_parquet(path, values, labels=None, names=("ant", "bee"), extra=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"image": [colour(value) for value in values]}
    features = {"image": datasets.Image()}
    if labels is not None:
        columns["label"] = labels
        features["label"] = datasets.ClassLabel(names=list(names))
    for name, (feature, column) in (extra or {}).items():
        columns[name], features[name] = column, feature
    datasets.Dataset.from_dict(columns, datasets.Features(features)).to_parquet(path)
    return path


def test_parquet_with_hub_features(tmp_path):
    file = write_parquet(tmp_path / "x.parquet", [1, 2, 3], labels=[1, 0, 1])
    for source in (file, str(file), tmp_path):
        dataset = open_small(source)
        assert dataset.class_names == ("ant", "bee")
        assert reds(dataset) == [1, 2, 3]
        assert [dataset[i][1] for i in range(3)] == [1, 0, 1]
    assert dataset.describe(2) == f"{file} row 2"
    assert pickle.loads(pickle.dumps(dataset))[1][0].shape == (3, SIZE, SIZE)


def test_parquet_shards_and_splits(tmp_path):
    write_parquet(tmp_path / "data" / "train-00001-of-2.parquet", [3, 4, 5], labels=[0, 0, 1])
    write_parquet(tmp_path / "data" / "train-00000-of-2.parquet", [1, 2], labels=[1, 1])
    write_parquet(tmp_path / "data" / "validation-00000-of-1.parquet", [6], labels=[0])
    for root in (tmp_path, tmp_path / "data"):
        dataset = open_small(root)
        assert reds(dataset) == [1, 2, 3, 4, 5]
        assert dataset.labels.tolist() == [1, 1, 0, 0, 1]
        assert dataset.describe(1).endswith("train-00000-of-2.parquet row 1")
        assert dataset.describe(2).endswith("train-00001-of-2.parquet row 0")
        assert reds(open_small(root, split="test")) == [6]
    write_parquet(tmp_path / "data" / "more.parquet", [1], labels=[0])
    with pytest.raises(DataError, match=r"more\.parquet does not name its split"):
        open_small(tmp_path)


def test_parquet_without_the_split(tmp_path):
    file = write_parquet(tmp_path / "one" / "x.parquet", [1])
    write_parquet(tmp_path / "two" / "train.parquet", [1])
    for source in (file, tmp_path / "one", tmp_path / "two"):
        with pytest.raises(NoSplitError, match="'test'"):
            open_small(source, split="test")


def test_parquet_without_labels_or_with_withheld_labels(tmp_path):
    for labels in (None, [-1, -1]):
        dataset = open_small(write_parquet(tmp_path / f"{labels}.parquet", [1, 2], labels=labels))
        assert dataset.class_names == ()
        assert dataset.labels.tolist() == [-1, -1]


def test_plain_numbers_and_strings_as_labels(tmp_path):
    numbers = {"label": (datasets.Value("int64"), [2, 0])}
    dataset = open_small(write_parquet(tmp_path / "n.parquet", [1, 2], extra=numbers))
    assert dataset.class_names == ("0", "1", "2")
    assert dataset.labels.tolist() == [2, 0]
    words = {"kind": (datasets.Value("string"), ["dog", "cat"])}
    file = write_parquet(tmp_path / "w.parquet", [1, 2], extra=words)
    assert open_small(file).class_names == ()
    dataset = open_small(file, label_column="kind")
    assert dataset.class_names == ("cat", "dog")
    assert dataset.labels.tolist() == [1, 0]


def test_columns_that_cannot_be_guessed_are_listed_with_the_flag(tmp_path):
    two = {"mask": (datasets.Image(), [colour(7), colour(8)])}
    file = write_parquet(tmp_path / "x.parquet", [1, 2], extra=two)
    with pytest.raises(DataError, match=r"several image columns.*--data.image-column"):
        open_small(file)
    assert reds(open_small(file, image_column="mask")) == [7, 8]
    with pytest.raises(DataError, match=r"--data.image-column picture: .*only image, mask"):
        open_small(file, image_column="picture")
    fine = datasets.ClassLabel(names=["a", "b"])
    labels = {"coarse": (fine, [0, 0]), "fine": (fine, [1, 0])}
    file = write_parquet(tmp_path / "y.parquet", [1, 2], extra=labels)
    with pytest.raises(DataError, match=r"several label columns \(coarse, fine\): .*--data.label-column"):
        open_small(file)
    assert open_small(file, label_column="fine").labels.tolist() == [1, 0]
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "z.parquet")
    with pytest.raises(DataError, match=r"no image column among its columns text"):
        open_small(tmp_path / "z.parquet")


def test_raw_bytes_without_hub_features(tmp_path):
    import io

    import pyarrow as pa
    import pyarrow.parquet

    buffer = io.BytesIO()
    colour(9).save(buffer, "PNG")
    struct = {"bytes": buffer.getvalue(), "path": "x.png"}
    for name, value in (("binary", buffer.getvalue()), ("struct", struct)):
        pyarrow.parquet.write_table(pa.table({"picture": [value]}), tmp_path / f"{name}.parquet")
        assert reds(open_small(tmp_path / f"{name}.parquet")) == [9]


def test_broken_parquet_rows_and_files(tmp_path):
    bad = {"bytes": b"not an image", "path": None}
    columns = {"image": [colour(1), bad, None]}
    file = tmp_path / "x.parquet"
    datasets.Dataset.from_dict(columns, datasets.Features({"image": datasets.Image()})).to_parquet(file)
    dataset = open_small(file)
    with pytest.raises(DataError, match=r"x\.parquet row 1: cannot decode"):
        dataset[1]
    with pytest.raises(DataError, match=r"x\.parquet row 2: column 'image' is empty"):
        dataset[2]
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a readable parquet"):
        open_small(file)
    empty_labels = {"label": (datasets.ClassLabel(names=["a"]), [0, None])}
    with pytest.raises(DataError, match="1 empty rows"):
        open_small(write_parquet(tmp_path / "y.parquet", [1, 2], extra=empty_labels))


def test_a_file_that_was_rewritten_is_read_anew(tmp_path):
    for values in ([1, 2], [3, 4]):
        assert reds(open_small(write_parquet(tmp_path / "x.parquet", values))) == values


def test_paths_with_glob_characters(tmp_path):
    assert reds(open_small(write_parquet(tmp_path / "a[1]*" / "x?.parquet", [1]))) == [1]


# Cache


def test_cache_is_the_same_data(tmp_path):
    dataset = open_small(write(tmp_path, a__x=1, b__x=2))
    cached = CachedDataset(dataset)
    assert cached.images.shape == (2, 3, SIZE, SIZE)
    assert reds(cached) == [1, 2]
    for name in ("class_names", "image_size", "channels", "num_classes"):
        assert getattr(cached, name) == getattr(dataset, name)
    assert [cached[i][1] for i in range(2)] == [0, 1]
    assert cached.describe(1) == dataset.describe(1)
    assert cached.fingerprint() == dataset.fingerprint()
