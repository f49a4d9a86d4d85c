"""An echoing vhost-user back end, and a count of file descriptors."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.echo_backend import EchoServer


@pytest.fixture
def server() -> Iterator[EchoServer]:
    with EchoServer() as running:
        yield running


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def no_fd_leaks() -> Iterator[None]:
    """Fails a test that leaves more descriptors open than it found."""
    gc.collect()  # what other tests left must not be freed in between
    before = open_fds()
    yield
    assert open_fds() == before
