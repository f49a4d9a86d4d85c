"""Linux gives programs vectors, and keeps them apart."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from crumble_common.messages.vm import VmEvent
from framework.guest_root import fsd, make_root
from framework.guest_vm import GuestVm
from functional.test_vmm_guest import config, run

pytestmark = [pytest.mark.guest, pytest.mark.slow]
COMPILER = "riscv64-linux-gnu-gcc"
# hwprobe's IMA_V, then four processes whose vectors others would spoil.
PROGRAM = """
#include <stdint.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
static int spoiled(unsigned seed) {
    uint8_t in[64], out[64];
    long n = 64;
    for (int round = 0; round < 400; round++) {
        for (int i = 0; i < 64; i++) in[i] = seed * 7 + i + round;
        asm volatile("vsetvli zero, %1, e8, m4, tu, mu; vle8.v v8, (%0); vadd.vi v8, v8, 3" :: "r"(in), "r"(n) : "memory");
        for (volatile int k = 0; k < 20000; k++) {}
        asm volatile("vsetvli zero, %1, e8, m4, tu, mu; vse8.v v8, (%0)" :: "r"(out), "r"(n) : "memory");
        for (int i = 0; i < 64; i++) if (out[i] != (uint8_t)(in[i] + 3)) return 1;
    }
    return 0;
}
int main(void) {
    struct { long long key; unsigned long long value; } probe = {4, 0};
    int bad = syscall(258, &probe, 1, 0, 0, 0) != 0 || (probe.value >> 2 & 1) == 0;
    for (int i = 0; i < 4; i++) if (fork() == 0) _exit(spoiled(i));
    for (int i = 0, status; i < 4; i++) { wait(&status); bad |= status != 0; }
    puts(bad ? "spoiled" : "kept");
    return bad;
}
"""


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuestVm]:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"{COMPILER} is not installed")
    folder = tmp_path_factory.mktemp("program")
    source = folder / "vectors.c"
    source.write_text(PROGRAM)
    root = make_root(tmp_path_factory.mktemp("root"))
    words = [
        COMPILER,
        "-O1",
        "-static",
        "-march=rv64gcv",
        "-o",
        str(Path(root) / "vectors"),
        str(source),
    ]
    subprocess.run(words, check=True, capture_output=True)
    with fsd(root) as (sock, _), GuestVm(config(cpus=2), {"root_fs": sock}) as made:
        made.wait(VmEvent, lambda event: event.kind == "agent_ready")
        yield made


def test_processes_keep_their_vectors(vm: GuestVm) -> None:
    assert run(vm, "/vectors") == "kept\n"
