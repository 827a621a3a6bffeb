"""`epg prepare`: from a source of any images to a prepared set (see store.py), resumable at every shard."""

import contextlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from epg.data.prepared import plan as plans
from epg.data.prepared.encode import PixelOptions
from epg.data.prepared.finish import finish
from epg.data.prepared.plan import PLAN, make_job
from epg.data.prepared.shards import PARTS, ShardJob, part_file
from epg.data.prepared.store import MANIFEST, SHARDS, is_store, read_manifest
from epg.data.sources.base import SourceOptions
from epg.data.sources.open import open_source
from epg.data.workers.pool import run_jobs
from epg.errors import OutputError, UserError, cause
from epg.storage.files import clear_rests
from epg.storage.locks import held

DEFAULT_OPTIONS = SourceOptions()
LOCK_FILE = re.compile(r"prepare-\d+-of-\d+\.lock|finish\.lock")
PART_FILE = re.compile(r"\d{5,}\.json")
Progress = Callable[[int, int], None]
"""Called with how many images were worked on since the last call, and how many there are in all."""


@dataclass(frozen=True)
class Prepared:
    """What a preparation ended with."""

    folder: Path
    manifest: dict[str, Any] | None
    """None: this machine's part is done, others are not."""
    already: bool
    """It was finished before."""


def prepare(
    source: str,
    folder: Path,
    pixels: PixelOptions,
    *,
    options: SourceOptions = DEFAULT_OPTIONS,
    on_error: Literal["skip", "fail"] = "skip",
    workers: int = 0,
    shard: tuple[int, int] = (1, 1),
    progress: Progress | None = None,
) -> Prepared:
    """Prepare `source` (see `open_source`) into `folder`; continue an interrupted preparation; do nothing if finished.

    Args:
        on_error: with "fail", images that cannot be used end in a DataError once all are known.
        workers: processes; 0 works in this one.
        shard: (i, n): do the i-th of n parts, from 1, of a folder that n machines share.

    Raises UserError for other settings than the folder was begun with, RunLockedError while another process works on
    it, OutputError where it cannot be written (what is done stays done).
    """
    plans.check_options(pixels, workers, shard)
    if is_store(Path(source).expanduser()):
        raise UserError(f"{source}: is a prepared set already; it is trained on with --data.source {source}")
    try:
        done = finished(folder, source, pixels, options)
    except UserError:
        open_source(source, options)  # what cannot be read at all is the nearer fault
        raise
    if done is not None and done.manifest is not None:
        try:
            now = open_source(source, options)
        except (UserError, OSError):  # one that is gone says nothing
            return done
        plans.refuse_outdated(done.manifest, now.digest(), len(now), folder)
        return done
    opened = open_source(source, options)
    try:
        with locked(folder, shard):
            if (done := finished(folder, source, pixels, options)) is not None:
                return done
            plan = plans.claim(folder, plans.make_plan(source, opened, pixels, options))
            build_missing(make_job(opened, pixels, folder), folder, workers, progress, shard)
            if not all(part_file(folder, number).exists() for number in range(plan["shards"])):
                return Prepared(folder, None, already=False)
            with held(folder / "finish.lock", str(folder), wait=True):  # of several machines one finishes
                if (done := finished(folder, source, pixels, options)) is not None:
                    return done
                manifest = finish(folder, opened, plan, on_error)
                clean(folder)
            return Prepared(folder, manifest, already=False)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written: {cause(error)}. What is done is kept"
            f"{_still_needed(folder)}. Then run the same command again"
        ) from error


def build_missing(job: ShardJob, folder: Path, workers: int, progress: Progress | None, shard: tuple[int, int]) -> None:
    """Build the shards of one machine's part that are not there yet."""
    ours = range(shard[0] - 1, len(job), shard[1])
    missing = [number for number in ours if not part_file(folder, number).exists()]
    total = sum(len(job.items(number)) for number in ours)
    report = told(progress, total)
    report(total - sum(len(job.items(number)) for number in missing))
    run_jobs(job, missing, workers, report)


def told(progress: Progress | None, total: int) -> Callable[[int], None]:
    """What hears of further images, of so many in all."""
    return lambda images: progress(images, total) if progress else None


def finished(folder: Path, address: str, pixels: PixelOptions, options: SourceOptions) -> Prepared | None:
    """The finished store in `folder`, None if there is none. Raises UserError where it has other settings."""
    if not (is_store(folder) and (folder / MANIFEST).exists()):
        return None
    manifest = read_manifest(folder)
    plans.refuse_changes(manifest, plans.settings(address, pixels, options), folder)
    clean(folder)
    return Prepared(folder, manifest, already=True)


def clean(folder: Path) -> None:
    """Remove what only an unfinished preparation needs."""
    with contextlib.suppress(OSError):  # somebody else's files in it keep the folder
        for part in (folder / PARTS).iterdir():
            if PART_FILE.fullmatch(part.name):
                part.unlink(missing_ok=True)
        clear_rests(folder / PARTS)
        (folder / PARTS).rmdir()
    for name in (PLAN, *(path.name for path in folder.iterdir() if LOCK_FILE.fullmatch(path.name))):
        (folder / name).unlink(missing_ok=True)
    clear_rests(folder)
    clear_rests(folder / SHARDS)


def _still_needed(folder: Path) -> str:
    """What to add of the space that the rest takes, guessed from the shards that are done; "" before the first."""
    try:
        shards = plans.read_plan(folder / PLAN)["shards"]
        done = [path.stat().st_size for path in (folder / SHARDS).glob("*.arrow")]
    except (OSError, UserError):
        return ""
    return f"; the rest needs about {(shards - len(done)) * sum(done) / len(done) / 1e9:.2f} GB" if done else ""


@contextmanager
def locked(folder: Path, shard: tuple[int, int]) -> Iterator[None]:
    """One process per folder and part. Raises RunLockedError naming the one that works on it."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; choose a folder")
    inside = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    foreign = [name for name in inside if not LOCK_FILE.fullmatch(name)]
    if foreign and not (folder / SHARDS).is_dir():
        raise UserError(f"{folder}: holds other files ({foreign[0]}); choose a new or an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder / f"prepare-{shard[0]}-of-{shard[1]}.lock", str(folder)):
        if shard == (1, 1):  # nobody else works on it
            clear_rests(folder / SHARDS)
        yield
