"""The soft CPU's tests run on both of its engines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from framework import rv64_engine
from framework.rv64_engine import EAGER, INTERPRETER

ENGINES = {"interpreter": INTERPRETER, "translator": EAGER}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrizes what tests the CPU, not the tables before it."""
    name = metafunc.module.__name__.rpartition(".")[2]
    if name.startswith("test_rv64_") and name not in ("test_rv64_asm", "test_rv64_decode"):
        metafunc.fixturenames.append("engine")
        metafunc.parametrize("engine", ENGINES, indirect=True, scope="module")


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Machines that are made meanwhile run on this engine."""
    with rv64_engine.engine(ENGINES[request.param]):
        yield request.param
