"""`crumble run --deterministic`: what a guest does, and what it is in the end, is the same to the bit."""

import dataclasses
import signal
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import crumble
from crumble.sdk import session
from crumble_common.errors import UsageError
from crumble_common.wire import Envelope, decode, encode
from crumble_vmm.recording import Said
from framework.command import World, read_until
from framework.real_crumble import IMAGE, RealWorld, real_world

pytestmark = [pytest.mark.guest, pytest.mark.network, pytest.mark.slow]

# Whatever may differ: time, entropy, process IDs, files' times, disks, interrupts, sleeping, waiting for others.
SCRIPT = """
sha256sum; date +%s.%N; od -An -N16 -tx1 /dev/urandom; echo $$; hostname
ls -la --full-time /etc | sha256sum; df -i / | sha256sum
echo > /tmp/a; sleep 0.3; stat -c %y /tmp/a
for n in 1 2 3; do (sleep 0.0$n; seq $n$n$n | sort -R > /tmp/$n) & done; wait; cat /tmp/[123] | sha256sum
cat /proc/interrupts /proc/stat /proc/meminfo | sha256sum
seq 300000
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealWorld]:
    with real_world(tmp_path_factory.mktemp("same") / "w") as made:
        yield made


def run(world: World, pieces: list[bytes], *options: str) -> tuple[bytes, bytes]:
    """What SCRIPT prints, and the digest; its stdin comes in pieces, its output is read late."""
    words = ["run", "--deterministic", "--digest", *options, "-i", IMAGE, "sh", "-c", SCRIPT]
    process = world.start(*words, stdin=subprocess.PIPE)
    assert process.stdin is not None
    for piece in pieces:
        process.stdin.write(piece)
        process.stdin.flush()
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert b"instructions" in err
    assert b"disturbed" not in err
    return out, err


def test_two_runs_are_the_same_bits(world: RealWorld) -> None:
    text = bytes(range(256)) * 1000  # more than the guest's window
    first = run(world, [text])
    second = run(world, [text[:1], text[1:70_000], text[70_000:]], "--name", "another")
    assert first == second
    assert len(first[0]) > 1 << 20  # the guest waited for its reader
    other = run(world, [text], "--seed", "another")
    assert other[0] != first[0]


def test_requests_find_the_guest_where_it_was(
    world: RealWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CRUMBLE_RUNTIME_DIR", "CRUMBLE_DATA_DIR"):
        monkeypatch.setenv(name, world.environment[name])
    found = []
    for _ in range(2):
        with crumble.VM(IMAGE, deterministic=True) as vm:
            vm.write_file("/a", "text")
            before = vm.digest()
            assert vm.digest() == before  # it stands still
            vm.run(["sha256sum", "/a"], capture_output=True)
            with pytest.raises(UsageError, match="cannot be captured"):
                vm.snapshot("no")
            with pytest.raises(UsageError, match="cannot have a terminal"):
                vm.popen(["sh"], tty=(24, 80))
            found.append((before, vm.digest()))
    assert session._session is not None
    session._session.close()
    world.assert_nothing_left()
    assert found[0] == found[1]
    assert not found[0][1].disturbed
    assert found[0][1].instructions > found[0][0].instructions


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--deterministic", "--cpus", "2"], "has one CPU"),
        (["--deterministic", "--network", "user"], "has no network"),
        (["--deterministic", "--hv", "kvm"], "does not run on KVM"),
        (["--digest"], "are for --deterministic"),
        (["--record", "f"], "are for --deterministic"),
    ],
)
def test_what_cannot_be_deterministic(world: RealWorld, options: list[str], says: str) -> None:
    done = world.run("run", *options, IMAGE, "true")
    assert done.returncode == 125
    assert says in done.stderr


# Runs until the host says so, and is told of a signal and of what others do meanwhile.
BUSY = """
trap 'date +%N; echo got' TERM; echo ready
n=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); done
echo $n; date +%N; cat /tmp/stop; sha256sum
"""


def busy(world: World, *options: str) -> subprocess.Popen[bytes]:
    words = ["run", "--deterministic", "--digest", *options, "-i", IMAGE, "sh", "-c", BUSY]
    return world.start(*words, stdin=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_a_recorded_run_is_had_again(world: RealWorld, tmp_path: Path) -> None:
    record = tmp_path / "record"
    world.up()
    process = busy(world, "--record", str(record), "--name", "first")
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdin.write(bytes(range(256)) * 1000)
    process.stdin.flush()
    printed = read_until(process.stdout, b"ready\n")
    process.send_signal(signal.SIGTERM)
    printed += read_until(process.stdout, b"got\n")
    script = "date +%N; seq 20000 > /tmp/x; cat > /tmp/s; mv /tmp/s /tmp/stop"
    assert world.run("exec", "-i", "first", "sh", "-c", script, data=b"text\n").returncode == 0
    printed += process.communicate()[0]
    assert process.returncode == 0, printed
    assert b"text\n" in printed
    assert b"disturbed" not in printed
    assert world.run("down").returncode == 0

    again = busy(world, "--replay", str(record))
    assert again.communicate(b"not heard")[0] == printed

    _change_what_was_said(record)
    changed = busy(world, "--replay", str(record))
    out = changed.communicate()[0]
    assert changed.returncode == 125
    assert b"The replay diverges at instruction" in out

    other = world.run(
        "run", "--deterministic", "--replay", str(record), "-m", "600m", IMAGE, "true"
    )
    assert other.returncode == 125
    assert "another memory" in other.stderr


def _change_what_was_said(path: Path) -> None:
    """As if the guest's agent had been an instruction later with its first words."""
    data = path.read_bytes()
    size = int.from_bytes(data[8:12], "little")  # of the head
    at = 16 + size
    length = int.from_bytes(data[at : at + 4], "little")
    item = decode(data[at + 8 : at + 8 + length]).body
    assert isinstance(item, Said)
    frame = encode(Envelope(dataclasses.replace(item, instructions=item.instructions + 1)))
    frame = len(frame).to_bytes(4, "little") + zlib.crc32(frame).to_bytes(4, "little") + frame
    path.write_bytes(data[:at] + frame + data[at + 8 + length :])
