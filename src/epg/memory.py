"""Memory that a process has freed stays its own where the CPU computes."""

import ctypes
import os
import sys

SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
NEVER, LARGE = 2**31 - 1, 2**30  # bytes


def keep_freed_memory() -> None:
    """Tells glibc not to give freed memory back to the system, unless the user has told it something else.

    A step frees nearly all that it has allocated. By default most of that goes back, and the next step pays for every
    page of it anew: a sixth of a step's CPU time (benchmarks/NOTES.md). Blocks above a GiB still come and go.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in SETTINGS):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, NEVER)
        mallopt(MMAP_THRESHOLD, LARGE)
