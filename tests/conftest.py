"""What several test modules share."""

import socket

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def few_threads() -> None:
    """One thread: tiny tensors gain nothing from more, and bit-exact comparisons want a fixed number."""
    torch.set_num_threads(1)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
