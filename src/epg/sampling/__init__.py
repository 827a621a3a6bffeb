"""`epg sample`: images of a trained generator into a folder that an interrupted run continues."""

from epg.labels import class_numbers
from epg.sampling.command import write_samples
from epg.sampling.settings import Request, changed

__all__ = ["Request", "changed", "class_numbers", "write_samples"]
