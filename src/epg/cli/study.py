"""`epg study`."""

from dataclasses import dataclass
from typing import ClassVar

import tyro

from epg.cli.named import OutFolder, StudyFile


@dataclass(frozen=True)
class Study:
    """Execute a declared grid of runs and show its table.

    Arms, seeds, a stage 1 that is shared. Any number of processes and machines may execute the same study in a folder
    that they share. Running the command again goes on where it was, and shows the table of a study that is done. `epg
    study studies/table12-digits.yaml`.
    """

    CONTINUES: ClassVar[bool] = True

    file: tyro.conf.Positional[StudyFile]
    """A study: a YAML file, see docs/studies.md."""
    out: OutFolder | None = None
    """Its folder; runs/studies/NAME if not given. Studies that share one share the runs that they have in common."""
    only: tuple[str, ...] = ()
    """Arms to execute, with those that they begin with; all if not given."""
    dry_run: bool = False
    """Print the cells and what they cost."""

    def __call__(self) -> None:
        from epg.study.command import run_study

        run_study(self.file, self.out, only=self.only, dry_run=self.dry_run)
