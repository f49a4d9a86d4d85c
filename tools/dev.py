#!/usr/bin/env python3
"""The one build tool behind the Makefile: set up, build, lint, test, run, measure.

Runs with any Python ≥ 3.11 and no packages; everything else goes into .venv. Each step is skipped
when what it depends on has not changed (stamps in .venv/stamps).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / "bin"
STAMPS = VENV / "stamps"
PYTHON_ROOMS = ["compose", "services", "common", "native", "tests", "benchmarks", "tools"]


def run(*command: str | Path, env: dict[str, str] | None = None, check: bool = True) -> int:
    """Runs a command in the repository's root; ends this tool with its status when it fails."""
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, env={**os.environ, **(env or {})}, check=False
    )
    if check and done.returncode:
        sys.exit(done.returncode)
    return done.returncode


def fingerprint(paths: Iterable[Path]) -> str:
    """A digest of files' names and contents."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def fresh(stamp: str, key: str) -> bool:
    """True when `stamp` was last made from `key`."""
    path = STAMPS / stamp
    return path.is_file() and path.read_text() == key


def mark(stamp: str, key: str) -> None:
    """Records that `stamp` was made from `key`."""
    STAMPS.mkdir(parents=True, exist_ok=True)
    (STAMPS / stamp).write_text(key)


def c_files() -> list[Path]:
    """Every C source and header."""
    return [*sorted((ROOT / "native").rglob("*.c")), *sorted((ROOT / "native").rglob("*.h"))]


def c_sources() -> list[Path]:
    """C files that are ours to format and build: not what cffi generated."""
    return [path for path in c_files() if path.name != "_core.c"]


def need(what: str, found: bool, fix: str) -> None:
    """Ends with one sentence when a prerequisite is missing."""
    if not found:
        sys.exit(f"make: {what} is missing: {fix}")


def setup() -> None:
    """Makes .venv, with the packages, the extension and the crumble command in it."""
    need("Python 3.11", sys.version_info >= (3, 11), "install python3 (3.11 or newer).")
    need("a C compiler", bool(shutil.which("cc") or shutil.which("gcc")), "install gcc.")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    need("Python.h", header.exists(), "install python3-dev.")
    if not (BIN / "python").exists():
        probe = subprocess.run(
            [sys.executable, "-c", "import ensurepip"], capture_output=True, check=False
        )
        need("ensurepip", probe.returncode == 0, "install python3-venv.")
        run(sys.executable, "-m", "venv", VENV)
    key = fingerprint([ROOT / "pyproject.toml", ROOT / "setup.py"])
    native = fingerprint([*c_sources(), ROOT / "native" / "build_core.py"])
    if not fresh("setup", key):
        print("Setting up .venv ...", file=sys.stderr)
        run(BIN / "python", "-m", "pip", "install", "-q", "setuptools>=68", "cffi>=1.17", "wheel")
        run(BIN / "python", "-m", "pip", "install", "-q", "--no-build-isolation", "-e", ".[dev]")
        plain_paths()
        mark("setup", key)
        mark("native", native)
    build()
    compile_modules()


def plain_paths() -> None:
    """Has .venv find our packages by paths: setuptools' finder takes each start of Python twice as long."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    rooms = settings["tool"]["setuptools"]["packages"]["find"]["where"]
    for link in VENV.glob("lib/python*/site-packages/__editable__.crumble-*.pth"):
        link.write_text("".join(f"{ROOT / room}\n" for room in rooms))


def build() -> None:
    """Rebuilds the C extension and the launcher when a C file or its recipe changed."""
    key = fingerprint([*c_sources(), ROOT / "native" / "build_core.py"])
    if fresh("native", key):
        return
    print("Building the C core ...", file=sys.stderr)
    jobs = str(os.cpu_count() or 1)
    run(BIN / "python", "setup.py", "-q", "build_ext", "--inplace", "-j", jobs)
    run(BIN / "python", "setup.py", "-q", "build_scripts", "--build-dir", BIN)
    mark("native", key)


def compile_modules() -> None:
    """As pip does for who installs us: where PYTHONDONTWRITEBYTECODE is set, each command would compile anew."""
    rooms = [
        ROOT / "compose",
        ROOT / "services",
        ROOT / "common",
        ROOT / "native" / "crumble_native",
    ]
    run(BIN / "python", "-m", "compileall", "-q", *rooms)


def lint() -> None:
    """ruff, formatting, mypy strict, import rules, clang-format."""
    setup()
    run(BIN / "ruff", "check", "-q", "--output-format", "concise", *PYTHON_ROOMS)
    run(BIN / "ruff", "format", "--check", "-q", *PYTHON_ROOMS)
    run(BIN / "mypy", "compose", "services", "common", "native/crumble_native", "tools/dev.py")
    run(BIN / "lint-imports")
    run(BIN / "clang-format", "--dry-run", "--Werror", *c_sources())


def formatted() -> None:
    """Formats everything in place."""
    setup()
    run(BIN / "ruff", "check", "--fix", "-q", *PYTHON_ROOMS, check=False)
    run(BIN / "ruff", "format", "-q", *PYTHON_ROOMS)
    run(BIN / "clang-format", "-i", *c_sources())


def sanitize() -> None:
    """Unit tests of the C core, built with ASan and UBSan into build/sanitize."""
    setup()
    out = ROOT / "build" / "sanitize"
    key = fingerprint([*c_sources(), ROOT / "native" / "build_core.py"])
    env = {"CRUMBLE_SANITIZE": "1"}
    if not fresh("sanitize", key):
        shutil.rmtree(out, ignore_errors=True)
        temp = ROOT / "build" / "sanitize-temp"
        run(
            BIN / "python",
            "setup.py",
            "-q",
            "build_ext",
            "--build-lib",
            out,
            "--build-temp",
            temp,
            env=env,
        )
        for source in (ROOT / "native" / "crumble_native").glob("*.py"):
            shutil.copy(source, out / "crumble_native" / source.name)
        mark("sanitize", key)
    asan = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    ubsan = subprocess.run(
        ["gcc", "-print-file-name=libubsan.so"], capture_output=True, text=True, check=True
    )
    env = {
        "LD_PRELOAD": f"{asan.stdout.strip()} {ubsan.stdout.strip()}",
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(out),
        "PYTHONMALLOC": "malloc",
    }
    run(
        BIN / "python",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/unit/native",
        "tests/quest",
        env=env,
    )


def test(arguments: list[str]) -> None:
    """Lint, sanitizer run, then every test that can run here; or pytest with the arguments given."""
    if arguments:
        setup()
        run(BIN / "python", "-m", "pytest", *arguments)
        return
    lint()
    sanitize()
    run(
        BIN / "python", "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-m", "not long", "tests"
    )  # fmt: skip


def test_faults() -> None:
    """Everything that goes wrong, with real guests, and kills of netd, the long tests too."""
    setup()
    run(BIN / "python", "-m", "pytest", "-q", "-n", "2", "tests/faults", "tests/unit/netd")


def test_net() -> None:
    """What people use networks with, in real guests: curl, apt-get, iperf3 and others."""
    setup()
    run(BIN / "python", "-m", "pytest", "-q", "tests/net")


KVM_HOSTS = ("x86_64", "x86_64-trixie", "arm64", "arm64-gicv2", "riscv64")


def test_kvm(arch: str) -> None:
    """Runs Crumble on KVM, on an emulated host with hardware virtualization (some minutes)."""
    setup()
    need(f"an emulated host for {arch!r}", arch in KVM_HOSTS, f"ARCH is {', '.join(KVM_HOSTS)}.")
    run("nice", "-n", "10", BIN / "python", "tools/kvm_rig.py", arch)


def test_riscv(folder: str) -> None:
    """Runs a directory of built official RISC-V tests on the soft CPU's two engines."""
    setup()
    need(
        f"a directory of built tests {folder!r}", Path(folder).is_dir(), "See docs/riscv-tests.md."
    )
    env = {"PYTHONPATH": str(ROOT / "tests")}
    run(BIN / "python", "-m", "framework.riscv_tests", folder, env=env)


def fuzz_cpu(blocks: str, seed: str) -> None:
    """Compares the soft CPU's engines and qemu-riscv64 on random blocks."""
    setup()
    need("qemu-riscv64", bool(shutil.which("qemu-riscv64")), "install qemu-user.")
    words = ["--blocks", blocks, "--seed", seed]
    run(BIN / "python", "-m", "framework.rv64_fuzz", *words, env={"PYTHONPATH": "tests"})


def test_programs(names: list[str]) -> None:
    """Runs real programs in guests, on one CPU and on four (an hour for all)."""
    setup()
    run(BIN / "python", "tools/programs.py", *names)


def bench(name: str) -> None:
    """Runs one benchmark; its JSON goes to benchmarks/results."""
    setup()
    known = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem[0] != "_")
    need(f"a benchmark named {name!r}", name in known, f"NAME is one of {', '.join(known)}.")
    run(BIN / "python", "-m", f"benchmarks.{name}")


def demo() -> None:
    """Sets everything up, then boots a VM and prints what the command in it printed."""
    setup()
    run(BIN / "crumble", "run", "deb:trixie", "cat", "/etc/os-release")


def clean() -> None:
    """Removes everything that was built; keeps the image store."""
    for path in (VENV, ROOT / "build", ROOT / "dist"):
        shutil.rmtree(path, ignore_errors=True)
    for path in ROOT.rglob("*.so"):
        path.unlink()


def main() -> None:
    """Reads the command line and does one thing."""
    parser = argparse.ArgumentParser(prog="tools/dev.py", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    plain = {
        "setup": setup, "build": setup, "lint": lint, "format": formatted, "sanitize": sanitize,
        "run": demo, "clean": clean, "test-faults": test_faults,
        "test-net": test_net,
    }  # fmt: skip
    for verb, action in plain.items():
        verbs.add_parser(verb, help=(action.__doc__ or "").splitlines()[0])
    verbs.add_parser("test", help="everything, or pytest with arguments").add_argument(
        "arguments", nargs=argparse.REMAINDER
    )
    verbs.add_parser("bench", help="run one benchmark").add_argument("name", nargs="?", default="")
    verbs.add_parser("test-kvm", help="Crumble on KVM, on an emulated host").add_argument(
        "arch", nargs="?", default="x86_64"
    )
    verbs.add_parser("test-riscv", help="built official RISC-V tests").add_argument(
        "folder", nargs="?", default=""
    )
    fuzz = verbs.add_parser("fuzz-cpu", help="random blocks on the soft CPU and qemu-riscv64")
    fuzz.add_argument("blocks", nargs="?", default="100000")
    fuzz.add_argument("seed", nargs="?", default="0", help="0: any")
    verbs.add_parser("test-programs", help="real programs in guests").add_argument(
        "names", nargs="*"
    )
    chosen = parser.parse_args()
    if chosen.verb == "test":
        test(chosen.arguments)
    elif chosen.verb == "test-riscv":
        test_riscv(chosen.folder)
    elif chosen.verb == "test-programs":
        test_programs(chosen.names)
    elif chosen.verb == "test-kvm":
        test_kvm(chosen.arch)
    elif chosen.verb == "fuzz-cpu":
        fuzz_cpu(chosen.blocks, chosen.seed)
    elif chosen.verb == "bench":
        bench(chosen.name)
    else:
        plain[chosen.verb]()


if __name__ == "__main__":
    main()
