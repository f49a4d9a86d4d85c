"""CPU seconds of guest programs (benchmarks/guest/cpu.c) on the soft CPU beside QEMU's TCG.

    python -m benchmarks.cpu [--kernel IMAGE] [--rounds 5] [--scale 100] [PROGRAM...]

Both boot the same kernel with the same initramfs, whose /init is the program, and run everything in one
boot. The host's view counts: the emulator process's CPU time between the lines that the guest prints
before and after each program. `boot` is from the start of the process to the first line of /init.
Needs riscv64-linux-gnu-gcc and qemu-system-riscv64.

Other emulators (RVVM, TinyEMU) are beside them when --peer or $CRUMBLE_BENCH_PEERS (several: between commas) names a
command of yours for one, NAME=COMMAND. It is called with MEMORY_MIB KERNEL INITRAMFS COMMAND_LINE, becomes the
emulator (exec: its CPU time is the process's), and has the guest's serial console on standard output. A row of it with
another result than ours and QEMU's is left out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from benchmarks._common import Comparison, Sample, guest_kernel, process_cpu_seconds
from crumble_vmm.boot.initramfs import Initramfs

SOURCE = Path(__file__).resolve().parent / "guest" / "cpu.c"
COMPILER, QEMU = "riscv64-linux-gnu-gcc", "qemu-system-riscv64"
MEMORY_MIB = 512
PEERS = ("rvvm", "tinyemu")
COMMAND_LINE = "console=ttyS0 quiet cryptomgr.notests panic=-1"


def fail(reason: str) -> NoReturn:
    """Ends with one sentence."""
    sys.exit(f"benchmarks.cpu: {reason}")


def build_initramfs(folder: Path) -> Path:
    """The guest program, static, as /init."""
    program = folder / "cpu"
    subprocess.run(
        [COMPILER, "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE, "-lm"],
        check=True,
    )
    archive = Initramfs()
    archive.directory("proc")
    archive.character_device("dev/console", 5, 1)
    archive.file("init", program.read_bytes(), 0o755)
    path = folder / "initramfs"
    path.write_bytes(b"".join(archive.chunks()))
    return path


def qemu_command(kernel: Path, initramfs: Path, command_line: str) -> list[str | Path]:
    """One vCPU; serial console on standard output."""
    return [
        QEMU, "-M", "virt", "-smp", "1", "-m", str(MEMORY_MIB), "-nographic", "-no-reboot",
        "-monitor", "none", "-serial", "stdio", "-kernel", kernel, "-initrd", initramfs,
        "-append", command_line,
    ]  # fmt: skip


def soft_command(kernel: Path, initramfs: Path, command_line: str) -> list[str | Path]:
    """The same machine on our CPU."""
    return [
        sys.executable, "-m", "benchmarks._soft_guest", "--memory", str(MEMORY_MIB),
        kernel, initramfs, command_line,
    ]  # fmt: skip


def peer_commands(given: list[str]) -> dict[str, str]:
    """Name → command, of --peer and the environment."""
    texts = [*given, *filter(None, os.environ.get("CRUMBLE_BENCH_PEERS", "").split(","))]
    found = dict(text.partition("=")[::2] for text in texts)
    for name, command in found.items():
        if shutil.which(command) is None:
            fail(f"{command!r} of the peer {name} is no command: name it as NAME=COMMAND.")
    return found


class Watcher:
    """Reads a guest's console and the emulator's clock at each line of the benchmark's."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._mark = 0.0
        self.sample: dict[str, float] = {}
        self.results: dict[str, str] = {}

    def line(self, text: str) -> None:
        words = text.split()
        now = process_cpu_seconds(self._pid)
        if words[0] == "@@I":
            self.sample["boot"] = now
        elif words[0] == "@@E":
            self.sample[words[1]] = now - self._mark
            self.results[words[1]] = words[3]
        self._mark = now


def run_guest(command: list[str | Path], results: dict[str, str], *, trusted: bool) -> Sample:
    """Boots once. The programs' results must be those of the runs before it, or, unless trusted, do not count."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace",
    ) as process:  # fmt: skip
        watcher = Watcher(process.pid)
        console = []
        assert process.stdout is not None
        for text in process.stdout:
            console.append(text)
            at = text.find("@@")
            if text[at:].startswith("@@X"):
                break
            if at >= 0:
                watcher.line(text[at:])
        else:
            fail(f"{command[0]} ended before the guest did:\n{''.join(console[-20:])}")
        process.kill()
    for name, result in watcher.results.items():
        if results.setdefault(name, result) == result:
            continue
        if not trusted:
            print(f"{command[0]} computes {name} wrongly: left out", file=sys.stderr)
            del watcher.sample[name]
        else:
            fail(f"{name} gave {result} on {command[0]}, {results[name]} before.")
    return watcher.sample


def main() -> None:
    """Measures, prints the table, writes benchmarks/results/cpu.json."""
    parser = argparse.ArgumentParser(prog="benchmarks.cpu", description=__doc__)
    parser.add_argument("--kernel", type=Path, help="default: ocid's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=int, default=100, help="percent of the full work")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("programs", nargs="*", help="all when none is named")
    options = parser.parse_args()
    for tool in (COMPILER, QEMU):
        if shutil.which(tool) is None:
            fail(f"{tool} is not installed.")
    peers = peer_commands(options.peer)
    absent = [name for name in PEERS if name not in peers]
    kernel = options.kernel or guest_kernel()
    words = " ".join([str(options.scale), *options.programs])
    command_line = f"{COMMAND_LINE} -- {words}"
    with tempfile.TemporaryDirectory() as folder:
        initramfs = build_initramfs(Path(folder))
        commands = {
            "soft": soft_command(kernel, initramfs, command_line),
            "qemu-tcg": qemu_command(kernel, initramfs, command_line),
        }
        for name, command in peers.items():
            commands[name] = [command, str(MEMORY_MIB), kernel, initramfs, command_line]
        results: dict[str, str] = {}
        comparison = Comparison(
            "cpu",
            "CPU s",
            {
                "scale": options.scale,
                "rounds": options.rounds,
                "qemu": qemu_version(),
                "absent": absent,
            },
        )
        comparison.measure(
            {
                side: lambda side=side, command=command: run_guest(
                    command, results, trusted=side not in peers
                )
                for side, command in commands.items()
            },
            options.rounds,
        )
    print(comparison.table())
    if absent:
        print(f"  absent: {', '.join(absent)}; --peer gives them")
    print(f"written: {comparison.save()}")


def qemu_version() -> str:
    """First line of --version."""
    done = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


if __name__ == "__main__":
    main()
