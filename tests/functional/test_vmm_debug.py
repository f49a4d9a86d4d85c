"""gdb, the real one, on a running Linux."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator

import pytest

from crumble_common.messages.debug import DebugCount, DebugCounted, DebugTrace, DebugTraced
from crumble_common.messages.vm import VmEvent
from crumble_vmm.debug.packets import encode
from crumble_vmm.debug.server import DebugServer
from framework.guest_root import fsd, make_root
from framework.guest_vm import GuestVm
from functional.test_vmm_guest import config, run

pytestmark = [pytest.mark.guest, pytest.mark.slow]
GDB = "gdb-multiarch"


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuestVm]:
    root = make_root(tmp_path_factory.mktemp("root"))
    with fsd(root) as (sock, _), GuestVm(config(cpus=2), {"root_fs": sock}) as made:
        made.wait(VmEvent, lambda event: event.kind == "agent_ready")
        yield made


@pytest.fixture(scope="module")
def address(vm: GuestVm, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where gdb connects."""
    path = str(tmp_path_factory.mktemp("gdb") / "socket")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)
    made = threading.Event()

    def serve() -> None:
        DebugServer(vm.loop, vm.service.machine, listener)
        made.set()

    vm.loop.call_soon_threadsafe(serve)
    assert made.wait(10)
    return path


def gdb(address: str, *commands: str) -> str:
    if shutil.which(GDB) is None:
        pytest.skip("gdb-multiarch is not installed")
    words = [GDB, "-nx", "-batch", "-ex", f"target remote {address}"]
    for command in commands:
        words += ["-ex", command]
    for _ in range(2):
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        if (
            done.returncode != -signal.SIGABRT
        ):  # gdb's own internal error: rare, and no stub's to cause
            break
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rror" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def test_registers_threads_and_memory(vm: GuestVm, address: str) -> None:
    out = gdb(
        address, "info threads", "p/x $satp >> 60", "p $priv", "x/2i $pc", "set $s0 = $s0", "p $fcsr", "p $v1.w", "set $v1.w[1] = 77", "p $v1.w[1]", "p/x $vlenb",
        "monitor physical on", "x/2xw 0x80200000", "set {int}0x80200000 = {int}0x80200000", "monitor registers",
    )  # fmt: skip
    assert "hart 0" in out and "hart 1" in out
    assert "$1 = 0x9" in out or "$1 = 0x8" in out
    assert "privilege" in out
    assert "= 77" in out and "= 0x10" in out
    assert run(vm, "echo", "on") == "on\n"


def test_steps_and_breakpoints(vm: GuestVm, address: str) -> None:
    out = gdb(
        address, "hbreak *$stvec", "continue", "p $pc == $stvec", "stepi", "p $pc == $stvec", "delete",
        "p $sscratch != 0", "watch *(long *)$tp", "detach",
    )  # fmt: skip
    assert "Breakpoint 1, " in out
    assert [line.split()[-1] for line in out.splitlines() if line.startswith("$")][:2] == ["1", "0"]
    assert run(vm, "echo", "on") == "on\n"


def test_an_interrupt_stops_a_guest_that_runs(vm: GuestVm, address: str) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(20)
        peer.connect(address)
        peer.sendall(encode(b"vCont;c"))
        peer.sendall(b"\x03")
        answer = b""
        while b"#" not in answer:
            answer += peer.recv(100)
        assert b"$T02thread:1;" in answer
    assert run(vm, "echo", "on") == "on\n"


def test_a_watchpoint_is_hit(vm: GuestVm, address: str) -> None:
    """The kernel's stack pointer in thread_info, which every trap looks at."""
    out = gdb(
        address, "hbreak *$stvec", "continue", "delete", "set $task = $sscratch != 0 ? $sscratch : $tp",
        "awatch -location *(long *)($task + 16)", "continue",
    )  # fmt: skip
    assert "Hardware access (read/write) watchpoint 2: " in out
    assert "alue = " in out
    assert run(vm, "echo", "on") == "on\n"


def test_what_is_no_debugger_is_dropped(vm: GuestVm, address: str) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(20)
        peer.connect(address)
        peer.sendall(b"$" + bytes(100_000))
        with contextlib.suppress(ConnectionResetError):
            assert peer.recv(100) == b""
    assert run(vm, "echo", "on") == "on\n"


def test_a_trace_shows_what_ran(vm: GuestVm) -> None:
    answer = vm.ask(DebugTrace(cpu=0, count=500, seconds=0.3))
    assert isinstance(answer, DebugTraced)
    entries = list(struct.iter_unpack("<QII", answer.entries))
    assert 0 < len(entries) <= 500
    assert all(pc % 2 == 0 and privilege in (0, 1) for pc, _, privilege in entries)
    assert run(vm, "echo", "on") == "on\n"


def test_counters_tell_what_translated_code_did_not_do_itself(vm: GuestVm) -> None:
    answer = vm.ask(DebugCount())
    assert isinstance(answer, DebugCounted)
    assert answer.counters["instructions"] > 10**6
    # A guest that has booted has called SBI, and the interpreter was never needed for that.
    assert answer.fallbacks["ECALL"][0] > 0
    assert answer.fallbacks["ECALL"][1] == 0
