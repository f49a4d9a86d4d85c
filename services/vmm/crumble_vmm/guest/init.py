"""PID 1: makes a usable machine of a booted kernel, then is the agent. In the dialect of crumble_ir.

    pseudo file systems → modules → virtio-fs root → its /dev, /run, … → switch root → agent's port → agent

The initramfs holds /init (this program) and /modules/*.ko, loaded in the order of their names. The kernel
parameter crumble.root=TAG names the root; without it the initramfs stays the root. What cannot be done ends
the machine with one line, INIT_FAILED and a sentence, on every console there is.

Run as `init --port FD` it is only the agent, for tests.
"""

# mypy: ignore-errors

from __future__ import annotations

from crumble_ir import linux
from crumble_ir.dialect import (
    i32,
    ptr,
    u8,
    u64,
)
from crumble_ir.runtime import memory
from crumble_vmm.guest import agent, devices, mounts, network, phases, protocol, state, system

USAGE = 2
FAILED = 70
BASE_HOSTNAME = b"crumble"


def main(stack: ptr[u64]) -> i32:
    """PID 1 of a guest, or with --port FD an agent on an inherited descriptor."""
    state.null_fd = state.NONE
    state.name = ptr[u8](stack[1])
    if stack[0] == 3 and memory.same(ptr[u8](stack[2]), b"--port"):
        return _agent_only(ptr[u8](stack[3]))
    if linux.getpid() != 1:
        print("usage: init --port FD", file=2)
        return USAGE
    state.is_init = True
    _initialize()
    agent.run()
    system.power_off()
    return 0


def _agent_only(number: ptr[u8]) -> i32:
    fd: i32 = 0
    for index in range(memory.length(number)):
        fd = fd * 10 + i32(number[index] - b"0"[0])
    phases.mark("agent")
    _open_null()
    agent.start(fd, phases.data, phases.size)
    agent.run()
    return 0


def on_failure(message: ptr[u8]) -> None:
    """A failed assertion or check: a bug of ours."""
    if state.is_init:
        system.last_words(message)
    print(f"agent: {message:s}", file=2)
    linux.exit_group(FAILED)


def _open_null() -> None:
    """/dev/null for whoever has no stdin; and as 0 to 2, should they not be open."""
    fd = linux.openat(linux.AT_FDCWD, b"/dev/null", linux.O_RDWR, 0)
    while fd >= 0 and fd < 3:
        fd = linux.openat(linux.AT_FDCWD, b"/dev/null", linux.O_RDWR, 0)
    linux.fcntl(fd, linux.F_SETFD, linux.FD_CLOEXEC)
    state.null_fd = i32(fd)


def _initialize() -> None:
    phases.mark("init")
    linux.umask(0)
    mounts.base()
    _open_null()
    for number in range(3):
        linux.dup3(state.null_fd, number, 0)
    linux.sethostname(BASE_HOSTNAME, memory.length(BASE_HOSTNAME))
    devices.listen()
    phases.mark("modules")
    devices.load_modules()
    phases.mark("root")
    if mounts.find_root():
        mounts.mount_root()
        mounts.populate(b"/root")
        mounts.switch_root()
    else:
        mounts.populate(b"")
    devices.loopback_up()
    if mounts.find_parameter(protocol.NETWORK_PARAMETER):
        network.configure(mounts.parameter)
    phases.mark("port")
    fd = devices.wait_for_port()
    devices.stop_listening()
    phases.mark("agent")
    agent.start(fd, phases.data, phases.size)
