"""Invariant: compiled code computes what Python computes, for every program, input and architecture."""

from __future__ import annotations

import struct
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from framework.compiled import ARCHES, output, runner
from framework.dialect_programs import CORNERS, INPUTS, Generator, source
from framework.dialect_reference import Reference

ROUNDS = 12


def inputs_from(random: Random) -> list[list[int]]:
    return [
        [random.choice([random.choice(CORNERS), random.getrandbits(64)]) for _ in range(INPUTS)]
        for _ in range(ROUNDS)
    ]


def check(functions: list[list[tuple[object, ...]]], random: Random, arch: str) -> None:
    inputs = inputs_from(random)
    expected = []
    for row in inputs:
        reference = Reference(row)
        expected += [f"{reference.call(body):x}" for body in functions]
    stdin = b"".join(struct.pack(f"<{INPUTS}Q", *row) for row in inputs)
    program = source(functions)
    assert output(program, arch, stdin=stdin).split() == expected, program


@pytest.mark.parametrize("arch", ARCHES)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_expressions(arch: str, seed: int) -> None:
    runner(arch)
    random = Random(seed)
    generator = Generator(random)
    check([[("return", generator.expression("u64", 6))] for _ in range(6)], random, arch)


@pytest.mark.parametrize("arch", ARCHES)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_programs(arch: str, seed: int) -> None:
    runner(arch)
    random = Random(seed)
    generator = Generator(random)
    check([generator.function(8) for _ in range(2)], random, arch)
