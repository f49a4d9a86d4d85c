"""Real programs inside VMs, run as a user would with `crumble run` (`make test-programs [NAME=...]`).

A program is a file of tools/programs/: its first lines say on which image and machine it runs, the rest is
what the guest's shell does. It did right when it exits with 0, has printed a line for each `expect` of its first
lines and none for a `refuse` (regular expressions), and "CHECK WORDS" lines that are the same on every number of
CPUs. What a machine printed is kept in build/programs/; the end is a table for docs/programs.md.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "tools" / "programs"
LOGS = ROOT / "build" / "programs"
CRUMBLE = ROOT / ".venv" / "bin" / "crumble"
_SETTING = re.compile(r"^# (image|memory|limit|user): (.+)$", re.MULTILINE)
_PRINTED = re.compile(r"^# (expect|refuse): (.+)$", re.MULTILINE)


# An image of packages has no users of services.
_AS_USER = (
    "useradd -u 1000 {}; chmod 1777 /tmp; "
    'exec setpriv --reuid 1000 --regid 1000 --clear-groups sh -c "$0"'
)


@dataclass(frozen=True, slots=True)
class Program:
    """image: of `crumble run`. limit: seconds it may take on a busy host. script: for /bin/sh. user: a new one, or root.

    printed: whether there is to be ("expect") such a line, or not ("refuse").
    """

    name: str
    image: str
    script: str
    memory: str
    limit: int
    user: str
    printed: tuple[tuple[str, str], ...] = ()

    @classmethod
    def load(cls, path: Path) -> Program:
        """Reads its file; KeyError when it names no image."""
        text = path.read_text()
        said = dict(_SETTING.findall(text))
        limit = int(said.get("limit", "600"))
        memory, user = said.get("memory", "1g"), said.get("user", "")
        printed = tuple(_PRINTED.findall(text))
        return cls(path.stem, said["image"], text, memory, limit, user, printed)

    def wrong(self, text: str) -> str:
        """What is wrong with what it printed: empty, or a few words."""
        for kind, pattern in self.printed:
            found = re.search(pattern, text, re.MULTILINE)
            if found is None and kind == "expect":
                return f"printed nothing like {pattern}"
            if found is not None and kind == "refuse":
                return f"printed {found[0]!r}"
        return ""


@dataclass(frozen=True, slots=True)
class Result:
    """wrong: empty when all was right. checks: what must not depend on the machine. summary: the last CHECK or SUM."""

    program: str
    cpus: int
    wrong: str
    seconds: float
    checks: tuple[str, ...]
    summary: str


def run(program: Program, cpus: int, options: list[str]) -> Result:
    """One run; what it prints goes to its log."""
    command = [
        str(CRUMBLE), "run", "--cpus", str(cpus), "--memory", program.memory, "--timeout", str(program.limit),
        "--workdir", "/tmp", *options,
    ]  # fmt: skip
    command += [program.image, "sh", "-c"]
    if program.user:
        command.append(_AS_USER.format(program.user))
    command.append(program.script)
    log = LOGS / f"{program.name}-{cpus}.log"
    began = time.monotonic()
    with log.open("wb") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False)
    text = log.read_text(errors="replace")
    wrong = f"exit status {done.returncode}" if done.returncode else program.wrong(text)
    lines = text.splitlines()
    checks = tuple(line for line in lines if line.startswith("CHECK "))
    said = [line[4:] for line in lines if line.startswith("SUM ")]
    summary = "; ".join(said) or f"{len(checks)} checks"
    return Result(program.name, cpus, wrong, time.monotonic() - began, checks, summary)


def judge(results: list[Result]) -> list[str]:
    """Sentences of what is wrong."""
    wrong = [
        f"{item.program} on {item.cpus}: {item.wrong}, see build/programs/"
        for item in results
        if item.wrong
    ]
    first: dict[str, Result] = {}
    for item in results:
        other = first.setdefault(item.program, item)
        if item.checks != other.checks:
            wrong.append(
                f"{item.program} printed other CHECKs on {item.cpus} than on {other.cpus} CPUs"
            )
    return wrong


def main() -> int:
    """0 when everything passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of tools/programs; all without")
    parser.add_argument("--cpus", default="1,4", help="a machine of each (default: 1,4)")
    parser.add_argument("--option", action="append", default=[], help="one more for `crumble run`")
    chosen = parser.parse_args()
    known = {path.stem: path for path in sorted(PROGRAMS.glob("*.sh"))}
    if unknown := set(chosen.names) - set(known):
        sys.exit(f"There is no program {min(unknown)!r}; there are {', '.join(known)}.")
    LOGS.mkdir(parents=True, exist_ok=True)
    results = []
    for name in chosen.names or known:
        program = Program.load(known[name])
        for cpus in map(int, chosen.cpus.split(",")):
            result = run(program, cpus, chosen.option)
            results.append(result)
            verdict = f"FAILED ({result.wrong})" if result.wrong else "ok"
            print(
                f"| {name} | {cpus} | {verdict} | {result.seconds:.0f} s | {result.summary} |",
                flush=True,
            )
    wrong = judge(results)
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
