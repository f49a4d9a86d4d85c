"""The sandbox for real: each layer is entered in a child process, which then tries what it must not."""

import errno
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from crumble_common import sandbox
from crumble_common.sandbox import landlock, seccomp, syscalls
from crumble_native import sandbox as native

PREAMBLE = """
import errno, os, socket, sys, threading
from crumble_common import sandbox
def errno_of(call, *args):
    try:
        call(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
"""

LAYERS = sandbox.probe()


def needs(layer: str) -> pytest.MarkDecorator:
    state = LAYERS.get(layer, "off: not reported")
    return pytest.mark.skipif(not state.startswith("on"), reason=f"{layer} {state}")


def child(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a fresh Python; the test decides what its end should be."""
    return subprocess.run(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_layer_is_reported_with_on_or_a_reason() -> None:
    names = {
        "no_new_privs",
        "namespaces",
        "rlimits",
        "landlock",
        "capabilities",
        "seccomp",
        "sockets",
    }
    assert LAYERS.keys() == names
    assert all(state.startswith(("on", "off: ")) for state in LAYERS.values())


@needs("landlock")
def test_only_the_profiles_paths_can_be_opened(tmp_path: Path) -> None:
    for name in ("read", "write", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    done = child(
        """
        top = sys.argv[1]
        layers = sandbox.apply(sandbox.Profile(read=[top + "/read"], write=[top + "/write"]))
        for name in ("read", "write", "other"):
            print(errno_of(lambda: os.close(os.open(f"{top}/{name}/file", os.O_RDONLY))),
                  errno_of(lambda: os.close(os.open(f"{top}/{name}/new", os.O_CREAT | os.O_WRONLY))))
        print(errno_of(os.open, top + "/read/../other/file", os.O_RDONLY))
        print(errno_of(os.truncate, top + "/other/file", 0))
        import json.tool  # a module not imported before still can be
        """,
        tmp_path,
    )
    assert done.stdout.split("\n")[:5] == [
        "done EACCES",
        "done done",
        "EACCES EACCES",
        "EACCES",
        "EACCES",
    ]
    assert done.returncode == 0, done.stderr


@needs("seccomp")
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("socket.socket(socket.AF_INET)", "EPERM"),
        ("socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", "EPERM"),
        ("socket.socket(socket.AF_UNIX).close()", "done"),
        ("os.chroot('/')", "EPERM"),
        ("os.kill(os.getppid(), 0)", "EPERM"),
        ("os.mkfifo('/tmp/never')", "EPERM"),
    ],
)
def test_calls_outside_the_list_are_refused(code: str, expected: str) -> None:
    done = child(f"sandbox.apply(sandbox.Profile()); print(errno_of(lambda: {code}))")
    assert done.stdout.strip() == expected, done.stderr


@needs("seccomp")
@pytest.mark.parametrize(
    "code",
    [
        "os.execv('/bin/true', ['true'])",
        "os.fork()",
        "__import__('ctypes').CDLL(None).ptrace(0, 0, 0, 0)",
        "__import__('ctypes').CDLL(None).unshare(0x10000000)",
        "__import__('ctypes').CDLL(None).mount(b'a', b'/tmp', b'tmpfs', 0, None)",
    ],
)
def test_calls_that_only_an_intruder_makes_kill(code: str) -> None:
    done = child(f"sandbox.apply(sandbox.Profile()); print(errno_of(lambda: {code}))")
    assert done.returncode == -signal.SIGSYS, (done.stdout, done.stderr)


@needs("seccomp")
def test_threads_files_and_network_go_on_working() -> None:
    done = child(
        """
        import zmq
        context = zmq.Context()
        sandbox.apply(sandbox.Profile(network=True))
        thread = threading.Thread(target=lambda: print("thread"))
        thread.start(); thread.join()
        with socket.socket(socket.AF_INET) as sock:
            sock.bind(("127.0.0.1", 0))
        a, b = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        a.bind("inproc://x"); b.connect("inproc://x"); a.send(b"zmq"); print(b.recv().decode())
        """
    )
    assert (done.stdout.split(), done.returncode) == (["thread", "zmq"], 0), done.stderr


@needs("seccomp")
def test_threads_started_before_are_filtered_too() -> None:
    done = child(
        """
        ready, go = threading.Event(), threading.Event()
        def other():
            ready.set(); go.wait(); print(errno_of(socket.socket, socket.AF_INET))
        thread = threading.Thread(target=other); thread.start(); ready.wait()
        sandbox.apply(sandbox.Profile()); go.set(); thread.join()
        """
    )
    assert done.stdout.strip() == "EPERM", done.stderr


@needs("seccomp")
def test_after_the_seal_no_connection_is_made(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bus:
        bus.bind(str(tmp_path / "bus"))
        bus.listen()
        done = child(
            """
            import fcntl
            profile = sandbox.Profile()
            sandbox.apply(profile)
            sock = socket.socket(socket.AF_UNIX)
            print(errno_of(socket.socket(socket.AF_UNIX).connect, sys.argv[1]))
            print(sandbox.seal(profile))
            print(errno_of(sock.connect, sys.argv[1]), errno_of(socket.socket, socket.AF_UNIX))
            a, b = os.pipe()
            print(errno_of(fcntl.ioctl, a, 0x5412, b"x"))
            """,
            tmp_path / "bus",
        )
    assert done.stdout.splitlines() == ["done", "{'sockets': 'on'}", "EPERM EPERM", "EPERM"], (
        done.stderr
    )


@needs("capabilities")
def test_no_capability_is_left() -> None:
    done = child(
        """
        sandbox.apply(sandbox.Profile())
        print([line.split()[1] for line in open("/proc/self/status") if line.startswith("Cap")])
        """
    )
    effective = eval(done.stdout)
    assert effective[:3] == ["0" * 16] * 3
    assert effective[4] == "0" * 16


@needs("namespaces")
def test_isolated_process_has_no_network_but_keeps_its_files(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    done = child(
        """
        fd = os.open(sys.argv[1], os.O_RDONLY)
        print(sandbox.isolate()["namespaces"][:2], os.read(fd, 9).decode(), open(sys.argv[1]).read())
        print(sorted(name for _, name in socket.if_nameindex()), os.stat(sys.argv[1]).st_uid == os.getuid())
        """,
        tmp_path / "mine",
    )
    assert done.stdout.splitlines() == ["on kept kept", "['lo'] True"], done.stderr


def test_isolating_a_process_with_threads_says_why_not() -> None:
    done = child(
        """
        go = threading.Event(); thread = threading.Thread(target=go.wait); thread.start()
        print(sandbox.isolate()["namespaces"]); go.set()
        """
    )
    assert done.stdout.startswith("off: "), done.stdout


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "riscv64"])
def test_filter_is_well_formed_on_every_architecture(machine: str) -> None:
    """Invariant: every jump lands inside the program, and it ends in a return."""
    code = seccomp.program(syscalls.BASE | syscalls.WRITE_FILES, [1, 2], machine)
    steps = [code[at : at + 8] for at in range(0, len(code), 8)]
    assert len(steps) < 4096
    for at, step in enumerate(steps):
        if step[0] & 7 == 5:
            assert at + 1 + max(step[2], step[3]) < len(steps)
    assert steps[-1][0] == 6


def test_every_listed_call_is_in_the_table() -> None:
    for name in syscalls.BASE | syscalls.WRITE_FILES | syscalls.KILL:
        assert name in syscalls.NUMBERS
    assert not syscalls.KILL & (syscalls.BASE | syscalls.WRITE_FILES)


@pytest.mark.skipif(
    not Path("/usr/include/asm-generic/unistd.h").exists(), reason="no kernel headers"
)
def test_the_generic_table_agrees_with_the_kernels_headers() -> None:
    text = Path("/usr/include/asm-generic/unistd.h").read_text()
    found = {}
    for line in text.splitlines():
        words = line.split()
        if (
            len(words) >= 3
            and words[0] == "#define"
            and words[1].startswith(("__NR_", "__NR3264_"))
        ):
            name = words[1].removeprefix("__NR_").removeprefix("__NR3264_")
            found.setdefault(name, words[2])
    alias = {"newfstatat": "fstatat", "fadvise64": "fadvise64"}
    for name, (_, number) in syscalls.NUMBERS.items():
        header = found.get(alias.get(name, name))
        if number is not None and header is not None and header.isdigit():
            assert int(header) == number, name


def test_landlock_leaves_out_what_an_old_abi_lacks() -> None:
    assert landlock.handled(1) < landlock.handled(2) < landlock.handled(3) < landlock.handled(5)
    assert landlock.handled(5) == landlock.handled(7)


def test_bad_filters_are_an_error_not_a_crash() -> None:
    with pytest.raises(OSError, match="Invalid") as caught:
        native.seccomp_load(b"")
    assert caught.value.errno == errno.EINVAL
    assert socket.socket().close() is None
    assert os.getpid()


@needs("seccomp")
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("socket.socket(socket.AF_INET).close()", "done"),
        ("socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()", "done"),
        ("socket.create_server(('127.0.0.1', 0)).close()", "done"),
        ("socket.socket(socket.AF_UNIX)", "EPERM"),
        ("socket.socketpair()", "EPERM"),
        ("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", "EPERM"),
        ("socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", "EPERM"),
        ("socket.socket(40, socket.SOCK_STREAM)", "EPERM"),  # AF_VSOCK
        ("os.open('/etc/passwd', os.O_RDONLY)", "EPERM"),
        ("os.open('/dev/null', os.O_WRONLY)", "EPERM"),
        ("os.open('/tmp/never', os.O_WRONLY | os.O_CREAT)", "EPERM"),
    ],
)
def test_netd_has_sockets_of_two_families_and_no_files(code: str, expected: str) -> None:
    done = child(
        f"""
        from crumble_netd.service import NetdService
        profile = NetdService.sandbox(None)
        sandbox.apply(profile); sandbox.seal(profile)
        print(errno_of(lambda: {code}))
        """
    )
    assert done.stdout.strip() == expected, done.stderr


@needs("seccomp")
@pytest.mark.parametrize("code", ["os.execv('/bin/true', ['true'])", "os.fork()"])
def test_netd_makes_no_process(code: str) -> None:
    done = child(
        f"""
        from crumble_netd.service import NetdService
        sandbox.apply(NetdService.sandbox(None))
        print(errno_of(lambda: {code}))
        """
    )
    assert done.returncode == -signal.SIGSYS, (done.stdout, done.stderr)
