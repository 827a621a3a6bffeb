import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability.driver import Driver


@pytest.fixture(scope="session")
def driver() -> Driver:
    return Driver()


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: hundreds of synced saves take seconds there, minutes on a disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="epg-test-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
