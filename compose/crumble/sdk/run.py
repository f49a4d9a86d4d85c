"""One command in one VM, as subprocess.run."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from typing import Any

from crumble.sdk.vm import VM, Command


def run(
    image: str,
    command: Command = (),
    *,
    input: Any = None,  # noqa: A002  subprocess has it
    capture_output: bool = False,
    text: bool = False,
    check: bool = False,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str = "",
    user: str = "",
    **vm_options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Boots a VM around an image, runs a command in it to its end, and ends the VM.

    command: a list, or a string for the guest's shell; empty: the image's own. vm_options: those of
    crumble.VM (memory, cpus, volumes, kernel, ...). timeout: seconds the command may take; booting is
    not counted. Returns subprocess.CompletedProcess; without capture_output the output goes to ours.
    Raises CommandTimeoutError, CommandError (with check), and other CrumbleErrors.
    """
    with VM(image, **vm_options) as vm:
        return vm.run(
            command,
            input=input,
            capture_output=capture_output,
            text=text,
            check=check,
            timeout=timeout,
            env=env,
            cwd=cwd,
            user=user,
        )
