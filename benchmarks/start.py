"""From a command to its end in a VM that goes on from its boot snapshot, beside a container's.

    python -m benchmarks.start [--rounds 20] [--image deb:trixie]

Wall time, ms, `crumble up` running and the snapshot there. The peers, crun and runc, run `true` of the
same packages for this host's processor, unpacked; ours are a riscv64 guest's. Rows:

  run          `crumble run IMAGE true`, as a shell sees it, half a second after another one; the peers' `run`
  run at once  the same with no pause: the VM in reserve is not there yet
  run anew     the same for a VM that the one in reserve cannot be (--no-internet)
  python       `python3 -c pass`: what is in `run` before Crumble begins
  ready        asked for a VM → its agent answers, in a program with the SDK
  first        → it has run `true`, its first command: what `restore → command has run` is
  ready anew, first anew   of a VM that the one in reserve cannot be
  again        `true` once more in that VM: the difference is what it costs that memory comes when touched
  answer       a shell that reads and writes files, first thing after `ready`
  answer warm  the same once more in that VM
  answer boot  the same, first thing in a VM that booted
  answer late  the same once more in the VM that booted
  fork         all of `vm.fork(1)`, 256 MB of memory
  pause        what the parent stands still for it

Guests pay for every page they touch the first time; `first` and `answer` show that, nothing is left out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import crumble
from benchmarks import _bundle
from benchmarks._common import CRUMBLE, Comparison, Sample, supervisor
from crumble.sdk.session import session
from crumble_common.messages.client import Fork

ANSWER = (
    "for i in 1 2 3 4 5 6 7 8; do echo $i > /tmp/a$i; done; "
    "cat /tmp/a* /etc/passwd | grep -c root; ls -l /usr/bin | wc -l"
)
# In which the supervisor makes ready what the next start finds, s.
_REST = 0.5
QUIET: dict[str, Any] = {
    "stdin": subprocess.DEVNULL,
    "stdout": subprocess.DEVNULL,
    "stderr": subprocess.DEVNULL,
}


def took(call: Callable[[], object]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


def command(*words: str) -> float:
    """A whole command, which must not fail."""
    return took(lambda: subprocess.run(words, check=True, **QUIET))


def answer(vm: crumble.VM) -> float:
    """A shell that touches files."""
    return took(lambda: vm.run(["sh", "-c", ANSWER], check=True, capture_output=True))


def true(vm: crumble.VM) -> float:
    """A command that does nothing."""
    return took(lambda: vm.run(["true"], check=True))


def crumble_side(image: str) -> Sample:
    """One round of ours."""
    sample = {"run anew": command(CRUMBLE, "run", "--no-internet", image, "true")}
    command(CRUMBLE, "run", image, "true")
    sample["run at once"] = command(CRUMBLE, "run", image, "true")
    time.sleep(_REST)
    sample["run"] = command(CRUMBLE, "run", image, "true")
    sample["python"] = command(sys.executable, "-c", "pass")
    for kind, internet in (("", True), (" anew", False)):
        time.sleep(_REST)
        vm = crumble.VM(image, internet=internet)
        sample[f"ready{kind}"] = took(vm.start)
        sample[f"first{kind}"] = sample[f"ready{kind}"] + true(vm)
        sample["again"] = true(vm)
        vm.stop(0)
    with crumble.VM(image) as vm:
        assert vm.info.snapshot, "it booted"
        sample["answer"], sample["answer warm"] = answer(vm), answer(vm)
        vm.stop(0)
    return sample | fork(image)


def booted(image: str) -> Sample:
    """The first answer of a VM that booted."""
    with crumble.VM(image, boot_snapshot=False) as vm:
        sample = {"answer boot": answer(vm), "answer late": answer(vm)}
        vm.stop(0)
        return sample


def fork(image: str) -> Sample:
    """One VM more, of 256 MB."""
    with crumble.VM(image, memory="256m") as vm:
        vm.run(["true"])
        began = time.perf_counter()
        made = session().call(Fork(vm.name))
        whole = (time.perf_counter() - began) * 1000
        vm.stop(0)
    return {"fork": whole, "pause": made.pause * 1000}


def container(runtime: str, bundle: Path) -> Sample:
    """One round of a peer's."""
    words = [runtime, *(["--cgroup-manager=disabled"] if runtime == "crun" else [])]
    name = f"bench-{os.getpid()}-{time.monotonic_ns()}"
    return {"run": command(*words, "run", "-b", str(bundle), name)}


def works(runtime: str, bundle: Path) -> bool:
    """Containers can be run here; elsewhere it says why not."""
    try:
        container(runtime, bundle)
    except subprocess.CalledProcessError as error:
        print(f"start: {runtime} does not run here: {error}", file=sys.stderr)
        return False
    return True


def main() -> None:
    """The benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--image", default="deb:trixie")
    options = parser.parse_args()
    _bundle.compile_code()
    with supervisor():
        for memory in ("512m", "256m"):  # boots, and leaves the snapshots
            with crumble.VM(options.image, memory=memory) as vm:
                vm.run(["true"])
        with tempfile.TemporaryDirectory() as where:
            bundle = Path(where)
            _bundle.unpack(options.image, bundle / "rootfs")
            _bundle.write_config(bundle, ["true"])
            sides: dict[str, Callable[[], Sample]] = {
                "crumble": lambda: {**crumble_side(options.image), **booted(options.image)}
            }
            for runtime in _bundle.runtimes():
                if works(runtime, bundle):
                    sides[runtime] = partial(container, runtime, bundle)
            comparison = Comparison("start", "ms wall", {"image": options.image})
            comparison.measure(sides, options.rounds)
        print(comparison.table())
        print(comparison.save())


if __name__ == "__main__":
    main()
