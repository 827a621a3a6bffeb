"""`epg prepare` on real photographs: pixels, resuming, refusals, disk faults, several machines."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests import started
from tests.data.photos import adm_by_hand, encoded, photo, photo_folder, tree

from epg.cli import main
from epg.data.dataset import open_dataset
from epg.data.loading.loader import BatchLoader
from epg.data.prepared.encode import PixelOptions
from epg.data.prepared.plan import parse_shard
from epg.data.prepared.prepare import prepare
from epg.data.prepared.store import Store, read_manifest
from epg.data.sources.base import SourceOptions
from epg.errors import DataError, OutputError, RunLockedError, UserError


def run(source, out, size=32, **options):
    pixels = {name: options.pop(name) for name in ("format", "channels", "resize_only") if name in options}
    return prepare(str(source), out, PixelOptions(size, **pixels), **options)


def pixels_of(dataset, index):
    return dataset[index][0].transpose(1, 2, 0)


# Pixels


@pytest.mark.parametrize("size", [256, 512])
def test_pixels_equal_the_adm_procedure_done_by_hand(tmp_path, size):
    source = photo_folder(tmp_path / "in", classes=2, each=3)
    (source / "class0" / "large.JPEG").write_bytes(encoded(photo(7, 640, 427).resize((1300, 1101))))
    (source / "class1" / "grey.jpeg").write_bytes(encoded(photo(8, 300, 280).convert("L")))
    run(source, tmp_path / "out", size)
    dataset = open_dataset(tmp_path / "out", image_size=size)
    files = sorted(source.rglob("*.*"))
    assert len(dataset) == len(files) == 8
    for index, file in enumerate(files):
        assert dataset.store.name(index) == str(file.relative_to(source))
        np.testing.assert_array_equal(pixels_of(dataset, index), adm_by_hand(file, size))


@pytest.mark.parametrize("file_format", ["png", "webp", "raw"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_format_is_lossless(tmp_path, file_format, channels):
    source = photo_folder(tmp_path / "in", classes=1, each=3)
    run(source, tmp_path / "out", 48, format=file_format, channels=channels)
    stored = open_dataset(tmp_path / "out", image_size=48, channels=channels)
    direct = open_dataset(source, image_size=48, channels=channels)
    for i in range(3):
        np.testing.assert_array_equal(stored[i][0], direct[i][0])


def test_a_jpeg_of_the_right_size_is_kept_byte_for_byte(tmp_path):
    (tmp_path / "in").mkdir()
    exact, rotated = encoded(photo(1, 64, 64)), photo(2, 64, 64)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "in" / "a.jpg").write_bytes(exact)
    (tmp_path / "in" / "b.jpg").write_bytes(encoded(rotated, exif=exif))
    (tmp_path / "in" / "c.jpg").write_bytes(encoded(photo(3, 65, 64)))
    manifest = run(tmp_path / "in", tmp_path / "out", 64).manifest
    store = Store(tmp_path / "out")
    assert store.read(0) == exact
    assert manifest["kept_originals"] == 1
    assert all(store.read(i).startswith(b"\x89PNG") for i in (1, 2))
    direct = open_dataset(tmp_path / "in", image_size=64)
    stored = open_dataset(tmp_path / "out", image_size=64)
    for i in range(3):
        np.testing.assert_array_equal(stored[i][0], direct[i][0])


def test_resize_only_keeps_the_whole_image_and_still_crops_to_the_same_pixels(tmp_path):
    source = photo_folder(tmp_path / "in", classes=1, each=3, width=300, height=200)
    run(source, tmp_path / "out", 40, resize_only=True)
    store = Store(tmp_path / "out")
    with Image.open(io.BytesIO(store.read(0))) as image:
        assert image.size == (60, 40)
    direct, stored = (open_dataset(path, image_size=40) for path in (source, tmp_path / "out"))
    for i in range(3):
        np.testing.assert_array_equal(stored[i][0], direct[i][0])


def test_a_larger_store_serves_smaller_sizes_and_refuses_larger_ones(tmp_path):
    run(photo_folder(tmp_path / "in"), tmp_path / "out", 64)
    small = open_dataset(tmp_path / "out", image_size=32)
    assert small[0][0].shape == (3, 32, 32)
    assert open_dataset(tmp_path / "out", image_size=32, channels=1)[0][0].shape == (1, 32, 32)
    with pytest.raises(UserError, match="prepared at 64"):
        open_dataset(tmp_path / "out", image_size=65)


def test_the_manifest_says_what_was_done(tmp_path):
    source = photo_folder(tmp_path / "in", classes=2, each=3)
    (source / "class1" / "2.jpg").unlink()
    manifest = run(source, tmp_path / "out", 32).manifest
    assert manifest == read_manifest(tmp_path / "out")
    assert manifest["classes"] == [{"name": "class0", "images": 3}, {"name": "class1", "images": 2}]
    assert manifest["source"] == "in"
    assert str(tmp_path) not in json.dumps(manifest), "a manifest is published; paths are nobody's business"
    dataset = open_dataset(tmp_path / "out", image_size=32)
    values = np.stack([dataset[i][0] for i in range(5)]).astype(np.float64) / 255
    np.testing.assert_allclose(manifest["mean"], values.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(manifest["std"], values.std(axis=(0, 2, 3)), rtol=1e-12)
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1]
    assert dataset.class_names == ("class0", "class1")


def test_the_loader_reads_a_store_with_workers(tmp_path):
    run(photo_folder(tmp_path / "in"), tmp_path / "out", 32)
    dataset = open_dataset(tmp_path / "out", image_size=32)
    alone, helped = (iter(BatchLoader(dataset, batch_size=8, seed=3, workers=w)) for w in (0, 2))
    for _ in range(3):
        a, b = next(alone)[0], next(helped)[0]
        assert a.images.equal(b.images)
        assert a.labels.equal(b.labels)


# Resuming


def command(source, out, *flags, size=32):
    arguments = ["prepare", str(source), str(out), "--image-size", str(size), *flags]
    return [sys.executable, "-c", "import sys; from epg.cli import main; sys.exit(main())", *arguments]


def begin(source, out, *flags, size=32, first="", said=None):
    """The same, begun in a process of its own that executes `first` before."""
    option, code, *arguments = command(source, out, *flags, size=size)[1:]
    with contextlib.nullcontext(said) if said else Path(os.devnull).open("w") as stream:
        words = (option, f"import os, resource; {first or 'pass'}; {code}", *arguments)
        return started.start(*words, stdout=stream, stderr=stream)


def test_any_number_of_processes_makes_the_same_bytes_and_a_second_run_does_nothing(tmp_path):
    source = photo_folder(tmp_path / "in", classes=4, each=12)  # three shards
    for workers in (0, 2):
        run(source, tmp_path / f"out{workers}", workers=workers)
    assert tree(tmp_path / "out0") == tree(tmp_path / "out2")
    assert len(read_manifest(tmp_path / "out0")["shards"]) == 3
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out0").rglob("*")}
    os.rename(source, tmp_path / "gone")  # a finished set needs its source no more
    assert run(source, tmp_path / "out0").already
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out0").rglob("*")}


def test_killed_at_any_time_it_continues_and_ends_with_the_same_bytes(tmp_path):
    source = photo_folder(tmp_path / "in", classes=8, each=20)
    run(source, tmp_path / "whole", 64)
    out, kills = tmp_path / "out", 0
    rng = np.random.default_rng(0)
    for _ in range(20):
        parts = len(list(out.glob("parts/*.json")))
        program = begin(source, out, "--workers", "2", size=64, first="os.setsid()")
        while program.running and len(list(out.glob("parts/*.json"))) <= parts:  # until a further shard is done
            time.sleep(0.005)
        time.sleep(float(rng.uniform(0, 0.05)))
        kills += program.running
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pids[0], signal.SIGKILL)
        if program.wait() == [0]:
            break
    else:
        pytest.fail("never finished")
    assert kills >= 2
    assert run(source, out, 64).already
    assert tree(out) == tree(tmp_path / "whole")


def test_damaged_state_of_an_interrupted_preparation_is_made_anew(tmp_path):
    source = photo_folder(tmp_path / "in", classes=4, each=12)
    run(source, tmp_path / "whole")
    run(source, tmp_path / "out", shard=(1, 2))
    (tmp_path / "out" / "shards" / "00000.arrow").write_bytes(b"short")
    with pytest.raises(DataError, match="run the same command again"):
        run(source, tmp_path / "out")
    run(source, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_other_settings_or_another_source_are_refused(tmp_path):
    source = photo_folder(tmp_path / "in", classes=4, each=12)
    run(source, tmp_path / "out", shard=(1, 2))
    with pytest.raises(UserError, match="image_size: 32 -> 64"):
        run(source, tmp_path / "out", 64)
    (source / "class0" / "new.jpg").write_bytes(encoded(photo(99)))
    with pytest.raises(UserError, match=r"changed since.*48 images then, 49 now"):
        run(source, tmp_path / "out")
    (source / "class0" / "new.jpg").unlink()
    run(source, tmp_path / "out")
    with pytest.raises(UserError, match="format: png -> raw"):
        run(source, tmp_path / "out", format="raw")


def test_an_unfinished_set_cannot_be_trained_on(tmp_path):
    run(photo_folder(tmp_path / "in", classes=4, each=12), tmp_path / "out", shard=(2, 2))
    with pytest.raises(DataError, match="not finished; run the same"):
        open_dataset(tmp_path / "out", image_size=32)


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="holds other files"):
        run(photo_folder(tmp_path / "in"), tmp_path / "out")
    assert tree(tmp_path / "out") == {"thesis.tex": b"x"}


def test_one_process_per_folder(tmp_path):
    source = photo_folder(tmp_path / "in")
    lock = "import fcntl,sys,time; f=open(sys.argv[1],'w'); fcntl.flock(f,2); f.write('77'); f.flush(); print(); "
    (tmp_path / "out").mkdir()
    script = [sys.executable, "-c", lock + "time.sleep(60)", str(tmp_path / "out" / "prepare-1-of-1.lock")]
    with subprocess.Popen(script, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(RunLockedError, match="process 77"):
            run(source, tmp_path / "out")
        holder.kill()
    assert run(source, tmp_path / "out").manifest["images"] == 12


def test_machines_share_a_folder(tmp_path):
    source = photo_folder(tmp_path / "in", classes=5, each=16)
    run(source, tmp_path / "whole")
    for part in (3, 1):
        assert run(source, tmp_path / "out", shard=(part, 3)).manifest is None
    assert run(source, tmp_path / "out", shard=(2, 3)).manifest is not None
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert run(source, tmp_path / "out", shard=(1, 3)).already


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_impossible_shards_are_refused(tmp_path, text):
    with pytest.raises(UserError, match="--shard"):
        run(tmp_path, tmp_path / "out", shard=parse_shard(text))


# Faults


def test_bad_files_are_reported_and_left_out_or_end_in_an_error(tmp_path):
    source = photo_folder(tmp_path / "in", classes=2, each=3)
    (source / "class0" / "1.jpg").write_bytes(encoded(photo(0))[:500])
    (source / "class1" / "empty.PNG").touch()
    with pytest.raises(DataError, match=r"(?si)2 images cannot.*class0/1.jpg.*Truncated.*class1/empty.PNG.*0 bytes"):
        run(source, tmp_path / "out", on_error="fail")
    prepared = run(source, tmp_path / "out", on_error="skip")
    assert prepared.manifest["images"] == 5
    report = [json.loads(line) for line in (tmp_path / "out" / "report.jsonl").read_text().splitlines()]
    assert [item["name"] for item in report] == ["class0/1.jpg", "class1/empty.PNG"]
    dataset = open_dataset(tmp_path / "out", image_size=32)
    assert [dataset.store.name(i) for i in range(5)] == [
        "class0/0.jpg",
        "class0/2.jpg",
        *(f"class1/{i}.jpg" for i in range(3)),
    ]
    assert dataset.labels.tolist() == [0, 0, 1, 1, 1]


def test_nothing_usable_is_an_error(tmp_path):
    for name in ("in", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a\.png"):
        run(tmp_path / "in", tmp_path / "out")
    with pytest.raises(DataError, match="holds no images"):
        run(tmp_path / "empty", tmp_path / "out2")
    assert not (tmp_path / "out2").exists()
    with pytest.raises(DataError, match="neither a file, nor a folder"):
        run(tmp_path / "missing", tmp_path / "out2")


@pytest.mark.parametrize("limit", [4_000, 20_000])
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_write_that_fails_leaves_a_state_to_continue_from(tmp_path, limit, workers):
    """RLIMIT_FSIZE stands in for a full disk: writes fail in the middle of a shard."""
    source = photo_folder(tmp_path / "in", classes=4, each=12)
    run(source, tmp_path / "whole")
    out = tmp_path / "out"

    small_files = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"  # CPython ignores SIGXFSZ
    with (tmp_path / "said").open("w+") as said:  # which is smaller than the limit
        failed = begin(source, out, "--workers", workers, first=small_files, said=said)
        assert failed.wait() == [OutputError.exit_code]
        said.seek(0)
        told = said.read()
    assert str(out) in told
    assert "run the same command again" in told
    assert "Traceback" not in told
    assert not list(out.rglob("*.tmp")) or workers == "2"  # killed workers cannot clean up; the next run does
    run(source, out)
    assert tree(out) == tree(tmp_path / "whole")


def _can_mount():
    return (
        subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0 if os.name == "posix" else False
    )


def test_a_full_disk_leaves_a_state_to_continue_from(tmp_path):
    try:
        possible = _can_mount()
    except OSError:
        possible = False
    if not possible:
        pytest.skip("needs unshare -rm")
    source = photo_folder(tmp_path / "in", classes=4, each=12)
    run(source, tmp_path / "whole", 64)
    (tmp_path / "disk").mkdir()
    inner = " ".join(f"'{part}'" for part in command(source, tmp_path / "disk" / "out", "--workers", "1", size=64))
    script = f"""
    mount -t tmpfs -o size=300k none {tmp_path}/disk || exit 99
    {inner}; echo "code $?"
    mount -o remount,size=20m {tmp_path}/disk
    {inner}; echo "code $?"
    cp -r {tmp_path}/disk/out {tmp_path}/copy
    """
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
    if done.returncode == 99:
        pytest.skip("cannot mount a tmpfs")
    assert "code 74" in done.stdout, done.stderr
    assert "code 0" in done.stdout, done.stderr
    assert "No space left" in done.stderr
    assert tree(tmp_path / "copy") == tree(tmp_path / "whole")


# Command line


def test_the_command_line_prepares_inspects_and_explains(tmp_path, capsys):
    source = photo_folder(tmp_path / "in")
    (source / "class0" / "bad.jpg").write_bytes(b"x" * 50)
    out = tmp_path / "out"
    assert main(["prepare", str(source), str(out), "--image-size", "32", "--workers", "1"]) == 0
    text = capsys.readouterr().out
    assert "12 images of" in text
    assert "bad.jpg" in text
    assert main(["prepare", str(source), str(out), "--image-size", "32"]) == 0
    assert "Already prepared" in capsys.readouterr().out
    assert main(["prepare", str(source), str(out), "--image-size", "64"]) == 2
    assert main(["prepare", str(source), str(tmp_path / "o2"), "--image-size", "32", "--on-error", "fail"]) == 65
    assert main(["prepare", str(source), str(out), "--image-size", "0"]) == 2
    assert main(["prepare", str(source), str(out), "--image-size", "32", "--background", "nocolour"]) == 2
    sheet = tmp_path / "sheet.png"
    assert main(["inspect", str(out), "--sheet", str(sheet), "--verify", "--workers", "0"]) == 0
    assert "as it was prepared" in capsys.readouterr().out
    assert Image.open(sheet).size[0] > 100


def test_parquet_for_the_hub(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    source = photo_folder(tmp_path / "in", classes=4, each=12)
    out, parquet = tmp_path / "out", tmp_path / "hub"
    flags = ["--image-size", "32", "--workers", "0", "--parquet", str(parquet)]
    assert main(["prepare", str(source), str(out), *flags]) == 0
    assert sorted(path.name for path in (parquet / "data").iterdir())[0] == "train-00000-of-00003.parquet"
    stored = open_dataset(out, image_size=32)
    exported = open_dataset(parquet, image_size=32)
    assert exported.class_names == stored.class_names
    assert exported.labels.tolist() == stored.labels.tolist()
    loaded = datasets.load_dataset(str(parquet), split="train")
    arrow = datasets.load_dataset("arrow", data_files=[str(p) for p in sorted(out.glob("shards/*"))], split="train")
    for i in (0, 17, 47):
        np.testing.assert_array_equal(exported[i][0], stored[i][0])
        np.testing.assert_array_equal(np.asarray(loaded[i]["image"]), pixels_of(stored, i))
        np.testing.assert_array_equal(np.asarray(arrow[i]["image"]), pixels_of(stored, i))
        assert arrow[i]["sha256"] == loaded[i]["sha256"] == stored.store.index[i]["sha256"].tobytes().hex()
    again = prepare(str(parquet), tmp_path / "again", PixelOptions(32), options=SourceOptions())
    assert again.manifest["content_sha256"] == read_manifest(out)["content_sha256"]
