"""`epg quickstart`: the whole method on a small budget, ending with a page that shows what happened."""

from epg.quickstart.study import run_quickstart

__all__ = ["run_quickstart"]
