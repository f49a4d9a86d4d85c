"""Every construct of the dialect does on every architecture what README.md says."""

from __future__ import annotations

import signal
import textwrap
from typing import Any

import pytest

from crumble_ir.arm64 import Arm64
from framework.compiled import ARCHES, HEAD, evaluate, output, run

pytestmark = pytest.mark.parametrize("arch", ARCHES)


def body(text: str) -> str:
    return textwrap.dedent(text).strip("\n")


def test_hello_and_exit_status(arch: str) -> None:
    done = run('def main() -> i32:\n    print("hello")\n    return 42\n', arch)
    assert (done.stdout, done.returncode) == (b"hello\n", 42)


def test_arguments_are_on_the_initial_stack(arch: str) -> None:
    source = "def main(stack: ptr[u64]) -> i32:\n    print(f'{stack[0]} {ptr[u8](stack[2]):s}')\n    return 0\n"
    assert run(source, arch, "word").stdout == b"2 word\n"


def test_arithmetic_wraps_at_the_types_width(arch: str) -> None:
    text = """
        a: u8 = 250
        b: i8 = -128
        c: u32 = 0xFFFFFFFF
        d: i32 = 0x7FFFFFFF
        e: u64 = 0xFFFFFFFFFFFFFFFF
        f: i64 = -0x8000000000000000
        print(f"{a + 10} {a * a} {a - 251} {b - 1} {-b} {~a}")
        print(f"{c + 1} {c * c} {c << 31} {d + 1} {e + 1} {f - 1} {-f}")
    """
    assert evaluate(body(text), arch) == (
        "4 36 255 127 -128 5\n0 1 2147483648 -2147483648 0 9223372036854775807 -9223372036854775808\n"
    )


def test_division_floors_as_in_python(arch: str) -> None:
    pairs = [(7, 2), (-7, 2), (7, -2), (-7, -2), (6, 3), (-6, 3), (-1, 5), (0, -3)]
    text = "\n".join(
        f"a{n}: i32 = {a}\nb{n}: i32 = {b}\nprint(f'{{a{n} // b{n}}} {{a{n} % b{n}}}')"
        for n, (a, b) in enumerate(pairs)
    )
    assert evaluate(text, arch) == "".join(f"{a // b} {a % b}\n" for a, b in pairs)


def test_division_corner_cases(arch: str) -> None:
    text = """
        a: i64 = -0x8000000000000000
        m: i64 = -1
        b: i32 = -0x80000000
        n: i32 = -1
        print(f"{a // m} {a % m} {b // n} {b % n} {a // -1} {a // 8} {a % 8} {m // 16} {m % 16}")
        u: u64 = 0xFFFFFFFFFFFFFFFF
        print(f"{u // 10} {u % 10} {u // 16}")
    """
    assert evaluate(body(text), arch) == (
        "-9223372036854775808 0 -2147483648 0 -9223372036854775808 -1152921504606846976 0 -1 15\n"
        "1844674407370955161 5 1152921504606846975\n"
    )


def test_shifts(arch: str) -> None:
    text = """
        a: u8 = 0x81
        b: i8 = -127
        n: u32 = 9
        c: u64 = 1
        m = n + 58
        print(f"{a << 1} {a >> 1} {b >> 1} {a << n} {c << 63} {b << n} {c << m}")
    """
    assert evaluate(body(text), arch) == "2 64 -64 2 9223372036854775808 2 8\n"


def test_comparisons_follow_signedness(arch: str) -> None:
    text = """
        a: i32 = -1
        b: i32 = 1
        c: u32 = 0xFFFFFFFF
        d: u32 = 1
        print(f"{a < b} {c < d} {a <= b} {c >= d} {a == b} {a != b} {c > d} {a >= b}")
        x: u8 = 200
        y: i16 = -3
        print(f"{x in (1, 200)} {y not in (3, -3)} {d in (2, a == b)}")
        print(f"{x > y} {x < y} {y < 0 < x} {0 < y < x} {y < x < 201 == d + 200}")
    """
    assert evaluate(body(text), arch) == "1 0 1 1 0 1 1 0\n1 0 0\n1 0 1 0 1\n"


def test_and_or_not_stop_early(arch: str) -> None:
    before = body("""
        def say(n: i64, result: bool) -> bool:
            print(f"say {n}")
            return result
    """)
    text = """
        if say(1, False) and say(2, True):
            print("wrong")
        if say(3, True) or say(4, True):
            print("right")
        x = not say(5, False) and (say(6, False) or say(7, True))
        print(f"{x}")
        z: ptr[u8] = None
        n: i64 = 5
        if not z and n and z is None and not z is not None:
            print("truth")
    """
    assert evaluate(body(text), arch, before) == (
        "say 1\nsay 3\nright\nsay 5\nsay 6\nsay 7\n1\ntruth\n"
    )


def test_loops(arch: str) -> None:
    text = """
        total: i64 = 0
        i = 0
        for i in range(10):
            if i == 3:
                continue
            if i == 8:
                break
            total += i
        print(f"{total} {i}")
        for j in range(5, 0, -2):
            print(f"{j}")
        n: u8 = 3
        for k in range(250, 255):
            n += u8(k)
        for k in range(n, 255):
            total += k
        print(f"{n} {total}")
        while True:
            total //= 3
            if total < 5:
                break
        while total > 0 and n != 0:
            total -= 1
            n -= 1
        print(f"{n} {total}")
        for i in range(2):
            for i2 in range(3):
                if i2 == 1:
                    break
                i = 7
            print(f"{i}")
    """
    n = (3 + sum(range(250, 255))) & 0xFF
    total = 25 + sum(range(n, 255))
    small = total
    while small >= 5:
        small //= 3
    assert evaluate(body(text), arch) == (f"25 8\n5\n3\n1\n{n} {total}\n{n - small} 0\n7\n7\n")


def test_choices_min_max(arch: str) -> None:
    text = """
        a: i32 = -5
        b: u8 = 7
        print(f"{a if a > 0 else b} {min(a, b)} {max(a, 3)} {min(b, 9)}")
        p: ptr[u8] = None if a > 0 else b"yes"
        print(f"{p:s}")
    """
    assert evaluate(body(text), arch) == "7 -5 3 7\nyes\n"


def test_six_arguments_and_recursion(arch: str) -> None:
    before = body("""
        def six(a: u8, b: i16, c: u32, d: i64, e: u64, f: bool) -> i64:
            return i64(a) + b * 10 + c * 100 + d * 1000 + i64(e) * 10000 + i64(f) * 100000

        def swap(a: i64, b: i64, c: i64, d: i64, e: i64, f: i64) -> i64:
            if a == 0:
                return b + c * 10 + d * 100 + e * 1000 + f * 10000
            return swap(a - 1, f, b, e, c, d)

        def ackermann(m: u64, n: u64) -> u64:
            if m == 0:
                return n + 1
            if n == 0:
                return ackermann(m - 1, 1)
            return ackermann(m - 1, ackermann(m, n - 1))
    """)
    values = [1, 2, 3, 4, 5]
    for _ in range(3):
        b, c, d, e, f = values
        values = [f, b, e, c, d]
    expected = sum(value * 10**index for index, value in enumerate(values))
    text = "print(f'{six(1, 2, 3, 4, 5, True)} {swap(3, 1, 2, 3, 4, 5)} {ackermann(2, 9)}')"
    assert evaluate(text, arch, before) == f"154321 {expected} 21\n"


def test_many_live_values_spill(arch: str) -> None:
    names = [f"v{n}" for n in range(40)]
    lines = [f"{name}: i64 = stack[0] * {n + 1}" for n, name in enumerate(names)]
    lines = [line.replace("stack[0]", "i64(stack[0])") for line in lines]
    lines.append("print(f'" + " ".join(f"{{{name} + one(1)}}" for name in names) + "')")
    lines.append("print(f'{" + " + ".join(names) + "}')")
    before = "def one(x: i64) -> i64:\n    return x\n"
    expected = " ".join(str(n + 2) for n in range(40)) + f"\n{sum(range(1, 41))}\n"
    assert evaluate("\n".join(lines), arch, before) == expected


def test_far_branches(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body beyond 4 KiB makes RISC-V branches out of reach, and arm64's when they reach no farther."""
    whole = Arm64.reaches
    near = staticmethod(lambda kind, way: whole(kind, 256 * way if kind == "branch" else way))
    monkeypatch.setattr(Arm64, "reaches", near)
    lines = ["total: u64 = stack[0]", "for i in range(3):", "    if total % 2 == 1:"]
    lines += [f"        total = total * 3 + {n}" for n in range(900)]
    lines += ["    else:", "        total += 1", "print(f'{total}')"]
    total = 1
    for _ in range(3):
        if total % 2 == 1:
            for n in range(900):
                total = (total * 3 + n) & (1 << 64) - 1
        else:
            total += 1
    assert evaluate("\n".join(lines), arch) == f"{total}\n"


def test_formats(arch: str) -> None:
    text = """
        n: i32 = -42
        u: u64 = 0xDEADBEEF
        s: ptr[u8] = b"str"
        c: u8 = 65
        print(f"[{n}] [{n:6d}] [{n:06d}] [{u:x}] [{u:016x}] [{s:s}] [{c:c}] [{True}] {{}} [{5:3d}]")
        buffer: array[u8, 8]
        length = format_into(buffer, f"{u}")
        print(f"{buffer:s} {length}")
        print(f"{s:x}" if False else "plain")
        print("to stderr", file=2)
    """
    expected = (
        f"[-42] [{-42:6d}] [{-42:06d}] [deadbeef] [00000000deadbeef] [str] [A] [1] {{}} [  5]\n"
    )
    text = text.replace('print(f"{s:x}" if False else "plain")\n', 'print("plain")\n')
    assert evaluate(body(text), arch) == expected + "3735928 7\nplain\n"


def test_compile_time_conditions(arch: str) -> None:
    text = """
        if arch == "riscv64":
            print("riscv64")
        elif arch == "amd64":
            print("amd64")
        elif arch == "arm64":
            print("arm64")
        else:
            undefined_name()
        if feature("loud") and VALUE > 2:
            print(f"loud {VALUE} {PER_ARCH}")
        if not feature("quiet"):
            print("not quiet")
        print(f"{'x' in NAMES} {len(NAMES)} {sizeof(u32) * 3}")
    """
    text = text.replace("{'x' in NAMES}", '{"x" in NAMES}')
    before = 'VALUE = 1 << 3\nPER_ARCH = by_arch(amd64=64, arm64=66, riscv64=65)\nNAMES = "xyz"\n'
    text = body(text).replace('print(f"{"x" in NAMES} ', 'print(f\'{"x" in NAMES} ')
    text = text.replace('sizeof(u32) * 3}")', "sizeof(u32) * 3}')")
    per_arch = {"amd64": 64, "arm64": 66, "riscv64": 65}[arch]
    assert evaluate(text, arch, before, features=("loud",)) == (
        f"{arch}\nloud 8 {per_arch}\nnot quiet\n1 3 12\n"
    )


def test_system_calls(arch: str) -> None:
    text = """
        data: array[u8, 64]
        n = linux.read(0, data, len(data))
        data[0] -= 32
        linux.write(1, data, n)
        print(f"{linux.close(77)} {linux.getpid() > 0}")
    """
    assert evaluate(body(text), arch, stdin=b"from stdin\n") == "From stdin\n-9 1\n"


def test_failed_assertions_and_checks_say_where(arch: str) -> None:
    cases = {
        "assert stack[0] > 5": b"source.py:5: assertion failed: stack[0] > 5\n",
        "assert stack[0] > 5, 'too few'": b"source.py:5: assertion failed: too few\n",
        "a: array[u8, 4]; a[stack[0] + 3] = 1": b"source.py:5: index out of range of 4\n",
        "a: array[u8, 4]; a[i64(stack[0]) - 2] = 1": b"source.py:5: index out of range of 4\n",
        "a = 5 // (stack[0] - 1)": b"source.py:5: division by zero\n",
    }
    for line, message in cases.items():
        source = "def main(stack: ptr[u64]) -> i32:\n    pass\n    " + line + "\n    return 0\n"
        done = run(source, arch)
        # What follows is the emulator's.
        assert done.stderr.split(b"qemu: ")[0].endswith(message), done.stderr
        assert done.returncode in (-signal.SIGILL, -signal.SIGTRAP, -signal.SIGABRT)


def test_the_program_can_handle_failures_itself(arch: str) -> None:
    source = body("""
        def on_failure(message: ptr[u8]) -> None:
            print(f"mine: {message:s}")
            linux.exit_group(3)

        def main() -> i32:
            assert linux.getpid() == 0
            return 0
    """)
    done = run(source, arch)
    assert done.returncode == 3
    assert done.stdout == b"mine: source.py:8: assertion failed: linux.getpid() == 0\n"


def test_functions_and_globals_of_other_modules(arch: str) -> None:
    source = body("""
        from crumble_ir.runtime import memory, text
        from crumble_ir.runtime.memory import same

        def main() -> i32:
            a: array[u8, 32]
            memory.clear(a, len(a))
            memory.copy(a, b"0123456789abcdefg", 17)
            print(f"{memory.length(a)} {same(a, b'0123456789abcdefg')} {same(a, b'01')}")
            print(f"{memory.starts_with(a, b'0123')} {memory.starts_with(a, b'1')} {text.LINE}")
            return 0
    """)
    assert output(source, arch) == "17 1 0\n1 0 1024\n"


def test_sources_import_as_plain_python(arch: str) -> None:
    """The dialect is Python: importing a source runs its declarations."""
    namespace: dict[str, Any] = {"__name__": "source"}
    exec(HEAD + "N = 3\n@struct\nclass S:\n    a: u8\n\nx = static(array[S, N])\n", namespace)
    assert str(namespace["x"].type) == "array[S, 3]"
