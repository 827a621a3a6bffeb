"""What `epg prepare` and `epg inspect` show: progress, summaries, reports."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from epg.data.prepared.encode import PixelOptions
from epg.data.prepared.inspection import Inspection, contact_sheet, inspect_dataset, size_histogram, verify_store
from epg.data.prepared.inspection import read_report as read_report
from epg.data.prepared.plan import parse_shard
from epg.data.prepared.prepare import Prepared, Progress, prepare
from epg.data.prepared.seen import manifest_lines
from epg.data.prepared.store import REPORT_FILE, is_store
from epg.data.sources.base import SourceOptions
from epg.data.sources.kinds import SHEET
from epg.errors import DataError, OutputError, UserError, cause
from epg.progress import reporting

SHOWN = 8


def run_prepare(
    source: str,
    out: Path,
    pixels: PixelOptions,
    options: SourceOptions,
    *,
    on_error: Literal["skip", "fail"] = "skip",
    workers: int | None = None,
    shard: str = "1/1",
    parquet: Path | None = None,
) -> Prepared:
    """`prepare` with a progress bar and a summary, then parquet files if asked for."""
    with counting("preparing") as progress:
        done = prepare(
            source,
            out,
            pixels,
            options=options,
            on_error=on_error,
            workers=default_workers() if workers is None else workers,
            shard=parse_shard(shard),
            progress=progress,
        )
    manifest = done.manifest
    if manifest is None:
        say(f"Part {shard} of {out} is done; the set is finished when the other parts are.")
        return done
    say(
        f"{'Already prepared' if done.already else 'Prepared'}: {out}, {manifest['images']} images of "
        f"{len(manifest['classes'])} classes, mean {_numbers(manifest['mean'])}, std {_numbers(manifest['std'])}",
        *manifest_lines(manifest),
    )
    if manifest["rejected"]:
        say(f"{manifest['rejected']} could not be used and were left out; why is in {out / REPORT_FILE}:")
        say(*(f"  {item.name}: {item.reason}" for item in read_report(out / REPORT_FILE)[:SHOWN]))
    if parquet is not None:
        from epg.data.prepared.export import write_parquet

        with counting("writing parquet") as progress:
            files = write_parquet(out, parquet, progress)
        say(f"{len(files)} parquet files in {parquet}; upload with: hf upload USER/NAME {parquet} --repo-type dataset")
    return done


def run_inspect(
    dataset: str,
    pixels: PixelOptions,
    options: SourceOptions,
    *,
    sheet: Path,
    report: Path | None = None,
    verify: bool = False,
    workers: int | None = None,
) -> Inspection:
    """`inspect_dataset` as tables, a contact sheet, and optionally a JSON file.

    Raises DataError (after showing them) where `verify` finds differences.
    """
    count = default_workers() if workers is None else workers
    if verify:
        if not is_store(Path(dataset)):
            raise UserError(f"--verify: {dataset} is no prepared set, so nothing is known about its images to compare")
        with counting("verifying") as progress:
            problems = verify_store(Path(dataset), count, progress)
        say(*problems)
        if problems:
            raise DataError(f"{dataset}: {len(problems)} differences from what was prepared (listed above)")
        say("Every image and file is as it was prepared.")
    _refuse_sheet_within(sheet, dataset)
    with counting("inspecting") as progress:
        found = inspect_dataset(dataset, options=options, pixels=pixels, workers=count, progress=progress)
    try:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(found).save(sheet, "PNG")
        if report is not None:
            report.write_text(json.dumps(_as_json(found), indent=1))
    except OSError as error:
        raise OutputError(f"{error.filename or sheet}: cannot be written ({cause(error)})") from error
    _show(found, dataset)
    if not is_store(Path(dataset)):
        say("Every image was decoded. Damage that still decodes shows only in a prepared set (--verify).")
    say(f"Contact sheet: {sheet}")
    return found


def say(*lines: str) -> None:
    """Lines as they are, however long: paths are to be copied."""
    for line in lines:
        Console(highlight=False).print(line, markup=False, soft_wrap=True)


def _refuse_sheet_within(sheet: Path, dataset: str) -> None:
    """A picture among the images of a folder would be trained on; only the usual name is known for what it is."""
    folder = Path(dataset).expanduser()
    inside = folder.is_dir() and not is_store(folder) and sheet.resolve().is_relative_to(folder.resolve())
    if inside and sheet.name != SHEET:
        raise UserError(
            f"--sheet {sheet}: lies among the images of {dataset} and would become one; choose another place"
        )


def default_workers() -> int:
    """As many processes as this one may use cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def counting(what: str) -> Iterator[Progress]:
    """A display for what reports how many more are done, of so many in all; the first report is an earlier run's."""
    done = 0
    with reporting(what) as report:

        def more(items: int, total: int) -> None:
            nonlocal done
            done += items
            report(done, total)

        yield more


def _show(found: Inspection, dataset: str) -> None:
    table = Table(title=dataset, show_header=False)
    rows: dict[str, object] = {"kind": found.kind, "images": len(found), "rejected": len(found.rejected)}
    if found.classes:
        counts = sorted((count, name) for name, count in found.classes)
        (least, rare), (most, common) = counts[0], counts[-1]
        middle = int(np.median([count for count, _ in counts]))
        text = f"{least} ({rare}) to {most} ({common}), median {middle}" if least < most else f"{least} each"
        rows |= {"classes": len(counts), "images per class": text}
    rows |= {name: _numbers(found.manifest[name]) for name in ("mean", "std")}
    low, middle_size, high = (
        "x".join(str(int(side)) for side in sides)
        for sides in (found.sizes.min(axis=0), np.median(found.sizes, axis=0), found.sizes.max(axis=0))
    )
    rows["original sizes"] = f"{low} to {high}, median {middle_size}" if low != high else f"{low}, all"
    for bucket, count in size_histogram(found.sizes):
        rows[f"short side {bucket}"] = f"{count} ({100 * count / len(found):.1f} %)"
    alike = {"equal": found.equal, "similar": found.similar}
    for kind, groups in alike.items():
        rows[f"{kind} images"] = f"{sum(map(len, groups))} images in {len(groups)} groups" if groups else "none"
    for name, value in rows.items():
        table.add_row(name, str(value))
    Console(highlight=False).print(table)
    for kind, groups in alike.items():
        say(*(f"  {kind}: {', '.join(found.name(int(i)) for i in group[:6])}" for group in groups[:SHOWN]))
    say(*manifest_lines(found.manifest))
    say(*(f"  rejected: {item.name}: {item.reason}" for item in found.rejected[:SHOWN]))


def _as_json(found: Inspection) -> dict[str, object]:
    _, *said = manifest_lines(found.manifest)
    overview = found.manifest["overview"]
    alike = {"equal": found.equal, "similar": found.similar}
    return {
        "kind": found.kind,
        "images": len(found),
        "classes": dict(found.classes),
        "mean": found.manifest["mean"],
        "std": found.manifest["std"],
        "short_side": dict(size_histogram(found.sizes)),
        **{kind: [[found.name(int(i)) for i in group] for group in groups] for kind, groups in alike.items()},
        "overview": overview,
        "seen": said[len(overview) :],
        "rejected": {item.name: item.reason for item in found.rejected},
    }


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)
