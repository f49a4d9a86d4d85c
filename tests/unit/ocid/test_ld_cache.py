"""/etc/ld.so.cache of Debian images: glibc's order and format, and only libraries of the guest's architecture in it."""

from __future__ import annotations

import functools
import io
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumble_ocid.debian.ld_cache import pack_cache, soname, sort_key, write_cache
from crumble_ocid.debian.tree import Tree
from crumble_ocid.layer_builder import LayerBuilder

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}[platform.machine()]
OTHER = "riscv64" if ARCHITECTURE == "amd64" else "amd64"
LDCONFIG = shutil.which("ldconfig", path="/sbin:/usr/sbin:/bin:/usr/bin")


def dl_cache_libcmp(one: str, other: str) -> int:
    """glibc's elf/dl-cache.c, letter by letter."""
    i = j = 0
    one, other = one + "\0", other + "\0"
    while one[i] != "\0":
        if one[i].isdigit():
            if not other[j].isdigit():
                return 1
            first = second = 0
            while one[i].isdigit():
                first, i = first * 10 + int(one[i]), i + 1
            while other[j].isdigit():
                second, j = second * 10 + int(other[j]), j + 1
            if first != second:
                return first - second
        elif other[j].isdigit():
            return -1
        elif one[i] != other[j]:
            return ord(one[i]) - ord(other[j])
        else:
            i, j = i + 1, j + 1
    return ord(one[i]) - ord(other[j])


# Invariant: names are in the order in which the linker's binary search expects them.
@given(st.lists(st.text("ab.-09+1", max_size=6), max_size=6))
def test_the_linkers_order(names: list[str]) -> None:
    assert sorted(names, key=sort_key) == sorted(names, key=functools.cmp_to_key(dl_cache_libcmp))


@pytest.mark.skipif(LDCONFIG is None, reason="ldconfig is not installed")
def test_ldconfig_reads_it(tmp_path: Path) -> None:
    libraries = {f"libx{n}.so.{n}": f"/lib/here/libx{n}.so.{n}" for n in (1, 2, 10, 33)}
    (tmp_path / "cache").write_bytes(pack_cache(libraries, 0x0303))
    command = [str(LDCONFIG), "-p", "-C", str(tmp_path / "cache")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0].startswith("4 libs found")
    found = dict(line.split(" (libc6,x86-64) => ") for line in lines[1:])
    assert {name.strip(): path for name, path in found.items()} == libraries
    assert [name.strip() for name in found] == [
        "libx33.so.33",
        "libx10.so.10",
        "libx2.so.2",
        "libx1.so.1",
    ]


@functools.cache
def shared_object(name: str = "") -> bytes:
    """A library of this machine's, with a SONAME or without one."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    with tempfile.TemporaryDirectory() as place:
        words = ["gcc", "-shared", "-nostdlib", "-xc", "-", "-o", f"{place}/made"]
        if name:
            words.append(f"-Wl,-soname,{name}")
        subprocess.run(words, input=b"int x;", check=True)
        return Path(place, "made").read_bytes()


def test_libraries_are_found_by_their_own_names(tmp_path: Path) -> None:
    with (tmp_path / "contents").open("w+b") as contents:
        tree = Tree(LayerBuilder(contents), contents, 1)
        tree.directory("usr")
        tree.link("lib", "usr/lib")
        place = "usr/lib/x-linux-gnu"
        tree.write(
            "etc/ld.so.conf.d/x.conf", "# x\n/usr/local/lib/x\n/lib/x-linux-gnu/\nrelative\n"
        )
        tree.write(f"{place}/libone.so.1.2.3", shared_object("libone.so.1"))
        tree.link(f"{place}/libone.so.1", "libone.so.1.2.3")
        tree.link(f"{place}/libone.so", "libone.so.1")
        tree.write("usr/lib/libone.so.1", shared_object("libone.so.1"))  # behind the other
        tree.write(f"{place}/libplain.so", shared_object())
        tree.write(f"{place}/libaway.so.2.0", shared_object("libaway.so.2"))  # no such file
        tree.write(f"{place}/libscript.so", "INPUT(libone.so.1)")
        tree.write(f"{place}/ld-x.so.1", shared_object("ld-x.so.1"))
        tree.link("usr/lib/ld-x.so.1", "x-linux-gnu/ld-x.so.1")
        tree.link("usr/lib/libloop.so", "libloop.so")
        tree.write("usr/lib/notes.so", shared_object("notes.so"))
        write_cache(tree, OTHER)
        assert not tree.exists("etc/ld.so.cache")
        write_cache(tree, ARCHITECTURE)
        strings = (
            tree.read("etc/ld.so.cache").partition(b"/")[2].replace(b"\0/", b"\0").split(b"\0")
        )
        names = (b"libplain.so", b"libone.so.1", b"ld-x.so.1")
        assert strings == [*(b"lib/x-linux-gnu/" + name for name in names), b""]
        tree.write("etc/ld.so.cache", b"")
        write_cache(tree, ARCHITECTURE)
        assert tree.read("etc/ld.so.cache") == b"", "a package's own stays"


class CountedTree(Tree):
    """Keeps the paths of the files that are read."""

    opened: list[str]

    def stream(self, path: str) -> IO[bytes]:
        self.opened.append(path)
        return super().stream(path)


def test_a_file_is_read_once_and_links_to_one_without_a_soname_count(tmp_path: Path) -> None:
    with (tmp_path / "contents").open("w+b") as contents:
        tree = CountedTree(LayerBuilder(contents), contents, 1)
        tree.opened = []
        tree.write("etc/ld.so.conf.d/x.conf", "")
        tree.write("usr/lib/libone.so.1.2", shared_object("libone.so.1"))
        tree.write("usr/lib/impl/plain.so", shared_object())
        for name, target in (
            ("libone.so", "libone.so.1.2"),
            ("libone.so.1", "libone.so.1.2"),
            ("libplain.so", "impl/plain.so"),
            ("libplain.so.1", "impl/plain.so"),
        ):
            tree.link(f"usr/lib/{name}", target)
        write_cache(tree, ARCHITECTURE)
        assert sorted(tree.opened) == ["usr/lib/impl/plain.so", "usr/lib/libone.so.1.2"]
        cache = tree.read("etc/ld.so.cache")
        for name in (b"libone.so.1", b"libplain.so", b"libplain.so.1"):
            assert b"/usr/lib/" + name + b"\0" in cache
        assert b"libone.so.1.2" not in cache


@pytest.mark.parametrize("architecture", ["mips64el", "all"])
def test_architectures_without_one(tmp_path: Path, architecture: str) -> None:
    with (tmp_path / "contents").open("w+b") as contents:
        tree = Tree(LayerBuilder(contents), contents, 1)
        tree.write("etc/ld.so.conf.d/x.conf", "/lib\n")
        write_cache(tree, architecture)
        assert not tree.exists("etc/ld.so.cache")


# Invariant: whatever a file holds, it has a name that can stand in a cache, or none.
@settings(max_examples=300)
@given(st.data())
def test_any_file(data: st.DataObject) -> None:
    whole = bytearray(shared_object("libone.so.1"))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, min(len(whole), 1024) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    name = soname(io.BytesIO(bytes(whole[:cut])), ARCHITECTURE) or ""
    assert "/" not in name
    assert name.isascii()
    assert len(name) <= 255
