"""tools/programs.py judges a program by what it printed, too."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parents[3] / "tools"
STRESS = """\
stress-ng: info:  [115] skipped: 0
stress-ng: info:  [115] passed: 1: cpu (1)
stress-ng: info:  [115] failed: 0
stress-ng: info:  [115] successful run completed in 1.08 sec
"""
PYTHON = """\
Total tests: run=1,234 skipped=3
Total test files: run=86/86 (filtered) skipped=2
Result: SUCCESS
"""


@pytest.fixture(scope="module")
def programs() -> Any:
    spec = importlib.util.spec_from_file_location("real_programs", TOOLS / "programs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "printed", "changes"),
    [
        (
            "stress-cpu",
            STRESS,
            [("failed: 0", "failed: 2"), ("passed: 1", "passed: 0"), ("successful", "un"),
             ("stress-ng: info:  [115] skipped", "stress-ng: fail:  [116] cpu: wrong")],
        ),
        (
            "python",
            PYTHON,
            [("86/86", "85/86"), ("SUCCESS", "FAILURE"), ("SUCCESS", "SUCCESS, INTERRUPTED")],
        ),
    ],
)  # fmt: skip
def test_a_program_is_judged_by_what_it_printed(
    programs: Any, name: str, printed: str, changes: list[tuple[str, str]]
) -> None:
    program = programs.Program.load(TOOLS / "programs" / f"{name}.sh")
    assert program.wrong(printed) == ""
    assert program.wrong("") != ""
    if name == "python":
        again = printed.replace("run=86/86", "run=87/86").replace("skipped=2", "skipped=2 rerun=1")
        assert program.wrong(again.replace("SUCCESS", "FAILURE then SUCCESS")) == ""
        assert program.wrong(again.replace("SUCCESS", "FAILURE then FAILURE")) != ""
    for old, new in changes:
        assert program.wrong(printed.replace(old, new)) != "", new
