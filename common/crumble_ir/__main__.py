"""python -m crumble_ir FILE --arch riscv64 -o out: compiles one source in the dialect."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from crumble_common.errors import CrumbleError
from crumble_ir.compiler import BACKENDS, to_elf, to_ir
from crumble_ir.frontend.units import Units

OBJDUMP = {
    "amd64": "objdump",
    "arm64": "aarch64-linux-gnu-objdump",
    "riscv64": "riscv64-linux-gnu-objdump",
}


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="crumble_ir", description=__doc__)
    parser.add_argument("file", type=Path, help="a source in the dialect, with a main")
    parser.add_argument("--arch", choices=sorted(BACKENDS), default="amd64")
    parser.add_argument("-f", "--feature", action="append", default=[], help="a feature flag")
    parser.add_argument("-o", "--output", type=Path, help="the executable to write")
    parser.add_argument("--dump-ir", action="store_true", help="print the IR")
    parser.add_argument("--disassemble", action="store_true", help="print what objdump makes of it")
    chosen = parser.parse_args(argv)
    try:
        return _compile(chosen)
    except CrumbleError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _compile(chosen: argparse.Namespace) -> int:
    units = Units()
    source = chosen.file.read_text(encoding="utf-8")
    module = to_ir(units, units.text(source, str(chosen.file)), chosen.arch, chosen.feature)
    if chosen.dump_ir:
        sys.stdout.write(str(module))
    image = to_elf(module, chosen.arch)
    output = chosen.output or chosen.file.with_suffix(".elf")
    output.write_bytes(image)
    os.chmod(output, 0o755)  # noqa: S103, PTH101  an executable
    if chosen.disassemble:
        sys.stdout.flush()
        subprocess.run([OBJDUMP[chosen.arch], "-d", output], check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
