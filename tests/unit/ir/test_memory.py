"""Loads, stores, structs, globals, addresses and large frames, on every architecture."""

from __future__ import annotations

import textwrap

import pytest

from framework.compiled import ARCHES, evaluate

pytestmark = pytest.mark.parametrize("arch", ARCHES)


def body(text: str) -> str:
    return textwrap.dedent(text).strip("\n")


def test_loads_and_stores_of_every_width(arch: str) -> None:
    text = """
        raw: array[u8, 16]
        for i in range(16):
            raw[i] = u8(0xF0 + i)
        print(f"{ptr[u16](raw)[0]} {ptr[i16](raw)[1]} {ptr[u32](raw)[1]} {ptr[i32](raw)[1]}")
        print(f"{ptr[u64](raw)[1]:x} {ptr[i64](raw)[1]} {ptr[i8](raw)[2]} {ptr[u8](raw)[2]}")
        ptr[u32](raw + 5)[0] = 0x01020304
        ptr[i16](raw + 12)[0] = -2
        ptr[u64](raw + 1)[0] += 1
        for i in range(16):
            print(f"{raw[i]:02x}")
    """
    data = bytearray(range(0xF0, 0x100))
    first = (
        f"{int.from_bytes(data[:2], 'little')} {int.from_bytes(data[2:4], 'little', signed=True)} "
        f"{int.from_bytes(data[4:8], 'little')} {int.from_bytes(data[4:8], 'little', signed=True)}\n"
        f"{int.from_bytes(data[8:], 'little'):x} {int.from_bytes(data[8:], 'little', signed=True)} -14 242\n"
    )
    data[5:9] = (0x01020304).to_bytes(4, "little")
    data[12:14] = (-2).to_bytes(2, "little", signed=True)
    data[1:9] = (int.from_bytes(data[1:9], "little") + 1).to_bytes(8, "little")
    assert evaluate(body(text), arch) == first + "".join(f"{byte:02x}\n" for byte in data)


def test_structs_globals_and_pointers(arch: str) -> None:
    before = body("""
        @struct
        class Inner:
            a: u8
            b: u32
            tail: array[i16, 3]

        @struct
        class Node:
            tag: u8
            inner: Inner
            next: ptr["Node"]
            other: ptr[Inner]

        nodes = static(array[Node, 4])
        single = static(Node)
        counter = static(i32, -7)
        text = static(array[u8, 8], b"abc")

        def touch(node: ptr[Node], value: u32) -> ptr[Inner]:
            global counter
            node.inner.b = value
            node.inner.tail[2] = -3
            node.other = node.inner
            counter += 1
            return node.other
    """)
    text_body = """
        print(f"{sizeof(Inner)} {sizeof(Node)} {sizeof(nodes)} {len(nodes)} {len(nodes[0].inner.tail)}")
        head: ptr[Node] = None
        for i in range(len(nodes)):
            n = nodes[i]
            n.tag = u8(i)
            touch(n, u32(i) * 100).a = u8(i) + 1
            nodes[i].next = head
            head = nodes[i]
        while head is not None:
            print(f"{head.tag} {head.inner.a} {head.inner.b} {head.other.tail[2]}")
            head = head.next
        single.inner.b = 5
        p = addr(single.inner.b)
        p[0] += 1
        print(f"{single.inner.b} {counter} {text:s} {nodes[3].other - nodes[3].inner}")
        print(f"{nodes[2] > nodes[1]} {addr(nodes[3]) - nodes[0]} {u64(addr(single)) == u64(single)}")
        q = nodes[0] + 2
        print(f"{q.tag} {(q - 1).tag} {(1 + q).tag}")
    """
    assert evaluate(body(text_body), arch, before) == (
        "16 40 160 4 3\n3 4 300 -3\n2 3 200 -3\n1 2 100 -3\n0 1 0 -3\n6 -3 abc 0\n1 3 1\n2 1 3\n"
    )


def test_addresses_of_locals(arch: str) -> None:
    before = "def set(p: ptr[i32], value: i32) -> None:\n    p[0] = value\n"
    text = "x: i32 = 1\nset(addr(x), -9)\nx += 1\nprint(f'{x}')"
    assert evaluate(text, arch, before) == "-8\n"


def test_large_frames_and_offsets(arch: str) -> None:
    before = "@struct\nclass Big:\n    pad: array[u8, 100000]\n    x: u32\n\nbig = static(Big)\n"
    text = """
        a: array[u8, 5000]
        b: array[u64, 3000]
        a[4999] = 7
        b[2999] = 9
        big.x = 5
        copy: Big
        copy.x = big.x + 1
        print(f"{a[4999]} {b[2999]} {copy.x}")
    """
    assert evaluate(body(text), arch, before) == "7 9 6\n"


def test_far_data(arch: str) -> None:
    """What lies megabytes behind the code, on both sides of what one instruction reaches."""
    before = (
        "low = static(array[u8, 1500000])\nhigh = static(array[u64, 3000000])\nend = static(u16)\n"
    )
    text = """
        low[1499999] = 1
        high[2999999] = 2
        end = 3
        print(f"{low[1499999]} {high[2999999]} {end} {ptr[u64](addr(end))[0]} {high[0]}")
    """
    before += "\ndef touch() -> None:\n    global end\n    end = 3\n"
    text = text.replace("end = 3", "touch()")
    assert evaluate(body(text), arch, before) == "1 2 3 3 0\n"
