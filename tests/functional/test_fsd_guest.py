"""fsd under QEMU with a stock Linux: what a guest sees is what the same commands do on its own tmpfs."""

import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from framework.layers import WHITEOUT, Special, write_layer
from framework.qemu_guest import QemuGuest

pytestmark = [pytest.mark.guest, pytest.mark.slow]

BIG = bytes(range(256)) * 20_000


class Fsd:
    """A `crumble-fsd` process of its own."""

    def __init__(self, work: Path, *arguments: str) -> None:
        self.socket = work / "fsd.sock"
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "crumble_fsd", "--socket-path", str(self.socket), *arguments]
        )
        deadline = time.monotonic() + 20
        while not self.socket.exists():
            assert self.process.poll() is None, "fsd ended at once"
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def ended(self) -> int:
        """Its exit status, after the guest has left."""
        return self.process.wait(10)

    def close(self) -> None:
        """Ends it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


Serve = Callable[..., Fsd]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    made: list[Fsd] = []

    def start(*arguments: str) -> Fsd:
        made.append(Fsd(tmp_path, *arguments))
        return made[-1]

    yield start
    for fsd in made:
        fsd.close()


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """fsd_probe.c for the guest."""
    if shutil.which("riscv64-linux-gnu-gcc") is None:
        pytest.skip("riscv64-linux-gnu-gcc is not installed")
    out = tmp_path_factory.mktemp("probe") / "probe"
    source = Path(__file__).with_name("fsd_probe.c")
    command = ["riscv64-linux-gnu-gcc", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o"]
    subprocess.run([*command, str(out), str(source)], check=True)
    return out.read_bytes()


def layer_arguments(work: Path, *trees: dict[str, object]) -> list[str]:
    arguments = []
    for number, tree in enumerate(trees):
        write_layer(work, f"l{number}", tree)
        arguments += ["--layer", f"{work}/l{number}.index:{work}/l{number}.contents"]
    return arguments


# Run in an empty directory, on tmpfs and on fsd; every line of output must be the same on both.
SAME = r"""
say() { echo "# $*"; }
try() { "$@" 2>&1; echo "-> $?"; }
list() { find . | sort | while read -r f; do stat -c '%N %A %h %u %g %s' "$f" | sed 's/^\(.*\) d\(.*\) [0-9]*$/\1 d\2/'; done; }
say files
echo one > f; cat f; echo two >> f; cat f; : > f; stat -c %s f
printf 0123456789 > f; dd if=/dev/zero of=f bs=1 seek=3 count=2 conv=notrunc 2>/dev/null; od -c f
truncate -s 4 f; od -c f; truncate -s 8 f; od -c f; truncate -s 0 f; stat -c %s f
try cat nothing; try rmdir f; try mkdir f; try unlink nothing
say directories
mkdir -p a/b/c; try rmdir a; touch a/b/x; try rm a; mv a/b d; list; try mv d d/c; try mv d f; try mv f d/c
mkdir e; try mv d e; list; rm -r e; list
say links
echo data > t; ln t h; ln -s t s; ln -s nothing dangling; stat -c '%h %i' t h | uniq | wc -l; cat s; try cat dangling
mv h h2; rm t; cat h2; try cat s; readlink s; try ln h2 s; try ln -s x s; list
ln -s loop loop; try cat loop; try ls s/x
say modes
chmod 600 h2; chmod u+s,g+s,+t h2; chown 5:6 h2; list; chmod 6755 h2; chown 7 h2; list
umask 077; touch u; mkdir v; umask 022; mkdir w; chmod 2775 w; chown 0:50 w; touch w/f; mkdir w/d; list
touch -d @1000000000 h2; stat -c '%Y' h2; touch -d '@-5' h2; stat -c '%Y' h2
say special
mkfifo p; mknod c c 1 5; mknod b b 7 1; list; head -c 3 c | od -c; (echo through > p &) ; cat p
say open and removed
exec 5<>gone; echo kept >&5; rm gone; echo more >&5; cat /proc/self/fd/5; exec 5<&-
exec 6<h2; mv h2 h3; cat <&6; exec 6<&-
say names
long=$(printf '%0255d' 0); touch $long; ls | grep -c 000; try touch 0$long | sed s/0*//; rm $long
touch "a b" 'ü' "$(printf 'x\ty')"; ls | od -c; rm "a b" 'ü' x*y
say many
mkdir m; i=0; while [ $i -lt 700 ]; do : > m/file-with-a-longer-name-$i; i=$((i+1)); done; ls m | wc -l; ls -f m | sort | md5sum
(cd m; ls | head -400 | xargs rm); ls m | wc -l; rm -r m
say copies
dd if=/dev/zero bs=64k count=50 2>/dev/null | tr '\0' 'q' > big; cp big big2; cmp big big2 && md5sum big2
tar cf - . 2>/dev/null | (mkdir ../copy; cd ../copy; tar xf -); diff -r . ../copy 2>&1 | grep -v fifo | grep -v character | grep -v block | grep -v directory; ls ../copy | wc -l
dd if=/dev/urandom of=r bs=4096 count=64 2>/dev/null; dd if=r of=r2 bs=777 2>/dev/null; cmp r r2 && echo same
dd if=r of=r3 bs=4096 seek=1000 count=3 2>/dev/null; stat -c '%s' r3; dd if=r3 bs=4096 skip=1000 2>/dev/null | cmp -n 12288 - r && echo tail same
say locks
flock x.lock echo locked; flock x.lock sh -c 'flock -n x.lock echo twice || echo refused'
(flock 9; flock -n x.lock echo no || echo held) 9>x.lock; flock -n x.lock echo free
say exec
cp /bin/busybox sh; ./sh echo ran; ln -s sh uname; ./uname -m; chmod -x sh; try ./sh echo x
say done
"""


def compare(commands: str) -> str:
    """A script that runs the commands on tmpfs and on fsd, and fails when their outputs differ."""
    return f"""
cat > /tmp/same <<'END'
{commands}
END
mkdir -p /tmp/local/w /mnt/remote/w
(cd /tmp/local/w && sh /tmp/same) > /tmp/local.out 2>&1
(cd /mnt/remote/w && sh /tmp/same) > /tmp/remote.out 2>&1
diff /tmp/local.out /tmp/remote.out || exit 1
tail -1 /tmp/remote.out
wc -l < /tmp/remote.out
"""


def test_everything_a_shell_does_is_as_on_tmpfs(tmp_path: Path, serve: Serve) -> None:
    fsd = serve(*layer_arguments(tmp_path, {"there": b"x"}))
    output = QemuGuest(tmp_path, compare(SAME), {"root": fsd.socket}).run()
    assert "# done" in output
    assert int(output.split()[-1]) > 150
    assert fsd.ended() == 0


def test_a_layered_image_is_one_tree(tmp_path: Path, serve: Serve) -> None:
    low = {
        "etc": {"passwd": b"root\n", "gone": b"", "dir": {"old": b""}},
        "usr": {"bin": {f"tool{n}": b"#!" for n in range(300)}},
        "big": BIG,
        "setuid": Special(b"x", mode=0o4755, uid=3),
    }
    high = {"etc": {"gone": WHITEOUT, "dir": Special({"new": b"n"}, opaque=True)}, "bin": "usr/bin"}
    fsd = serve(*layer_arguments(tmp_path, low, high))
    script = """
cd /mnt
find etc | sort; ls bin/ | wc -l; md5sum < big; stat -c '%A %u' setuid
echo changed >> big; tail -c 8 big; mv etc etc2; ls etc2 etc2/dir; rm -r etc2 usr; ls
echo 3 > /proc/sys/vm/drop_caches; ls; tail -c 8 big; mkdir usr; ls usr | wc -l
"""
    output = QemuGuest(tmp_path, script, {"root": fsd.socket}).run().splitlines()
    assert output == [
        "etc", "etc/dir", "etc/dir/new", "etc/passwd", "300",
        f"{hashlib.md5(BIG).hexdigest()}  -", "-rwsr-xr-x 3",
        "changed", "etc2:", "dir     passwd", "", "etc2/dir:", "new",
        "big     bin     setuid", "big     bin     setuid", "changed", "0",
    ]  # fmt: skip


PROBE = """
mkdir /tmp/p /mnt/p; chmod 777 /tmp/p /mnt/p; chmod +x /probe
/probe /tmp/p > /tmp/local.out 2>&1 || exit 1
/probe /mnt/p > /tmp/remote.out 2>&1 || exit 1
diff /tmp/local.out /tmp/remote.out && wc -l < /tmp/remote.out
"""


@pytest.mark.parametrize("kind", ["memory", "directory", "share", "locks"])
def test_calls_that_no_shell_makes(tmp_path: Path, serve: Serve, probe: bytes, kind: str) -> None:
    """Mappings, locks, holes, unnamed files, exchanges, attributes, direct I/O: as on tmpfs."""
    (tmp_path / "shared").mkdir()
    arguments = {
        "memory": [],
        "directory": ["--upper", str(tmp_path / "upper")],
        "share": ["--shared-dir", str(tmp_path / "shared")],
        "locks": ["--shared-dir", str(tmp_path / "shared"), "--posix-lock"],
    }
    fsd = serve(*arguments[kind])
    guest = QemuGuest(tmp_path, PROBE, {"root": fsd.socket}, files={"probe": probe})
    assert int(guest.run()) > 50


def test_what_a_guest_wrote_is_there_for_the_next_one(tmp_path: Path, serve: Serve) -> None:
    image = layer_arguments(tmp_path, {"etc": {"a": b"image\n", "b": b"gone\n"}})
    first = """
cd /mnt; echo changed >> etc/a; rm etc/b; mkdir d; echo new > d/f; ln d/f d/g; ln -s d l; mknod n c 1 3
dd if=/dev/zero bs=64k count=40 2>/dev/null | tr '\\0' z > big
"""
    fsd = serve(*image, "--upper", str(tmp_path / "upper"))
    QemuGuest(tmp_path, first, {"root": fsd.socket}).run()
    assert fsd.ended() == 0
    fsd = serve(*image, "--upper", str(tmp_path / "upper"))
    second = "cd /mnt; cat etc/a d/g; ls etc l; stat -c '%h %s' d/f big; stat -c %t n; ls"
    output = QemuGuest(tmp_path, second, {"root": fsd.socket}).run()
    assert output.splitlines() == [
        "image", "changed", "new", "etc:", "a", "", "l:", "f  g", "2 4", f"1 {40 << 16}", "1",
        "big  d    etc  l    n",
    ]  # fmt: skip


def test_the_limit_of_the_upper_is_a_full_disk(tmp_path: Path, serve: Serve) -> None:
    arguments = layer_arguments(tmp_path, {})
    fsd = serve(*arguments, "--upper-limit", str(4 << 20))
    script = """
cd /mnt; dd if=/dev/zero of=f bs=64k count=200 2>&1 | grep -o 'No space left on device'
rm f; dd if=/dev/zero of=f bs=64k count=50 2>/dev/null && echo room again
"""
    output = QemuGuest(tmp_path, script, {"root": fsd.socket}).run()
    assert output == "No space left on device\nroom again\n"


def test_host_shares_are_mounts_of_their_own(tmp_path: Path, serve: Serve) -> None:
    host = tmp_path / "host"
    (host / "d").mkdir(parents=True)
    (host / "f").write_text("from the host\n")
    image = layer_arguments(tmp_path, {"etc": {"passwd": b""}, "data": {}})
    shares = [
        "--share",
        f"{host}:/data",
        "--share",
        f"{host}/f:/etc/f:ro",
        "--share",
        f"{host}:/x/ro:ro",
    ]
    fsd = serve(*image, *shares)
    script = """
cd /mnt; cat etc/f data/f x/ro/f; (echo no > etc/f) 2>&1; (echo no > x/ro/y) 2>&1
echo new > data/n; chown 5:6 data/n; chmod 640 data/n; stat -c '%u %g %a' x/ro/n
ln data/n etc/n 2>&1; mv data/n etc/n; ls etc; mv etc/n data/d/; rmdir data 2>&1; mv etc/f etc/g 2>&1
grep -c virtiofs /proc/mounts; cd data; echo open > o; exec 5<>o; rm o; cat <&5; exec 5<&-
mkdir -p a/b; mv a c; touch c/b/f; cp -a c e; rm -r c; find e; truncate -s 5 f; cat f; echo; sync
"""
    output = QemuGuest(tmp_path, script, {"root": fsd.socket}).run().splitlines()
    read_only, busy = "Read-only file system", "Device or resource busy"
    assert output == [
        "from the host", "from the host", "from the host",
        f"/script: line 2: can't create etc/f: {read_only}",
        f"/script: line 2: can't create x/ro/y: {read_only}",
        "5 6 640", "ln: etc/n: Invalid cross-device link", "f       n       passwd",
        f"rmdir: 'data': {busy}", f"mv: can't rename 'etc/f': {busy}",
        "3", "open", "e", "e/b", "e/b/f", "from ",
    ]  # fmt: skip
    assert (host / "d" / "n").read_text() == "new\n"
    assert ((host / "d" / "n").stat().st_uid, (host / "d" / "n").stat().st_gid) == (5, 6)
    assert (host / "f").read_text() == "from "
    assert sorted(path.name for path in host.iterdir()) == ["d", "e", "f"]


def test_the_same_on_a_share(tmp_path: Path, serve: Serve) -> None:
    host = tmp_path / "host"
    host.mkdir()
    fsd = serve("--shared-dir", str(host))
    same = SAME.replace("mknod c c 1 5; mknod b b 7 1;", "").replace("head -c 3 c | od -c;", "")
    output = QemuGuest(tmp_path, compare(same), {"root": fsd.socket}).run()
    assert "# done" in output
