#!/usr/bin/env python3
"""Proves the README: its two commands, from a fresh clone in an empty Debian, by root and by a user.

Makes a chroot with debootstrap (needs root, `debootstrap` and a Debian mirror in the host's apt
sources), installs exactly the packages the README names, clones this repository's HEAD into it and
runs `make run` and `make test` there, once as root and once as an ordinary user. Not part of
`make test`: it takes as long as both together. Settings of pip in the environment (PIP_*) and the
host's certificate bundle are passed on, so that it works behind a proxy that has its own.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
USER = "somebody"


def run(*command: object, check: bool = True) -> int:
    """Prints and runs a command."""
    words = [str(word) for word in command]
    print("+", " ".join(words), file=sys.stderr, flush=True)
    return subprocess.run(words, check=check).returncode


def readme_packages() -> list[str]:
    """The packages of the README's apt-get line."""
    found = re.search(r"apt-get install (.+)", (ROOT / "README.md").read_text())
    if not found:
        sys.exit("README.md has no apt-get line")
    return found[1].split()


def mirror() -> str:
    """The main archive's address in the host's apt sources."""
    out = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    )
    return out.stdout.split()[0]


def make_chroot(place: Path, suite: str) -> None:
    """A minimal Debian at `place` with the README's packages, and an ordinary user."""
    if not (place / "etc/debian_version").exists():
        packages = ",".join(readme_packages())
        run("debootstrap", "--variant=minbase", f"--include={packages}", suite, place, mirror())
    if run("chroot", place, "id", USER, check=False):
        run("chroot", place, "useradd", "--create-home", "--shell", "/bin/bash", USER)
    shutil.copy("/etc/resolv.conf", place / "etc/resolv.conf")
    if Path(CERTIFICATES).exists():
        (place / "etc/ssl/certs").mkdir(parents=True, exist_ok=True)
        shutil.copy(CERTIFICATES, place / CERTIFICATES.lstrip("/"))
    for name, kind in (
        ("proc", "proc"),
        ("sys", "sysfs"),
        ("dev/shm", "tmpfs"),
        ("dev/pts", "devpts"),
    ):
        (place / name).mkdir(exist_ok=True)
        if not os.path.ismount(place / name):
            run("mount", "-t", kind, kind, place / name)


def unmount(place: Path) -> None:
    """Takes away what make_chroot mounted."""
    for name in ("dev/pts", "dev/shm", "sys", "proc"):
        if os.path.ismount(place / name):
            run("umount", place / name, check=False)


def try_as(place: Path, user: str, targets: list[str]) -> dict[str, int]:
    """Clones HEAD into the user's home and runs each make target; exit status by target."""
    home = "/root" if user == "root" else f"/home/{user}"
    shutil.rmtree(place / home.lstrip("/") / "crumble", ignore_errors=True)
    run("git", "clone", "-q", ROOT, place / home.lstrip("/") / "crumble")
    run("chroot", place, "chown", "-R", f"{user}:", f"{home}/crumble")
    settings = [f"{key}={value}" for key, value in os.environ.items() if key.startswith("PIP_")]
    settings = [item for item in settings if not item.startswith("PIP_FIND_LINKS")]
    clean = ["env", "-i", f"HOME={home}", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *settings]
    status = {}
    for target in targets:
        command = f"cd {home}/crumble && make {target}"
        status[target] = run(
            "chroot", f"--userspec={user}", place, *clean, "sh", "-c", command, check=False
        )
    return status


def main() -> int:
    """Reads the command line; exit status 0 when every command of every user succeeded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chroot", type=Path, default=Path("/var/tmp/crumble-fresh"))
    parser.add_argument("--suite", default="bookworm")
    parser.add_argument("--user", action="append", choices=["root", USER])
    parser.add_argument("targets", nargs="*", default=["run", "test"])
    chosen = parser.parse_args()
    make_chroot(chosen.chroot, chosen.suite)
    results = {}
    try:
        for user in chosen.user or ["root", USER]:
            results[user] = try_as(chosen.chroot, user, chosen.targets)
    finally:
        unmount(chosen.chroot)
    for user, status in results.items():
        for target, code in status.items():
            print(f"{user}: make {target}: {'passed' if code == 0 else f'failed ({code})'}")
    return any(code for status in results.values() for code in status.values())


if __name__ == "__main__":
    sys.exit(main())
