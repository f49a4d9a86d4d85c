"""What a process asks of the kernel for itself."""

import subprocess
import sys
from pathlib import Path

import pytest

_CHILD = """
import os
from crumble_native.process import merge_pages
asked = merge_pages()
if os.fork() == 0:
    print(asked, open("/proc/self/ksm_stat").read())
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(
    not Path("/proc/self/ksm_stat").exists(), reason="this kernel does not tell of KSM"
)
def test_those_it_forks_are_asked_for_too() -> None:
    done = subprocess.run(
        [sys.executable, "-uc", _CHILD], capture_output=True, text=True, check=True
    )
    asked, _, said = done.stdout.partition(" ")
    assert asked == "True"
    if "ksm_merge_any" in said:  # since Linux 6.16
        assert "ksm_merge_any: yes" in said
