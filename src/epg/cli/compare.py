"""`epg compare` and `epg report`: results side by side."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from epg.cli.named import Existing, Out


@dataclass(frozen=True)
class Compare:
    """Compare receipts of `epg evaluate`: which is better, and surely?

    By more than chance, and whether they may be compared at all.
    """

    receipts: tyro.conf.Positional[tuple[Path, ...]]
    """JSON files, or run folders (their evaluation.json)."""
    out: tuple[Path, ...] = ()
    """Files to write, in the format of their ending: .md, .json, .png (figure with error bars)."""

    def __call__(self) -> None:
        from epg.analysis.compare_report import run_compare

        run_compare(self.receipts, self.out)


@dataclass(frozen=True)
class Report:
    """Write a page about runs: pictures, curves, receipts, commands.

    Of one run or several side by side, finished or in training. A single file to open in a browser or to send to
    somebody; it needs no network.
    """

    runs: tyro.conf.Positional[tuple[Existing, ...]]
    """Run folders of any stage; a folder that holds runs stands for all of them."""
    out: Out | None = None
    """The page; report.html in the run folder, or in the one that all runs are in, if not given."""
    watch: bool = False
    """Write it again every 30 seconds while a run is training; an open page follows."""

    def __call__(self) -> None:
        from epg.report.page import run_report

        run_report(self.runs, self.out, watch=self.watch)
