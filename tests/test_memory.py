"""Where the CPU computes, a step does not pay anew for memory that the step before has freed."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from epg.distributed import pick_device

pick_device("auto" if not torch.cuda.is_available() else "cpu")

def step():
    blocks = [torch.ones(2**20) for _ in range(50)]  # 4 MiB each
    return sum(len(block) for block in blocks)

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 50 * 2**22 // 4096  # of a step


def page_faults(**variables: str) -> int:
    ours = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment | variables, capture_output=True, text=True, check=True
    )
    return int(found.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_kept() -> None:
    assert page_faults() < PAGES


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_the_users_settings_are_left_alone() -> None:
    """And the control: memory that goes back at once is paid for in every step."""
    assert page_faults(MALLOC_TRIM_THRESHOLD_="131072") > 2 * PAGES
