"""Prepared sets: changed images, splits, foreign files, and what opening a large set costs."""

import hashlib
import itertools
import json
import os
import shutil
import time

import numpy as np
import pytest
from tests.data.photos import photo_folder

from epg.cli import main
from epg.data.dataset import RECHECK, open_dataset
from epg.data.loading.loader import BatchLoader
from epg.data.prepared import store as store_module
from epg.data.prepared.encode import PixelOptions
from epg.data.prepared.inspection import verify_store
from epg.data.prepared.prepare import prepare
from epg.data.prepared.store import FORMAT_VERSION, INDEX, INDEX_FILE, MANIFEST, Store, seal
from epg.errors import DataError, UserError


def prepared(folder, images=40, **options):
    exact = {"width": 32, "height": 32} if options.get("format") == "jpeg" else {}  # kept as they are
    options = {} if exact else options
    source = photo_folder(folder / "in", classes=2, each=images // 2, **exact)
    prepare(str(source), folder / "out", PixelOptions(32, **options))
    return folder / "out"


def test_control_without_hashes_changes_go_unnoticed(tmp_path, monkeypatch):
    out = prepared(tmp_path, format="raw")
    store = Store(out)
    shard = out / "shards" / store.shards[0][0]
    data = bytearray(shard.read_bytes())
    data[int(store.index[0]["offset"]) + 500] ^= 64
    shard.write_bytes(bytes(data))
    assert store.read(0, check=False)
    with pytest.raises(DataError, match="differs from what was prepared"):
        store.read(0)


def test_training_stops_at_a_changed_image_and_names_it(tmp_path):
    out = prepared(tmp_path)
    store = Store(out)
    shard = out / "shards" / store.shards[1][0]
    data = bytearray(shard.read_bytes())
    index = int(store.starts[1]) + 2
    data[int(store.index[index]["offset"]) + 40] ^= 1
    shard.write_bytes(bytes(data))
    for workers in (0, 2):
        loader = iter(BatchLoader(open_dataset(out, image_size=32), batch_size=8, seed=0, workers=workers))
        with pytest.raises(DataError, match=rf"{shard}.*{store.name(index)}.*Restore"):
            list(itertools.islice(loader, 5))  # one epoch


def test_each_image_is_checked_at_first_and_a_sample_later(tmp_path, monkeypatch):
    dataset = open_dataset(prepared(tmp_path), image_size=32)
    checked = []
    read = dataset.store.read
    monkeypatch.setattr(dataset.store, "read", lambda index, check: checked.append(check) or read(index, check=check))
    for _ in range(8):
        for index in range(40):
            dataset[index]
    assert all(checked[:40])
    assert sum(checked[40:]) == sum(1 for n in range(41, 321) if n % RECHECK == 0)


def test_a_damaged_arrow_file_cannot_mislead_or_crash_the_reader(tmp_path):
    """Everything around the images is changed, and the images still come out right."""
    out = prepared(tmp_path)
    before = [open_dataset(out, image_size=32)[i][0] for i in range(40)]
    store = Store(out)
    for number, (file, _) in enumerate(store.shards):
        path = out / "shards" / file
        data = bytearray(path.read_bytes())
        keep = np.zeros(len(data), bool)
        for i in range(int(store.starts[number]), int(store.starts[number + 1])):
            start = int(store.index[i]["offset"])
            keep[start : start + int(store.index[i]["length"])] = True
        for place in np.flatnonzero(~keep):
            data[place] ^= 0xFF
        path.write_bytes(bytes(data))
    dataset = open_dataset(out, image_size=32)
    assert all(np.array_equal(dataset[i][0], before[i]) for i in range(40))
    assert all("changed outside of its images" in line for line in verify_store(out))


def test_newer_formats_and_foreign_manifests_are_refused(tmp_path):
    out = prepared(tmp_path)
    manifest = json.loads((out / MANIFEST).read_text())
    (out / MANIFEST).write_text(json.dumps(seal({**manifest, "format_version": FORMAT_VERSION + 1})))
    with pytest.raises(DataError, match=f"format {FORMAT_VERSION + 1}"):
        open_dataset(out, image_size=32)
    for text in ("", "[]", "{}", "null", '{"format_version": 1}', "[" * 100_000):
        (out / MANIFEST).write_text(text)
        with pytest.raises(DataError, match=r"manifest\.json"):
            open_dataset(out, image_size=32)


def test_the_store_moves_and_its_fingerprint_stays(tmp_path):
    out = prepared(tmp_path)
    first = open_dataset(out, image_size=32).fingerprint()
    shutil.move(out, tmp_path / "elsewhere")
    moved = open_dataset(tmp_path / "elsewhere", image_size=32)
    assert moved.fingerprint() == first
    assert moved.describe(3).startswith(str(tmp_path / "elsewhere" / "shards"))
    assert open_dataset(tmp_path / "elsewhere", image_size=16).fingerprint() != first


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_run_goes_on_with_a_copy_of_its_set_elsewhere(tmp_path, stage):
    """Exactly as it would have with the original, by the same command and by --resume."""
    original, copy = prepared(tmp_path), tmp_path / "another place" / "called otherwise"

    def train(out, data, *more):
        flags = {"data.image-size": 32, "data.channels": 3, "training.batch-size": 8, "training.steps": 4}
        flags |= {"out": tmp_path / out, "data.source": data, "training.checkpoint-every": 2}
        flags |= {"model.encoder.width": 16, "model.encoder.heads": 2, "model.decoder.width": 16}
        flags |= {"model.decoder.heads": 2, "model.projector-hidden": 16}
        start = ["--from-scratch"] if stage == "finetune" else []
        main([stage, "digits", *(word for name in flags for word in (f"--{name}", str(flags[name]))), *start, *more])
        return tmp_path / out / "checkpoints"

    whole = train("whole", original)
    copy.parent.mkdir()
    shutil.copytree(original, copy)
    for out, more in (("same", ()), ("named", ("--resume", str(tmp_path / "named")))):
        shutil.rmtree(train(out, original) / "step-00000004")
        original.rename(tmp_path / "gone")
        resumed = train(out, copy, *more)
        (tmp_path / "gone").rename(original)
        for name in ("model.safetensors", "optimizer.safetensors"):
            step = f"step-00000004/{name}"
            assert (resumed / step).read_bytes() == (whole / step).read_bytes(), (out, name)


def test_splits_of_a_store(tmp_path):
    from epg.data.loading.base import NoSplitError

    out = prepared(tmp_path / "a")
    with pytest.raises(NoSplitError, match="holds the split 'train'"):
        open_dataset(out, image_size=32, split="test")
    (tmp_path / "set").mkdir()
    shutil.move(out, tmp_path / "set" / "train")
    assert len(open_dataset(tmp_path / "set", image_size=32)) == 40


def test_files_of_the_same_name_make_no_store(tmp_path):
    folder = photo_folder(tmp_path / "in")
    for name in ("manifest.json", "plan.json"):
        (folder / name).write_text("{}")
    assert len(open_dataset(folder, image_size=32)) == 12
    with pytest.raises(UserError, match="holds other files"):
        prepare(str(folder), folder, PixelOptions(32))


def large_store(folder, images, rows_per_shard=2730):
    """The files that opening reads, as `images` images would have them (shards stay empty)."""
    (folder / "shards").mkdir(parents=True)
    index = np.zeros(images, INDEX)
    index["label"] = np.arange(images) % 1000
    np.save(folder / INDEX_FILE, index)
    shards = [
        {"file": f"{k:05d}.arrow", "rows": min(rows_per_shard, images - start), "bytes": 1, "sha256": "0" * 64}
        for k, start in enumerate(range(0, images, rows_per_shard))
    ]
    manifest = {
        "format_version": FORMAT_VERSION,
        "pixels": {"image_size": 256, "channels": 3},
        "options": {"split": "train"},
        "classes": [{"name": f"n{c:08d}", "images": images // 1000} for c in range(1000)],
        "content_sha256": "0" * 64,
        "shards": shards,
        "files": {INDEX_FILE: hashlib.sha256((folder / INDEX_FILE).read_bytes()).hexdigest()},
    }
    (folder / MANIFEST).write_text(json.dumps(seal(manifest), indent=1))
    return folder


def test_a_set_of_imagenets_size_opens_in_under_a_second(tmp_path):
    folder = large_store(tmp_path / "large", 1_281_167)
    start = time.process_time()
    dataset = open_dataset(folder, image_size=256)
    seconds = time.process_time() - start
    assert len(dataset) == 1_281_167
    assert seconds < 1.0
    print(f"opened in {seconds:.3f} s")


def test_open_shards_are_few(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "MAX_OPEN_SHARDS", 2)
    store = Store(prepared(tmp_path, images=80))
    assert len(store.shards) == 5
    before = len(os.listdir("/proc/self/fd"))
    for i in [*range(80), *range(79, -1, -1)]:
        store.read(i)
    assert len(store.maps) == 2
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_verify_on_the_command_line_names_the_image_and_fails(tmp_path, capsys):
    out = prepared(tmp_path)
    shard = out / "shards" / "00000.arrow"
    data = bytearray(shard.read_bytes())
    data[int(Store(out).index[0]["offset"])] ^= 1
    shard.write_bytes(bytes(data))
    code = main(["inspect", str(out), "--verify", "--sheet", str(tmp_path / "s.png"), "--workers", "2"])
    captured = capsys.readouterr()
    assert code == 65
    assert "class0/0.jpg" in captured.out
    assert "1 differences" in captured.err
