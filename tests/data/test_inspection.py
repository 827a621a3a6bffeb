"""`epg inspect`: counts, duplicates, statistics and the contact sheet, of sets and of raw sources."""

import json

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from tests.data.photos import encoded, photo, photo_folder

from epg.cli import main
from epg.data.prepared.duplicates import equal_groups, popcount, similar_groups
from epg.data.prepared.encode import PixelOptions, look
from epg.data.prepared.inspection import contact_sheet, inspect_dataset, size_histogram, spread
from epg.data.prepared.prepare import prepare
from epg.data.sources.base import SourceOptions
from epg.errors import DataError


@pytest.fixture
def source(tmp_path):
    """12 photographs, one of them again, one again as another file, one darker, two empty, one broken."""
    root = photo_folder(tmp_path / "in", classes=3, each=4)
    (root / "class2" / "copy.jpg").write_bytes((root / "class0" / "0.jpg").read_bytes())
    original = Image.open(root / "class1" / "1.jpg")
    (root / "class1" / "again.png").write_bytes(encoded(original, "PNG"))
    (root / "class1" / "darker.jpg").write_bytes(
        encoded(ImageEnhance.Brightness(Image.open(root / "class2/3.jpg")).enhance(0.9))
    )
    for name in ("white.png", "white2.png"):
        (root / "class2" / name).write_bytes(encoded(Image.new("RGB", (70, 70 + len(name)), "white"), "PNG"))
    (root / "class2" / "broken.jpg").write_bytes(b"no image")
    return root


def names(found, groups):
    return [{found.name(int(i)) for i in group} for group in groups]


@pytest.mark.parametrize("kind", ["source", "store"])
def test_what_inspection_finds(tmp_path, source, kind):
    dataset = str(source)
    if kind == "store":
        prepare(dataset, tmp_path / "out", PixelOptions(64))
        dataset = str(tmp_path / "out")
    found = inspect_dataset(dataset, options=SourceOptions(), pixels=PixelOptions(64), workers=1)
    assert len(found) == 17
    assert found.classes == [("class0", 4), ("class1", 6), ("class2", 7)]
    assert [item.name for item in found.rejected] == ["class2/broken.jpg"]
    again, copies = {"class1/1.jpg", "class1/again.png"}, {"class0/0.jpg", "class2/copy.jpg"}
    whites = {"class2/white.png", "class2/white2.png"}
    assert sorted(map(sorted, names(found, found.equal))) == sorted(map(sorted, [copies, again, whites]))
    similar = names(found, found.similar)
    assert {"class1/darker.jpg", "class2/3.jpg"} in similar
    assert copies in similar
    assert not any(whites & group for group in similar), "empty images all look alike"
    sizes = {found.name(i): tuple(found.sizes[i]) for i in range(17)}
    assert sizes["class2/white.png"] == (70, 79)
    for i in range(17):
        assert found.read(i) if kind == "store" else found.read(i) == (source / found.name(i)).read_bytes()
    sheet = contact_sheet(found)
    assert sheet.width > 300
    assert np.asarray(sheet).std() > 20


def test_statistics_of_a_source_equal_those_of_the_prepared_set(tmp_path, source):
    manifest = prepare(str(source), tmp_path / "out", PixelOptions(48)).manifest
    found = inspect_dataset(str(source), options=SourceOptions(), pixels=PixelOptions(48))
    assert found.manifest["mean"] == manifest["mean"]
    assert found.manifest["std"] == manifest["std"]


def test_inspection_leaves_nothing_behind(tmp_path, source, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    before = sorted(source.rglob("*"))
    inspect_dataset(str(source), options=SourceOptions(), pixels=PixelOptions(32))
    assert list((tmp_path / "tmp").iterdir()) == []
    assert sorted(source.rglob("*")) == before


def test_the_command_line_writes_sheet_and_report(tmp_path, source, capsys):
    sheet, report = tmp_path / "a" / "sheet.png", tmp_path / "report.json"
    assert main(["inspect", str(source), "--sheet", str(sheet), "--report", str(report), "--workers", "1"]) == 0
    text = capsys.readouterr().out
    assert "class2/broken.jpg" in text
    assert Image.open(sheet).format == "PNG"
    numbers = json.loads(report.read_text())
    assert numbers["images"] == 17
    assert sum(numbers["short_side"].values()) == 17
    assert len(numbers["equal"]) == 3
    assert main(["inspect", str(source), "--verify", "--sheet", str(sheet)]) == 2
    assert main(["inspect", str(tmp_path / "none"), "--sheet", str(sheet)]) == 65


def test_a_source_without_usable_images(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a\.png"):
        inspect_dataset(str(tmp_path), options=SourceOptions(), pixels=PixelOptions(32))


def test_similar_groups_agree_with_comparing_all_pairs():
    rng = np.random.default_rng(0)
    looks = rng.integers(0, 2**64, 300, dtype=np.uint64)
    for i in range(100):  # neighbours at distance 1 to 6
        bits = rng.choice(64, int(rng.integers(1, 7)), replace=False)
        looks[200 + i] = looks[i] ^ np.uint64(sum(1 << int(bit) for bit in bits))
    close = [(i, j) for i in range(300) for j in range(i) if popcount(looks[i : i + 1] ^ looks[j : j + 1])[0] <= 3]
    found = similar_groups(looks)
    assert {frozenset(pair) for pair in close} == {frozenset(map(int, group)) for group in found}
    assert len(close) > 30


def test_equal_groups():
    hashes = np.zeros((6, 32), np.uint8)
    hashes[:, 31] = [1, 2, 1, 3, 2, 1]
    assert [group.tolist() for group in equal_groups(hashes)] == [[0, 2, 5], [1, 4]]


def test_looks_survive_small_changes_and_tell_photographs_apart():
    def distance(a, b):
        return int(popcount(np.array([look(a) ^ look(b)], dtype=np.uint64))[0])

    image = photo(3, 200, 200)
    assert distance(image, image.resize((100, 100), Image.Resampling.BICUBIC)) <= 3
    assert distance(image, ImageEnhance.Contrast(image).enhance(1.1)) <= 3
    assert min(distance(photo(i, 200, 200), photo(i + 1, 200, 200)) for i in range(20)) > 6


def test_size_histogram():
    sizes = np.array([[20, 500], [64, 64], [127, 900], [256, 300], [9000, 10_000]])
    assert size_histogram(sizes) == [
        ("1-31", 1), ("32-63", 0), ("64-127", 2), ("128-255", 0), ("256-511", 1), ("512-1023", 0), ("1024-2047", 0),
        ("2048-4095", 0), ("4096-8191", 0), ("8192+", 1),
    ]  # fmt: skip


def test_the_sheet_spreads_over_classes():
    labels = np.repeat(np.arange(4), [100, 1, 50, 3])
    chosen = spread(labels, 16)
    assert len(chosen) == 4 + 1 + 4 + 3
    assert len(set(chosen)) == len(chosen)
    assert len(spread(np.arange(1000), 64)) == 64
    assert len(spread(np.full(1000, -1), 64)) == 64
