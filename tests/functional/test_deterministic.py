"""`crumble run --deterministic`: what a guest does, and what it is in the end, is the same to the bit."""

import subprocess
from collections.abc import Iterator

import pytest

import crumble
from crumble.sdk import session
from crumble_common.errors import UsageError
from framework.command import World
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
    ],
)
def test_what_cannot_be_deterministic(world: RealWorld, options: list[str], says: str) -> None:
    done = world.run("run", *options, IMAGE, "true")
    assert done.returncode == 125
    assert says in done.stderr
