"""`epg compare`."""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Compare:
    """Receipts of `epg evaluate` side by side: which is better, by more than chance, and whether one may compare."""

    receipts: tyro.conf.Positional[tuple[Path, ...]]
    """JSON files, or run folders (their evaluation.json)."""
    out: tuple[Path, ...] = ()
    """Files to write, in the format of their ending: .md, .json, .png (figure with error bars)."""

    def __call__(self) -> None:
        from epg.analysis.compare_report import run_compare

        run_compare(self.receipts, self.out)
