"""A prepared set as parquet files, in the layout that the Hugging Face Hub shows and `load_dataset` reads."""

from pathlib import Path

from epg.data.prepare import Progress
from epg.data.shards import arrow_schema
from epg.data.store import Store
from epg.errors import OutputError, UserError, cause
from epg.files import clear_rests, replacing

ROWS_PER_GROUP = 100  # what the Hub's viewer reads at once


def write_parquet(store_folder: Path, out: Path, progress: Progress | None = None) -> list[Path]:
    """Write `out/data/SPLIT-00000-of-0000N.parquet`, one file per shard; files that are there already are kept.

    Every image is compared with its hash. Raises DataError for a damaged one, OutputError where `out` cannot be
    written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    store = Store(store_folder)
    split = {"val": "validation"}.get(store.manifest["options"]["split"], store.manifest["options"]["split"])
    schema = arrow_schema(tuple(str(entry["name"]) for entry in store.manifest["classes"]))
    files = [
        out / "data" / f"{split}-{number:05d}-of-{len(store.shards):05d}.parquet" for number in range(len(store.shards))
    ]
    try:
        (out / "data").mkdir(parents=True, exist_ok=True)
        others = set((out / "data").glob("*.parquet")) - set(files)
        if any(path.name.startswith(f"{split}-") for path in others):
            raise UserError(f"--parquet {out}: holds another set; choose an empty folder")
        clear_rests(out / "data")
        for number, path in enumerate(files):
            indices = range(int(store.starts[number]), int(store.starts[number + 1]))
            if not path.exists():
                with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, compression="none") as writer:
                    for start in range(indices.start, indices.stop, ROWS_PER_GROUP):
                        rows = range(start, min(start + ROWS_PER_GROUP, indices.stop))
                        columns = {
                            "image": [{"bytes": store.read(i), "path": store.name(i)} for i in rows],
                            "label": [int(store.index[i]["label"]) for i in rows],
                            "sha256": [store.index[i]["sha256"].tobytes().hex() for i in rows],
                        }
                        arrays = [pa.array(columns[field.name], type=field.type) for field in schema]
                        writer.write_table(pa.table(arrays, schema=schema))
            if progress is not None:
                progress(len(indices), len(store))
    except OSError as error:
        raise OutputError(f"--parquet {out}: cannot be written ({cause(error)})") from error
    return files
