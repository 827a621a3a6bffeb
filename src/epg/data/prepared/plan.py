"""What a preparation was begun with: everything its bytes depend on, recorded in `plan.json` until it is finished."""

import json
import os
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from epg.data.pixels.rules import check_rules
from epg.data.prepared.encode import PixelOptions
from epg.data.prepared.shards import PARTS, ShardJob, write_durably
from epg.data.prepared.store import SHARDS
from epg.data.sources.base import Source, SourceOptions
from epg.data.sources.remote import is_remote, public_name
from epg.errors import DataError, UserError
from epg.storage.plain_file import read_plain

PLAN = "plan.json"
SHARD_BYTES = 2**29  # of uncompressed pixels
MAX_SHARD_ITEMS = 16_384


def check_options(pixels: PixelOptions, workers: int, shard: tuple[int, int]) -> None:
    """Raises UserError for settings out of range."""
    if not 1 <= pixels.image_size <= 4096:
        raise UserError(f"--image-size {pixels.image_size}: must be between 1 and 4096")
    if pixels.channels not in (1, 3):
        raise UserError(f"--channels {pixels.channels}: choose 1 (grey) or 3 (colour)")
    if workers < 0:
        raise UserError(f"--workers {workers}: must be at least 0")
    if not 1 <= shard[0] <= shard[1]:
        raise UserError(f"--shard {shard[0]}/{shard[1]}: must be I/N with I from 1 to N")
    check_rules(pixels)


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of "i/n"."""
    first, _, last = text.partition("/")
    if not (first.isdecimal() and last.isdecimal()):
        raise UserError(f"--shard {text}: must be I/N, such as 1/4")
    return int(first), int(last)


def make_plan(address: str, source: Source, pixels: PixelOptions, options: SourceOptions) -> dict[str, Any]:
    """Everything that the bytes of a store depend on."""
    job = make_job(source, pixels)
    return {
        **settings(address, pixels, options),
        "kind": source.kind,
        "listed": len(source),
        "listing": source.digest(),
        "shards": len(job),
        "epg": version("epg"),
    }


def make_job(source: Source, pixels: PixelOptions, folder: Path | None = None) -> ShardJob:
    """How the images are cut into shards: small sets into enough pieces for many processes."""
    by_size = SHARD_BYTES // (pixels.channels * pixels.image_size**2)
    return ShardJob(source, max(16, min(by_size, MAX_SHARD_ITEMS, -(-len(source) // 64))), pixels, folder)


def settings(address: str, pixels: PixelOptions, options: SourceOptions) -> dict[str, Any]:
    """What the user chose; the source by name only, as a path says where somebody keeps things."""
    name = public_name(address) if is_remote(address) else _local_name(address)
    return {"source": name, "pixels": json.loads(json.dumps(asdict(pixels))), "options": options.recorded()}


def _local_name(address: str) -> str:
    path = Path(address).expanduser()
    return path.resolve().name if os.path.lexists(path) or path.is_absolute() else address


def claim(folder: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Record the plan in a new folder, or compare it with the one that its preparation began with."""
    for name in (SHARDS, PARTS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    path = folder / PLAN
    if not path.exists():
        write_durably(path, json.dumps(plan, indent=1).encode())
    recorded = read_plan(path)
    refuse_changes(recorded, plan, folder)
    refuse_outdated(recorded, plan["listing"], plan["listed"], folder)
    return recorded


def read_plan(path: Path) -> dict[str, Any]:
    """A recorded plan. Raises DataError for a damaged one."""
    try:
        plan = json.loads(read_plain(path))
        assert {"source", "pixels", "options", "listing", "listed", "shards"} <= plan.keys()
    except (OSError, ValueError, AttributeError, AssertionError) as error:
        raise DataError(f"{path} is damaged; delete the folder and prepare again") from error
    return dict(plan)


def refuse_changes(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    """Raises UserError listing every setting, old -> new, that differs."""
    pairs = [("source", old["source"], new["source"])]
    for group in ("pixels", "options"):
        pairs += [(name, old[group].get(name), value) for name, value in new[group].items()]
    changed = [f"  {name}: {before} -> {after}" for name, before, after in pairs if before != after]
    if changed:
        raise UserError(
            f"{folder}: was begun with other settings:\n" + "\n".join(changed) + "\nChoose another folder, or delete it"
        )


def refuse_outdated(recorded: dict[str, Any], listing: str, images: int, folder: Path) -> None:
    """Raises UserError where a source, now of this listing and so many images, has changed since it was prepared."""
    if recorded["listing"] != listing:
        raise UserError(
            f"{folder}: {recorded['source']} has changed since it was prepared ({recorded['listed']} images then, "
            f"{images} now; or other names, contents or labels). Prepare into another folder, or delete this one and "
            "prepare again"
        )
