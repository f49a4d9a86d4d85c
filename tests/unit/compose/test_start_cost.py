"""What a start must not pay for: docs/decisions/ has the figures."""

from __future__ import annotations

import json
import subprocess
import sys

from crumble.supervisor.table import PRELOAD, TABLE

# Tens of milliseconds together; none is needed to ask a supervisor for a VM.
_HEAVY = {
    "dataclasses",
    "inspect",
    "ipaddress",
    "json",
    "logging",
    "pathlib",
    "rich",
    "shlex",
    "zmq",
}


def imported_by(code: str) -> set[str]:
    """The modules that a new interpreter has after `code`, beside those it has anyway."""
    program = (
        f"import sys; had = set(sys.modules)\n{code}\nprint(*set(sys.modules) - had, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return set(done.stdout.split())


def test_the_command_imports_little() -> None:
    found = imported_by("import crumble.cli.main, crumble.cli.run, crumble.cli.run_vm")
    assert "crumble.sdk.client" in found
    assert not found & _HEAVY


def test_a_forkserver_has_what_a_machine_is_built_with() -> None:
    warm = [row.entry.partition(":")[0] for row in TABLE.values()]
    warm += [row.warm for row in TABLE.values() if row.warm]
    code = f"import importlib, json\nfor name in {json.dumps([*PRELOAD, *warm])}: importlib.import_module(name)"
    found = imported_by(code)
    assert {"crumble_vmm.boards.riscv64", "crumble_vmm.devices.goldfish_rtc"} <= found
