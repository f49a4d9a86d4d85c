"""The soft CPU's tests run on both of its engines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from crumble_native import rv64
from framework import rv64_engine
from framework.rv64_engine import EAGER, INTERPRETER

ENGINES = {"interpreter": INTERPRETER, "translator": EAGER}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrizes what tests the CPU, not the tables before it."""
    name = metafunc.module.__name__.rpartition(".")[2]
    if name.startswith("test_rv64_") and name not in ("test_rv64_asm", "test_rv64_decode"):
        metafunc.parametrize("engine", ENGINES, indirect=True, scope="module")


@pytest.fixture(scope="module", autouse=True)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Machines that are made meanwhile run on this engine; "" for tests of other things."""
    wanted: str = getattr(request, "param", "")
    if not wanted:
        yield ""
        return
    with rv64_engine.engine(ENGINES[wanted]):
        assert (rv64.translator_state() == rv64.TRANSLATOR_OFF) == (wanted == "interpreter")
        yield wanted
