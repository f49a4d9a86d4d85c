"""The cffi recipe: every C source and header of native/, one extension, crumble_native._core.

The headers are the interface: what cffi needs is cut out of them (comments, includes, guards and
`inline` bodies go), so a declaration is written once. CRUMBLE_SANITIZE=1 builds with ASan and UBSan.
"""

import os
import platform
import re
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent.parent
HEADERS = sorted((ROOT / "native/include/crumble").glob("*.h"))
SOURCES = sorted((ROOT / "native/src").rglob("*.c"))
PRIVATE = sorted((ROOT / "native/src").rglob("*.h"))


def relative(path: Path) -> str:
    """setuptools wants sources relative to the directory of setup.py."""
    return str(path.relative_to(ROOT))


def declarations(text: str) -> str:
    """The part of a header that cffi's parser understands."""
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    text = re.sub(r"\\\n", " ", text)
    kept = []
    for line in text.splitlines():
        define = re.match(r"#define\s+(CRB_\w+)\s+(0x[0-9a-fA-F]+|\d+)[uUlL]*\s*$", line)
        if define:
            kept.append(f"#define {define[1]} {define[2]}")
        elif not line.startswith("#"):
            kept.append(line)
    return "\n".join(kept)


def in_order(headers: list[Path]) -> list[Path]:
    """Headers after those they include."""
    done: list[Path] = []
    by_name = {f"crumble/{header.name}": header for header in headers}

    def visit(header: Path) -> None:
        for name in re.findall(r'#include "(crumble/[\w.]+)"', header.read_text()):
            visit(by_name[name])
        if header not in done:
            done.append(header)

    for header in headers:
        visit(header)
    return done


flags = [
    "-std=c11",
    "-D_GNU_SOURCE",
    "-O2",
    "-g",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fvisibility=hidden",
]
flags += ["-Wno-unused-parameter", "-fno-strict-aliasing", "-frounding-math"]
link: list[str] = []
if os.environ.get("CRUMBLE_SANITIZE") == "1":
    flags += [
        "-fsanitize=address,undefined",
        "-fno-omit-frame-pointer",
        "-fno-sanitize-recover=undefined",
    ]
    link += ["-fsanitize=address,undefined"]

ffibuilder = FFI()
ordered = in_order(HEADERS)
ffibuilder.cdef("\n".join(declarations(header.read_text()) for header in ordered))
ffibuilder.set_source(
    "crumble_native._core",
    "\n".join(f'#include "crumble/{header.name}"' for header in ordered),
    sources=[relative(source) for source in SOURCES],
    include_dirs=[relative(ROOT / "native/include"), relative(ROOT / "native/src")],
    depends=[relative(header) for header in HEADERS + PRIVATE],
    extra_compile_args=flags,
    extra_link_args=link,
    # GCC before 13 calls a library for what is atomic and short on riscv64.
    libraries=["m", "pthread", *(["atomic"] if platform.machine() == "riscv64" else [])],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
