"""The device tree writer, against its own reading and against dtc."""

import shutil
import struct
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crumble_common.errors import InternalError
from crumble_vmm.boot.fdt import Node, cells, flatten, words

Tree = tuple[dict[str, bytes], dict[str, "Tree"]]


def parse(blob: bytes) -> Tree:
    """A reader written from the specification, §5.4, sharing nothing with the writer."""
    magic, total, structure, strings, _, version, compatible, _, strings_size, size = (
        struct.unpack_from(">10I", blob)
    )
    assert (magic, version, compatible) == (0xD00DFEED, 17, 16)
    assert total == len(blob)
    assert strings + strings_size == total
    assert structure % 4 == 0
    at = structure
    root: Tree = ({}, {})
    stack: list[Tree] = [({}, root[1])]
    while True:
        (token,) = struct.unpack_from(">I", blob, at)
        at += 4
        if token == 1:
            end = blob.index(b"\0", at)
            node: Tree = ({}, {})
            stack[-1][1][blob[at:end].decode()] = node
            stack.append(node)
            at = (end + 4) & ~3
        elif token == 3:
            length, name = struct.unpack_from(">II", blob, at)
            end = blob.index(b"\0", strings + name)
            stack[-1][0][blob[strings + name : end].decode()] = blob[at + 8 : at + 8 + length]
            at = (at + 8 + length + 3) & ~3
        elif token == 2:
            stack.pop()
        else:
            assert token == 9
            assert at == structure + size
            assert len(stack) == 1
            return root


def sample() -> Node:
    root = Node("")
    root.set("#address-cells", 2).set("#size-cells", 2).set("compatible", ["crumble,virt", "x"])
    memory = root.add("memory@80000000")
    memory.set("device_type", "memory").set("reg", cells(0x8000_0000, 0x2000_0000))
    root.add("soc").set("ranges").add("uart@10000000").set("interrupts", words(10, 4))
    return root


def test_tree_reads_back() -> None:
    (root,) = parse(flatten(sample()))[1].values()
    assert root[0]["compatible"] == b"crumble,virt\0x\0"
    assert root[0]["#size-cells"] == b"\0\0\0\2"
    assert root[1]["memory@80000000"][0]["reg"] == bytes.fromhex("00000000800000000000000020000000")
    soc = root[1]["soc"]
    assert soc[0]["ranges"] == b""
    assert soc[1]["uart@10000000"][0]["interrupts"] == bytes.fromhex("0000000a00000004")


def test_same_tree_same_bytes() -> None:
    assert flatten(sample()) == flatten(sample())


def test_reservations_come_first() -> None:
    blob = flatten(Node(""), reserved=[(0x8000_0000, 0x1000)])
    assert struct.unpack_from(">4Q", blob, 40) == (0x8000_0000, 0x1000, 0, 0)


@pytest.mark.skipif(not shutil.which("dtc"), reason="dtc (device-tree-compiler) is not installed")
def test_dtc_agrees() -> None:
    done = subprocess.run(
        ["dtc", "-I", "dtb", "-O", "dts", "-q"], input=flatten(sample()), capture_output=True
    )
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode()
    assert "reg = <0x00 0x80000000 0x00 0x20000000>;" in text
    assert 'compatible = "crumble,virt", "x";' in text.replace("\\0", '", "')
    assert "uart@10000000 {" in text


@pytest.mark.parametrize("name", ["a b", "x" * 32, "a@", "a/b", "\0"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(InternalError):
        Node("").add(name)


def test_bad_properties_are_refused() -> None:
    root = Node("")
    for name in ("", "a b", "x" * 32):
        with pytest.raises(InternalError):
            root.set(name, 1)
    with pytest.raises(InternalError):
        root.set("text", "a\0b")
    root.add("cpus")
    with pytest.raises(InternalError):
        root.add("cpus")


NAMES = st.from_regex(r"[a-z0-9#,._-]{1,12}", fullmatch=True)


@given(st.dictionaries(NAMES, st.binary(max_size=40), max_size=6), st.lists(NAMES, max_size=4))
def test_any_tree_reads_back(properties: dict[str, bytes], children: list[str]) -> None:
    """What was set is what a reader finds, whatever the names and lengths."""
    root = Node("")
    for name, value in properties.items():
        root.set(name, value)
    wanted = sorted({"n" + child.replace("#", "") for child in children})
    for child in wanted:
        root.add(child).set("deep", 1)
    (found,) = parse(flatten(root))[1].values()
    assert found[0] == properties
    assert sorted(found[1]) == wanted
