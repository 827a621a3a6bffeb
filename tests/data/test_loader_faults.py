"""Goal F4: loader processes that die, hang or run out of memory end the run, soon and by name; and damaged images."""

import faulthandler
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from itertools import islice

import numpy as np
import pytest
import torch
from tests.data.photos import photo_folder

from epg.data.dataset import open_dataset
from epg.data.loading.base import CachedDataset, ImageDataset
from epg.data.loading.loader import BatchLoader
from epg.data.order import EpochOrder
from epg.data.prepared.encode import PixelOptions
from epg.data.prepared.prepare import prepare
from epg.data.prepared.store import Store
from epg.data.workers.crew import SharedMemory, _serve
from epg.errors import DataError, UserError


class Numbers(ImageDataset):
    """Images of one value, their index; those at `bad` fail in the given way."""

    def __init__(self, how, bad=range(1000), length=48):
        super().__init__(np.arange(length) % 3, ("a", "b", "c"), 2, 1)
        self.how, self.bad = how, set(bad)

    def __getitem__(self, index):
        if index in self.bad:
            self.how(index)
        return np.full((1, 2, 2), index, np.uint8), int(self.labels[index])

    def describe(self, index):
        return f"sample {index}"

    def fingerprint(self):
        return ""


def damaged(index):
    raise DataError(f"cat{index}.png: cannot decode")


def bug(index):
    raise KeyError("a bug")


def end(index):
    os._exit(3)


def kill(index):
    os.kill(os.getpid(), signal.SIGKILL)


def crash(index):
    faulthandler.disable()
    os.kill(os.getpid(), signal.SIGSEGV)


def stop(index):
    os.kill(os.getpid(), signal.SIGSTOP)


def hang(index):
    time.sleep(60)


def no_memory(index):
    raise MemoryError


def fail(how, timeout_s=60.0, workers=1, bad=17, **options):
    """The error of a stream in which image `bad` fails, and how many seconds after it was reached."""
    dataset = Numbers(how, [bad])
    start = time.monotonic()
    loader = BatchLoader(dataset, batch_size=4, seed=0, workers=workers, timeout_s=timeout_s, **options)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        for _ in loader:
            pass
    assert not multiprocessing.active_children()
    return caught.value, time.monotonic() - start


@pytest.mark.parametrize(
    ("how", "cause"), [(end, "exit code 3"), (kill, "SIGKILL"), (crash, "SIGSEGV"), (no_memory, "not enough memory")]
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_is_named_with_its_sample_at_once(how, cause, workers):
    error, seconds = fail(how, workers=workers)
    assert isinstance(error, UserError)
    assert cause in str(error)
    assert "sample 17" in str(error)
    assert "--data.workers" in str(error)
    assert seconds < 50  # of the 60 that a hanging worker is waited for


@pytest.mark.parametrize("how", [stop, hang])
def test_a_worker_that_hangs_is_named_with_its_sample_after_the_timeout(how):
    error, seconds = fail(how, timeout_s=1, workers=2)
    assert isinstance(error, DataError)
    assert "hangs at sample 17" in str(error)
    assert "--data.timeout" in str(error)
    assert 1 < seconds < 50  # of the 60 that it hangs


def test_slow_is_not_hanging():
    slow = Numbers(lambda index: time.sleep(0.2))
    loader = BatchLoader(slow, batch_size=16, seed=0, workers=1, timeout_s=2.5)
    assert len(next(iter(loader))[0]) == 16  # took 3.2 s, but no image took 2.5


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_the_data_arrive_unchanged_and_in_order(workers):
    loader = iter(BatchLoader(Numbers(damaged, [17]), batch_size=4, seed=0, workers=workers))
    place = EpochOrder(48, 0).indices(np.arange(48)).tolist().index(17)
    for _ in range(place // 4):
        next(loader)
    with pytest.raises(DataError) as caught:
        next(loader)
    assert str(caught.value) == "cat17.png: cannot decode"


def test_bugs_arrive_with_their_traceback():
    error, _ = fail(bug)
    assert isinstance(error, RuntimeError)
    assert "KeyError" in str(error)
    assert "test_loader_faults.py" in str(error)


def test_closing_takes_no_time_even_with_a_worker_at_work():
    loader = iter(BatchLoader(Numbers(hang, [40]), batch_size=4, seed=0, workers=2))
    next(loader)
    start = time.monotonic()
    loader.close()
    assert time.monotonic() - start < 30  # of the 60 that the worker takes
    assert not multiprocessing.active_children()


def test_workers_leave_signals_to_their_parent():
    """A scheduler that stops a job signals every process of it, and the parent wants to save first."""
    loader = iter(BatchLoader(Numbers(hang, []), batch_size=4, seed=0, workers=2))
    next(loader)
    time.sleep(0.2)
    workers = {process.pid for process in multiprocessing.active_children()}
    assert len(workers) == 2
    for pid in workers:
        for kind in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(pid, kind)
    for _ in range(20):
        next(loader)  # raises for a worker that has died
    assert {process.pid for process in multiprocessing.active_children()} == workers
    loader.close()


PARENT = """
import multiprocessing, os, signal
from tests.data.test_loader_faults import BatchLoader, Numbers

def run():
    loader = iter(BatchLoader(Numbers(None, []), batch_size=4, seed=0, workers=2))
    for _ in range(3):
        next(loader)
    pids = [str(process.pid) for process in multiprocessing.active_children()]
    os.write(1, f"{' '.join(pids)}\\n".encode())  # at once: two processes print
    return loader

child = os.fork()
loader = run()
if child == 0:
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
"""


def test_workers_end_with_their_parent():
    """With one that is killed, and with one that ends while its loader is open."""
    done = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 4
    deadline = time.monotonic() + 50
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < deadline, "an orphan"
        time.sleep(0.05)


def test_a_worker_that_starts_after_its_parent_was_killed_ends():
    gone = multiprocessing.Process(target=os.getpid)
    gone.start()
    gone.join()
    pipe, end = multiprocessing.Pipe()  # held open, as by a process that was forked meanwhile
    worker = multiprocessing.Process(target=_serve, args=(None, end, SharedMemory(16), 0, gone.pid))
    worker.start()
    worker.join(20)
    assert worker.exitcode == 1
    pipe.close()


SMALL_SHM = """
from tests.data.test_loader_faults import BatchLoader, Numbers
import numpy as np, shutil
data = Numbers(None, [])
data.image_size = 256
Numbers.__getitem__ = lambda self, index: (np.full((1, 256, 256), index, np.uint8), 0)
assert shutil.disk_usage("/dev/shm").free == 0
loader = iter(BatchLoader(data, batch_size=48, seed=0, workers=2))
assert sorted(next(loader)[0].images[:, 0, 9, 9].tolist()) == list(range(48))
print("fine")
"""


def test_a_full_dev_shm_does_not_matter():
    """Containers limit it to 64 MB; here it is full."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs unshare -rm")
    script = 'mount -t tmpfs -o size=16k tmpfs /dev/shm && (cat /dev/zero > /dev/shm/x; exec "$0" -c "$1")'
    done = subprocess.run(
        [unshare, "-rm", "sh", "-c", script, sys.executable, SMALL_SHM], capture_output=True, text=True
    )
    assert done.stdout == "fine\n", done.stderr


# Damaged images: replaced, counted, named ---------------------------------------------------------------------------


def images_of(loader, steps):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batches = [batch for batches in islice(loader, steps) for batch in batches]
    parts = [torch.cat([getattr(batch, name) for batch in batches]) for name in ("images", "labels", "indices")]
    return parts, [str(warning.message) for warning in caught]


BAD = (5, 17, 30)


def test_damaged_images_are_replaced_counted_and_named():
    dataset = Numbers(damaged, BAD)
    loader = BatchLoader(dataset, batch_size=8, seed=2, max_damaged=3)
    (images, labels, indices), warned = images_of(loader, 12)  # two epochs
    assert images[:, 0, 0, 0].tolist() == indices.tolist()
    assert labels.tolist() == (indices % 3).tolist()
    plain = EpochOrder(48, 2).indices(np.arange(96))
    replaced = np.isin(plain, BAD)
    assert replaced.sum() == 6
    assert np.array_equal(indices.numpy()[~replaced], plain[~replaced])
    assert not np.isin(indices, BAD).any()
    assert set(loader.damaged) == set(BAD)
    assert len(warned) == 3  # once each, though met twice
    assert sorted(text.split(".png")[0] for text in warned) == ["cat17", "cat30", "cat5"]
    assert "3 of 3 allowed" in warned[2]


@pytest.mark.parametrize(
    "options",
    [{"workers": 2}, {"micro_batch": 2, "workers": 1}, {"start_step": 7}, {"world_size": 2}, {"cached": True}],
)
def test_replacements_are_a_function_of_the_position(options):
    dataset = Numbers(damaged, BAD)
    common = {"batch_size": 8, "seed": 2, "max_damaged": 3}
    expected, _ = images_of(BatchLoader(dataset, **common), 12)
    start, world = options.get("start_step", 0), options.pop("world_size", 1)
    dataset = CachedDataset(dataset, max_damaged=3) if options.pop("cached", False) else dataset
    shares = [
        images_of(BatchLoader(dataset, rank=rank, world_size=world, **common, **options), 12 - start)[0]
        for rank in range(world)
    ]
    for k in range(3):
        ours = torch.stack([parts[k].unflatten(0, (12 - start, -1)) for parts in shares], dim=1).flatten(0, 2)
        assert torch.equal(ours, expected[k][8 * start :])


@pytest.mark.parametrize("workers", [0, 2])
def test_one_damaged_image_too_many_ends_the_stream_at_the_same_place(workers):
    loader = BatchLoader(Numbers(damaged, BAD), batch_size=8, seed=2, max_damaged=2, workers=workers)
    order = EpochOrder(48, 2).indices(np.arange(48)).tolist()
    third = sorted(BAD, key=order.index)[2]
    steps = order.index(third) // 8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches = iter(loader)
        assert len(list(islice(batches, steps))) == steps
        with pytest.raises(DataError, match=rf"cat{third}.png.*\n.*damaged image 3: .*--data.max-damaged"):
            next(batches)


def test_a_set_of_damaged_images_ends_the_stream():
    loader = BatchLoader(Numbers(damaged), batch_size=8, seed=2, max_damaged=1000)
    with pytest.raises(DataError, match="64 images that could replace it are damaged as well"):
        next(iter(loader))


def test_a_cache_with_too_many_damaged_images_is_not_built():
    with pytest.raises(DataError, match=r"cat30.png.*\n.*damaged image 3: .*--data.max-damaged"):
        CachedDataset(Numbers(damaged, BAD), max_damaged=2)


def test_memory_that_runs_out_is_no_damage():
    error, _ = fail(no_memory, workers=0, max_damaged=5)
    assert "not enough memory" in str(error)


def test_a_changed_image_of_a_prepared_set_is_replaced_in_every_epoch(tmp_path):
    """Raw pixels, whose damage only the hash shows."""
    prepare(str(photo_folder(tmp_path / "in", classes=2, each=20)), tmp_path / "out", PixelOptions(32, format="raw"))
    store = Store(tmp_path / "out")
    shard = tmp_path / "out" / "shards" / store.shards[1][0]
    data, index = bytearray(shard.read_bytes()), int(store.starts[1]) + 2
    data[int(store.index[index]["offset"]) + 40] ^= 1
    shard.write_bytes(bytes(data))
    for workers in (0, 2):
        loader = BatchLoader(
            open_dataset(tmp_path / "out", image_size=32), batch_size=8, seed=0, workers=workers, max_damaged=1
        )
        (_, _, indices), warned = images_of(loader, 200)  # 40 epochs
        assert index not in indices
        assert len(warned) == 1
        assert f"{shard} offset {store.index[index]['offset']} ({store.name(index)})" in warned[0]


def test_training_with_damaged_images_counts_them_and_goes_on(tmp_path, capsys):
    from tests.training.test_loop import tiny

    from epg.runs import train

    prepare(str(photo_folder(tmp_path / "in", classes=2, each=20)), tmp_path / "out", PixelOptions(8, format="raw"))
    store = Store(tmp_path / "out")
    shard = tmp_path / "out" / "shards" / store.shards[0][0]
    data = bytearray(shard.read_bytes())
    for index in (1, 3):
        data[int(store.index[index]["offset"]) + 40] ^= 1
    shard.write_bytes(bytes(data))
    part = {"source": str(tmp_path / "out"), "channels": 3, "normalization": "imagenet"}
    run = {"steps": 6, "batch_size": 16, "log_every": 6}
    with pytest.warns(UserWarning, match=f"{shard}.*Another takes its place"):
        train(tiny("diffusion", data={**part, "max_damaged": 2}, training=run), tmp_path / "run")
    line = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert line["damaged"] == 2
    with pytest.raises(DataError, match=rf"{shard} offset"):
        train(tiny("diffusion", data=part, training=run), tmp_path / "other")
