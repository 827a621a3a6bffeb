"""What several test modules share."""

import os
import signal

import pytest
import torch

# A shell starts what runs in its background with Ctrl-C ignored, and nohup ignores a hangup; tests need both.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="session")
def few_threads() -> None:
    """One thread: tiny tensors gain nothing from more, and bit-exact comparisons want a fixed number."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing of the user's cache is read or written, by child processes either; pytest's workers share one."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ["EPG_CACHE"] = str(shared / "cache")


LONG = ("walk", "reliability/test_boundaries", "training/test_loop", "test_quickstart", "test_launch", "test_signals")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first: a file is not shared out, and the last one would be waited for."""
    items.sort(key=lambda item: not item.nodeid.startswith(tuple(f"tests/{name}" for name in LONG)))
