"""A prepared set as parquet files, in the layout that the Hugging Face Hub shows and `load_dataset` reads."""

from pathlib import Path

from epg.data.prepared.prepare import Progress
from epg.data.prepared.store import SHARDS, Store
from epg.errors import OutputError, UserError, cause
from epg.storage.files import clear_rests, replacing

ROWS_PER_GROUP = 100  # what the Hub's viewer reads at once


def write_parquet(store_folder: Path, out: Path, progress: Progress | None = None) -> list[Path]:
    """Write `out/data/SPLIT-00000-of-0000N.parquet`, one file per shard; files that are there already are kept.

    Raises DataError for a damaged shard, OutputError where `out` cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    store = Store(store_folder)
    split = {"val": "validation"}.get(store.manifest["options"]["split"], store.manifest["options"]["split"])
    count = len(store.shards)
    files = [out / "data" / f"{split}-{number:05d}-of-{count:05d}.parquet" for number in range(count)]
    try:
        (out / "data").mkdir(parents=True, exist_ok=True)
        others = set((out / "data").glob("*.parquet")) - set(files)
        if any(path.name.startswith(f"{split}-") for path in others):
            raise UserError(f"--parquet {out}: holds another set; choose an empty folder")
        clear_rests(out / "data")
        for (shard, rows), path in zip(store.shards, files, strict=True):
            if not path.exists():
                store.check_file(f"{SHARDS}/{shard}")
                with replacing(path) as temporary, pa.memory_map(str(store_folder / SHARDS / shard)) as source:
                    table = pa.ipc.open_file(source).read_all()
                    pq.write_table(table, temporary, row_group_size=ROWS_PER_GROUP, compression="none")
            if progress is not None:
                progress(rows, len(store))
    except OSError as error:
        raise OutputError(f"--parquet {out}: cannot be written ({cause(error)})") from error
    return files
