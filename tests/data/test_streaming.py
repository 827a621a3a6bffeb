"""Block order: exact where it promises to be, approximate where it says so; and streaming from a bucket."""

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.data.photos import photo_folder
from tests.data.test_sources import table_of

from epg.data.dataset import SourceDataset, open_dataset
from epg.data.loading.loader import BatchLoader
from epg.data.order import WINDOW, BlockOrder
from epg.data.sources.base import SourceOptions
from epg.data.sources.files import FolderSource
from epg.data.sources.remote import RemoteFile, RemoteFolderSource
from epg.data.sources.tables import TableSource


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 31, 32, 33, 64, 65, 300])
@pytest.mark.parametrize(("block", "window"), [(1, 1), (4, 2), (8, 4), (16, 1000)])
def test_every_sample_once_per_epoch(length, block, window):
    order = BlockOrder(length, 5, block, window)
    drawn = order.indices(np.arange(3 * length)).reshape(3, length)
    assert (np.sort(drawn, axis=1) == np.arange(length)).all()
    if length > 30:
        assert (drawn[0] != drawn[1]).any()
        assert (drawn[0] != BlockOrder(length, 6, block, window).indices(np.arange(length))).any()


def test_it_is_a_function_of_the_position():
    order = BlockOrder(1003, 1, 16, 4)
    whole = order.indices(np.arange(5000))
    parts = [order.indices(np.arange(start, start + 50)) for start in range(0, 5000, 50)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert 0 <= order.indices(np.array([10**15]))[0] < 1003


def test_few_blocks_are_read_at_a_time():
    order = BlockOrder(128 * 100, 0, 128, 4)
    drawn = order.indices(np.arange(128 * 100))
    for start in range(0, 128 * 100, 512):
        assert len(np.unique(drawn[start : start + 512] // 128)) == 4
    assert len(np.unique(drawn[:128] // 128)) == 4, "mixed within the window"


def test_a_bucket_streams_through_the_loader(tmp_path):
    root = photo_folder(tmp_path / "in", classes=3, each=4)
    files = fsspec.filesystem("memory")
    for path in root.rglob("*.jpg"):
        files.pipe(f"/stream/{path.relative_to(root)}", path.read_bytes())
    dataset = SourceDataset(
        RemoteFolderSource(files, "/stream", "s3://stream", SourceOptions()), image_size=16, channels=3
    )
    local = open_dataset(root, image_size=16)
    batch = next(iter(BatchLoader(dataset, batch_size=12, seed=0)))[0]
    assert sorted(batch.indices.tolist()) == list(range(12))
    for image, label, index in zip(batch.images, batch.labels, batch.indices, strict=True):
        np.testing.assert_array_equal(image.numpy(), local[int(index)][0])
        assert label == local.labels[index]
    assert dataset.describe(0) == "s3://stream: class0/0.jpg"
    assert dataset.fingerprint() != local.fingerprint()  # of names and sizes alone


def test_workers_and_start_do_not_change_the_stream(tmp_path):
    source = FolderSource(photo_folder(tmp_path / "in", classes=3, each=4), SourceOptions())
    dataset = SourceDataset(source, image_size=16, channels=3)
    streams = [iter(BatchLoader(dataset, batch_size=6, seed=0, workers=w)) for w in (0, 2)]
    steps = [[next(stream)[0] for _ in range(5)] for stream in streams]
    later = next(iter(BatchLoader(dataset, batch_size=6, seed=0, start_step=4)))[0]
    for a, b in zip(*steps, strict=True):
        assert a.images.equal(b.images)
    assert later.images.equal(steps[0][4].images)


def test_tables_keep_the_groups_of_a_window(tmp_path):
    root = photo_folder(tmp_path / "in", classes=3, each=8)
    pq.write_table(table_of(root), tmp_path / "a.parquet", row_group_size=4)
    opener = RemoteFile(fsspec.filesystem("local"), str(tmp_path / "a.parquet"))
    source = TableSource([("a.parquet", opener)], "s3://bucket/a.parquet", SourceOptions(), streamed=True)
    dataset = SourceDataset(source, image_size=16, channels=3)
    read = []
    original = source._read_group
    source._read_group = lambda group: read.append(group) or original(group)
    for index in np.random.default_rng(0).permutation(24):
        dataset[int(index)]
    assert sorted(read) == list(range(6)), "each group once"
    assert source.keep_groups >= WINDOW
