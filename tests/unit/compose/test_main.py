"""The `crumble` command's frame: what becomes of signals and errors in any verb."""

import subprocess
import sys

import pytest

PROGRAM = """
import signal, sys
from crumble.cli import main as command

def verb(_arguments):
    exec("import os; os.kill(os.getpid(), signal.{name})")  # as an import of dataclasses would be hit

command.run_verb = verb
sys.exit(command.main())
"""


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_the_command_with_its_status_wherever_it_hits(name: str, status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(name=name)], capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")
