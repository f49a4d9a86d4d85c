import errno
import fcntl
import io
import lzma
import os
import random
import stat
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crumble_common.errors import HostError, RemoteError
from crumble_common.layer_index import Inode, LayerIndex
from crumble_ocid.compression import decompress
from crumble_ocid.layer_builder import LayerBuilder
from crumble_ocid.layers import index_layer, read_layer
from crumble_ocid.store import Store
from framework.registry_archives import PACKERS, Item, folder, hardlink, sha256, symlink, tar


def build(data: bytes, *, dpkg: bool = False) -> tuple[Inode, bytes, str]:
    contents = io.BytesIO()
    root, diff_id = read_layer([data], LayerBuilder(contents, dpkg=dpkg))
    return root, contents.getvalue(), diff_id


def at(root: Inode, path: str) -> Inode:
    for part in path.split("/"):
        root = (root.children or {})[part.encode()]
    return root


def refusal(data: bytes) -> str:
    with pytest.raises(RemoteError) as caught:
        build(data)
    assert caught.value.code == "image.archive"
    return caught.value.message


@pytest.mark.parametrize("packer", PACKERS)
def test_a_layer_is_indexed_and_its_files_read_back(tmp_path: Path, packer: str) -> None:
    big = random.Random(1).randbytes(10_000)
    plain = tar(folder("etc"), Item("etc/a", b"alpha"), Item("etc/b", b"beta"), Item("big", big))
    packed = PACKERS[packer](plain)
    store = Store(tmp_path / "store")
    digest = store.put_blob(packed)
    index_layer(store, digest, sha256(plain))
    layer = store.layer(sha256(plain))
    index, contents = LayerIndex.open(layer.index), Path(layer.contents).read_bytes()
    etc = index.find(0, b"etc")
    assert etc is not None
    found = {}
    for row in [*index.children(0), *index.children(etc)]:
        entry = index.entry(row)
        if stat.S_ISREG(entry.mode):
            found[entry.name] = contents[entry.offset : entry.offset + entry.size]
            assert entry.size < 4096 or entry.offset % 4096 == 0
    assert found == {b"a": b"alpha", b"b": b"beta", b"big": big}
    assert not list((tmp_path / "store/work").iterdir())


def test_attributes_are_kept() -> None:
    item = Item(
        "x",
        mode=0o4755,
        fields={
            "uid": 5_000_000,
            "gid": 7,
            "mtime": -1.5,
            "pax_headers": {"SCHILY.xattr.user.k": "v", "SCHILY.xattr.security.capability": "\x01"},
        },
    )
    null = Item("null", type=tarfile.CHRTYPE, fields={"devmajor": 1, "devminor": 3})
    root, _, _ = build(tar(item, null, Item("pipe", type=tarfile.FIFOTYPE)))
    x = at(root, "x")
    assert (x.mode, x.uid, x.gid, x.mtime_ns) == (
        stat.S_IFREG | 0o4755,
        5_000_000,
        7,
        -1_500_000_000,
    )
    assert x.xattrs == {b"user.k": b"v", b"security.capability": b"\x01"}
    assert at(root, "null").rdev == os.makedev(1, 3) and stat.S_ISCHR(at(root, "null").mode)
    assert stat.S_ISFIFO(at(root, "pipe").mode)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names(form: int) -> None:
    name = "/".join(["n" * 30] * 5) if form == tarfile.USTAR_FORMAT else "n" * 255
    root, contents, _ = build(tar(Item(name, b"data"), folder("d" * 99), form=form))
    assert at(root, name).size == 4 and contents == b"data"
    if form != tarfile.USTAR_FORMAT:
        linked, _, _ = build(tar(Item(name, b"data"), hardlink("l", name), form=form))
        assert at(linked, name) is at(linked, "l")


def test_whiteouts() -> None:
    root, _, _ = build(
        tar(
            Item("d/.wh.gone"),
            Item("o/.wh..wh..opq"),
            Item("o/new", b"n"),
            Item(".wh.both"),
            folder("both"),
            Item("file", b"f"),
            Item(".wh.file"),
            Item("d/.wh..wh.plnk"),
        )
    )
    assert at(root, "d/gone").whiteout and list(at(root, "d").children or {}) == [b"gone"]
    assert at(root, "o").opaque and not at(root, "o/new").whiteout
    assert at(root, "both").opaque
    assert not at(root, "file").whiteout


def test_the_last_of_two_wins_and_directories_stay() -> None:
    root, _, _ = build(
        tar(
            folder("d", 0o700),
            Item("d/x", b"1"),
            folder("d", 0o711),
            Item("f", b"old"),
            Item("f", b"newer"),
            folder("was"),
            Item("was/x"),
            Item("was", b"file"),
            symlink("s", "d"),
            folder("s"),
        )
    )
    assert at(root, "d").mode & 0o777 == 0o711 and at(root, "d/x").size == 1
    assert at(root, "f").size == 5
    assert at(root, "was").children is None
    assert at(root, "s").children == {}


def test_missing_parents_are_made_and_marked() -> None:
    root, _, _ = build(tar(Item("a/b/c"), folder("a/b"), Item("/./abs//x")))
    assert at(root, "a").implicit and not at(root, "a/b").implicit and root.implicit
    assert at(root, "abs/x").size == 0
    root, _, _ = build(tar(folder("./", 0o700)))
    assert root.mode & 0o777 == 0o700 and not root.implicit


def test_a_hard_link_keeps_the_inode_its_name_had() -> None:
    root, _, _ = build(tar(Item("a", b"one"), hardlink("b", "a"), Item("a", b"three")))
    assert at(root, "b").size == 3 and at(root, "a").size == 5


def test_absolute_and_cyclic_symlinks_are_only_recorded() -> None:
    root, _, _ = build(tar(symlink("a", "b"), symlink("b", "a"), symlink("p", "/etc/passwd")))
    assert at(root, "a").target == b"b" and at(root, "p").target == b"/etc/passwd"


def test_packages_are_unpacked_through_symlinks_and_keep_what_is_there() -> None:
    root, _, _ = build(
        tar(
            symlink("bin", "usr/bin"),
            folder("usr/bin", 0o711),
            symlink("var/run", "/run"),
            symlink("up", "../../usr/lib/x/.."),
            folder("bin"),
            Item("bin/sh", b"x"),
            folder("usr/bin", 0o700),
            folder("run"),
            Item("var/run/pid", b"1"),
            folder("usr/lib/x"),
            Item("up/here", b"22"),
            hardlink("bash", "bin/sh"),
            symlink("nowhere", "gone"),
            folder("nowhere"),
            Item(".wh.x"),
        ),
        dpkg=True,
    )
    assert at(root, "usr/bin/sh") is at(root, "bash") and at(root, "bin").target == b"usr/bin"
    assert at(root, "usr/bin").mode & 0o777 == 0o711
    assert at(root, "run/pid").size == 1 and at(root, "usr/lib/here").size == 2
    assert at(root, "nowhere").children == {} and at(root, ".wh.x").size == 0
    with pytest.raises(RemoteError, match="through a symlink"):
        build(tar(symlink("a", "b"), symlink("b", "a"), Item("a/x")), dpkg=True)


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ([Item("../x")], "leads out"),
        ([Item("a/../../x")], "leads out"),
        ([hardlink("x", "../../etc/passwd")], "leads out"),
        ([Item("x" * 256)], "too long"),
        ([Item("/".join(["x" * 200] * 21))], "too long"),
        ([symlink("a", "/etc"), Item("a/passwd", b"x")], "leads through a symlink"),
        ([symlink("a", "b"), symlink("b", "a"), Item("a/x")], "leads through a symlink"),
        ([Item("a"), Item("a/b")], "leads through a file"),
        ([hardlink("a", "nowhere")], "which this layer lacks"),
        ([hardlink("a", "a")], "which this layer lacks"),
        ([folder("d"), hardlink("a", "d")], "to a directory"),
        ([Item(".wh.")], "bad whiteout"),
        ([Item(".wh...")], "bad whiteout"),
        ([symlink("a", "")], "bad target"),
        ([symlink("a", "b" * 5000)], "bad target"),
        ([symlink(".", "b")], "makes the root"),
        ([Item("s", type=tarfile.GNUTYPE_SPARSE)], "sparse"),
        ([Item("s", fields={"pax_headers": {"GNU.sparse.major": "1"}})], "sparse"),
        ([Item("s", type=b"M")], "unknown type"),
        ([Item("s", fields={"pax_headers": {"path": "a\0b"}})], "zero byte"),
        ([Item("s", fields={"uid": 1 << 40})], "wild number"),
    ],
)
def test_bad_members_are_refused(items: list[Item], says: str) -> None:
    assert says in refusal(tar(*items))


def test_truncated_archives_are_refused() -> None:
    whole = tar(Item("a", b"x" * 5000), Item("b" * 200, b"y"))
    for size in (100, 512, 700, 3000, 5632 + 100, len(whole.rstrip(b"\0")) - 2):
        assert "truncated" in refusal(whole[:size])
    for name, pack in PACKERS.items():
        if name != "plain":
            packed = pack(whole)
            assert "truncated" in refusal(packed[:-1]), name
            assert refusal(packed[: len(packed) // 2]), name


def test_damage_is_refused() -> None:
    whole = bytearray(tar(Item("a", b"x")))
    whole[3] ^= 1
    assert "checksum" in refusal(bytes(whole))
    for name, pack in PACKERS.items():
        if name != "plain":
            packed = bytearray(pack(tar(Item("a", b"abc" * 3000))))
            packed[len(packed) // 2] ^= 0xFF
            refusal(bytes(packed))
    assert refusal(b"\x1f\x8b garbage")
    assert refusal(b"BZh91AY&SY")
    assert "garbage" not in refusal(PACKERS["gzip"](tar(Item("a"))) + b"garbage")


@pytest.mark.parametrize("packer", ["gzip", "zstd"])
def test_a_bomb_stops_at_the_limit(packer: str) -> None:
    bomb = PACKERS[packer](bytes(1 << 24))
    assert len(bomb) < 1 << 15
    with pytest.raises(RemoteError, match="expands to more than 1 MiB"):
        for _ in decompress([bomb], 1 << 20):
            pass


@pytest.mark.parametrize("packer", ["gzip", "zstd", "xz"])
def test_a_bomb_makes_little_at_once(packer: str) -> None:
    packers = {**PACKERS, "xz": lambda data: lzma.compress(data, preset=0)}
    bomb = packers[packer](bytes(96 << 20))
    assert max(map(len, decompress([bomb], 1 << 30))) <= 66 << 20


def test_streams_that_follow_each_other_are_one() -> None:
    packed = lzma.compress(b"abc" * 9000) + bytes(8) + lzma.compress(b"def" * 9000)
    for size in (1, 100, 1 << 20):
        chunks = (packed[at : at + size] for at in range(0, len(packed), size))
        assert b"".join(decompress(chunks, 100_000)) == b"abc" * 9000 + b"def" * 9000


def test_another_content_than_promised_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    digest = store.put_blob(tar(Item("a", b"x")))
    with pytest.raises(RemoteError) as caught:
        index_layer(store, digest, "sha256:" + "0" * 64)
    assert caught.value.code == "image.digest"
    for place in ("work", "layers"):
        assert not list((tmp_path / "store" / place).iterdir())


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")
    plain = tar(Item("a", b"x" * 10_000))
    digest = store.put_blob(plain)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(LayerBuilder, "store", full)
    with pytest.raises(HostError) as caught:
        index_layer(store, digest, sha256(plain))
    assert caught.value.code == "host.disk_full"
    assert not list((tmp_path / "store/work").iterdir())


def test_work_of_a_killed_process_is_removed_and_that_of_a_live_one_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    work = tmp_path / "store/work"
    for name in ("layer-dead", "temporary-dead", "a.partial", "layer-live"):
        (work / name).write_bytes(b"x")
    with (work / "layer-live").open("rb") as live:
        fcntl.flock(live, fcntl.LOCK_EX)
        (store.root / "layers/dead.contents").write_bytes(b"x")
        Store(tmp_path / "store")
    assert sorted(path.name for path in work.iterdir()) == ["a.partial", "layer-live"]
    assert not list((tmp_path / "store/layers").iterdir())


FIELDS = st.sampled_from([0, 100, 124, 136, 148, 156, 157, 257, 329, 345, 508, 512])


# Invariant: any bytes as a layer either make a tree whose files lie within the contents, or raise
# RemoteError "image.archive".
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(FIELDS, st.integers(0, 3), st.binary(min_size=1, max_size=12)), max_size=4),
    st.booleans(),
    st.integers(0, 12_000),
)
def test_damaged_archives_never_do_harm(
    patches: list[tuple[int, int, bytes]], fix: bool, cut: int
) -> None:
    data = bytearray(
        tar(folder("d"), Item("d/a", b"x" * 600), hardlink("b", "d/a"), Item("é" * 90, b"long"))
    )
    for field, block, patch in patches:
        start = block * 512 + field
        data[start : start + len(patch)] = patch
    if fix:
        for block in range(0, len(data) - 512, 512):
            if data[block + 257 : block + 262] == b"ustar":
                data[block + 148 : block + 156] = b" " * 8
                data[block + 148 : block + 156] = b"%06o\0 " % sum(data[block : block + 512])
    try:
        root, contents, _ = build(bytes(data[: cut + 1]))
    except RemoteError as error:
        assert error.code == "image.archive"
        return
    todo = [root]
    while todo:
        inode = todo.pop()
        todo += (inode.children or {}).values()
        if stat.S_ISREG(inode.mode):
            assert inode.offset + inode.size <= len(contents)
