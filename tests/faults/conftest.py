"""For the tests of faults."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A place with a short name, whoever runs the tests: sockets are made below it."""
    with tempfile.TemporaryDirectory(prefix="crumble-") as made:
        yield Path(made)
