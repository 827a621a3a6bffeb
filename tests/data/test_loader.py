"""Global batches: the same samples in the same order however they are divided."""

import multiprocessing
from itertools import islice

import numpy as np
import pytest
import torch

from epg.data.dataset import open_dataset
from epg.data.loading.base import CachedDataset
from epg.data.loading.loader import Batch, BatchLoader
from epg.data.order import EpochOrder
from epg.data.workers.ring import Ring
from epg.errors import UserError

STEPS = 5


@pytest.fixture(scope="module")
def digits():
    return open_dataset("digits", image_size=8, channels=1, split="test")


def stream(dataset, steps=STEPS, **options):
    """The first global batches of all ranks, put together again: (steps * batch) images, labels, indices."""
    world = options.pop("world_size", 1)
    loaders = [
        iter(BatchLoader(dataset, batch_size=24, seed=4, rank=rank, world_size=world, **options))
        for rank in range(world)
    ]
    batches = [batch for _ in range(steps) for loader in loaders for batch in next(loader)]
    assert [batch.first for batch in batches] == [
        first for _ in range(steps) for first in range(0, 24, len(batches[0]))
    ]
    return [torch.cat([getattr(batch, name) for batch in batches]) for name in ("images", "labels", "indices")]


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_one_step_is_the_stretch_of_the_stream_that_belongs_to_it(digits):
    images, labels, indices = stream(digits)
    assert images.dtype == torch.uint8
    assert labels.dtype == indices.dtype == torch.int64
    expected = EpochOrder(len(digits), 4).indices(np.arange(STEPS * 24))
    assert indices.tolist() == expected.tolist()
    for image, label, index in zip(images, labels, indices, strict=True):
        pixels, true_label = digits[int(index)]
        assert np.array_equal(image.numpy(), pixels)
        assert label == true_label


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_ranks_and_micro_batches_change_nothing(digits, world_size, micro_batch):
    assert_same(stream(digits, world_size=world_size, micro_batch=micro_batch), stream(digits))


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, None), (1, 8), (2, 4)])
def test_workers_change_nothing(digits, world_size, micro_batch):
    result = stream(digits, world_size=world_size, micro_batch=micro_batch, workers=2)
    assert_same(result, stream(digits))


def test_a_cached_dataset_gives_the_same_and_never_starts_workers(digits):
    cached = CachedDataset(digits)
    loader = BatchLoader(cached, batch_size=24, seed=4, workers=2)
    assert loader.workers == 0
    assert_same(stream(cached), stream(digits))


@pytest.mark.parametrize("workers", [0, 1])
def test_starting_late_gives_the_rest_of_the_stream(digits, workers):
    whole = stream(digits, steps=20)  # into the second epoch
    late = stream(digits, steps=3, start_step=17, workers=workers)
    assert_same(late, [part[17 * 24 :] for part in whole])


def test_each_epoch_visits_every_sample_once(digits):
    _, _, indices = stream(digits, steps=2 * len(digits) // 24 + 1)
    for epoch in range(2):
        part = indices[epoch * len(digits) : (epoch + 1) * len(digits)]
        assert part.sort().values.tolist() == list(range(len(digits)))


def test_the_global_generator_is_not_touched(digits):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iter(BatchLoader(digits, batch_size=4, seed=0, workers=1)))
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_differ(digits):
    first, second = (next(iter(BatchLoader(digits, batch_size=24, seed=s)))[0].indices for s in (0, 1))
    assert not torch.equal(first, second)


def test_sizes_that_do_not_divide_name_their_flag(digits):
    with pytest.raises(UserError, match=r"--training.batch-size 10: .* 4 processes"):
        BatchLoader(digits, batch_size=10, seed=0, world_size=4)
    with pytest.raises(UserError, match=r"--training.micro-batch 3: .*4 samples"):
        BatchLoader(digits, batch_size=8, seed=0, world_size=2, micro_batch=3)


def test_batches_move_and_have_a_length():
    batch = Batch(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3), torch.arange(3), first=6)
    moved = batch.to("meta")
    assert len(moved) == 3
    assert moved.first == 6
    assert {moved.images.device.type, moved.labels.device.type} == {"meta"}
    assert moved.indices.device.type == "cpu"  # only the host speaks of them


def test_a_batch_is_never_overwritten_while_anything_refers_to_it(digits):
    """However much is kept, and of whatever part or kind."""
    options = {"batch_size": 24, "seed": 4}
    expected = [batches[0].images for batches in islice(BatchLoader(digits, **options), 40)]
    kept = []
    for step, (batch,) in enumerate(islice(BatchLoader(digits, workers=2, **options), 40)):
        parts = [batch.images, batch.images[3:4], batch.images.numpy(), batch.to("cpu").images, batch.images.view(-1)]
        kept.append((step, parts[step % 5]))
        del batch, parts
    for step, part in kept:
        whole = expected[step]
        truth = whole[3:4] if step % 5 == 1 else whole.reshape(-1) if step % 5 == 4 else whole
        assert np.array_equal(np.asarray(part), truth.numpy())


def test_control_slots_that_are_reused_too_early_are_noticed(digits, monkeypatch):
    def lend(self, slot):
        self.free.append(slot)
        return torch.from_numpy(self.pixels(slot))

    monkeypatch.setattr(Ring, "lend", lend)
    expected = stream(digits, steps=40)
    with pytest.raises(AssertionError):
        assert_same(stream(digits, steps=40, workers=1), expected)


def test_memory_is_used_again(digits):
    loader = BatchLoader(digits, batch_size=24, seed=4, workers=1)
    places = {batches[0].images.data_ptr() for batches in islice(loader, 60)}
    assert len(places) <= loader.slots


@pytest.mark.parametrize("workers", [0, 1])
def test_pinned_batches_are_copies(digits, workers, monkeypatch):
    """The path to a GPU, with ordinary memory in the place of page-locked memory, which needs a driver."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.clone()) or pinned[-1])
    assert_same(stream(digits, steps=30, workers=workers, pin_memory=True), stream(digits, steps=30))
    assert len(pinned) == 2 * 30  # images and labels


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_reach_a_gpu_pinned_and_without_being_overwritten(digits):
    loader = BatchLoader(digits, batch_size=24, seed=4, workers=2, pin_memory=True)
    moved = []
    for (batch,) in islice(loader, 60):
        assert batch.images.is_pinned()
        moved.append(batch.to("cuda").images)
    expected = [batch.images for (batch,) in islice(BatchLoader(digits, batch_size=24, seed=4), 60)]
    assert all(torch.equal(a.cpu(), b) for a, b in zip(moved, expected, strict=True))
    assert all(images.is_contiguous() for images in moved)


def test_processes_that_are_not_forked_work_too(digits, monkeypatch):
    spawn = multiprocessing.get_context("spawn")
    monkeypatch.setattr("epg.data.workers.crew.mp.get_context", lambda *_: spawn)
    assert_same(stream(digits, workers=1, steps=2), stream(digits, steps=2))
