"""`epg sample`: images of a trained generator into a folder that an interrupted run continues."""

from epg.labels import class_numbers
from epg.sampling.command import write_samples
from epg.sampling.request import Opened, Request, changed, fitted, open_request

__all__ = ["Opened", "Request", "changed", "class_numbers", "fitted", "open_request", "write_samples"]
