"""What ends a guest on KVM, from the kernel's own structures to what a person is told."""

import errno
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crumble_common.errors import CrumbleError, GuestError, HostError
from crumble_common.vm_faults import fault_of, memory_lost
from crumble_native import kvm
from crumble_vmm.console_log import ConsoleLog
from crumble_vmm.endings import ending
from crumble_vmm.hypervisor.base import Exit, ExitReason
from crumble_vmm.hypervisor.kvm.faults import EHWPOISON, SYSTEM_EVENTS, fault

# KVM_EXIT_*
HLT, SHUTDOWN, FAIL_ENTRY, INTERNAL, SYSTEM, MEMORY_FAULT = 5, 8, 9, 17, 24, 39


def run_of(reason: int, body: bytes = b"") -> bytes:
    """struct kvm_run: 8 bytes of requests, the exit's reason, 20 bytes, what that reason has."""
    return struct.pack("<8xI20x", reason) + body


def emulation(code: bytes, *, flags: int = 1, words: int = 4) -> bytes:
    """KVM_INTERNAL_ERROR_EMULATION: suberror, ndata, flags, the instruction's size and bytes."""
    return run_of(INTERNAL, struct.pack("<IIQB15s", 1, words, flags, len(code), code))


def told(stop: kvm.Exit) -> CrumbleError:
    """What a user is told of it."""
    reason, detail = fault(stop)
    return fault_of(ending("vm1", Exit(reason, f"{detail} at 0x1000"), console()))


class Loop:
    """No console here prints."""

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        raise NotImplementedError


def console() -> ConsoleLog:
    return ConsoleLog(Loop(), lambda _: None)


FATAL: dict[str, tuple[bytes, int, type[CrumbleError], str]] = {
    "triple fault": (run_of(SHUTDOWN), 0, GuestError, "guest.triple_fault"),
    "emulation": (emulation(b"\x0f\x0b"), 0, GuestError, "guest.emulation"),
    "halt": (run_of(HLT), 0, GuestError, "guest.halted"),
    "internal": (run_of(INTERNAL, struct.pack("<II", 3, 0)), 0, HostError, "host.kvm"),
    "entry": (run_of(FAIL_ENTRY, struct.pack("<QI", 1 << 31 | 33, 0)), 0, HostError, "host.kvm_entry"),
    "memory": (b"", errno.EFAULT, HostError, "host.memory"),
    "unknown": (run_of(999), 0, HostError, "host.kvm"),
}  # fmt: skip


@pytest.mark.parametrize("name", FATAL)
def test_every_kind_has_its_code_its_sentence_and_what_to_do(name: str) -> None:
    run, error, kind, code = FATAL[name]
    said = told(kvm.decode(run, error))
    assert (type(said), said.code) == (kind, code)
    assert said.message.endswith("at 0x1000.") and said.message.count(". ") == 0
    assert said.hint


def test_kinds_are_told_apart() -> None:
    said = [told(kvm.decode(run, error)) for run, error, _, _ in FATAL.values()]
    assert len({error.message for error in said}) == len(FATAL)


def test_an_instruction_is_named_by_its_bytes() -> None:
    stop = kvm.decode(emulation(bytes.fromhex("c5fc2910")))
    assert stop.instruction == bytes.fromhex("c5fc2910")
    assert "(c5 fc 29 10)" in told(stop).message


@pytest.mark.parametrize(
    "run", [emulation(b"\x90", flags=0), emulation(b"\x90", words=2)], ids=["flag", "words"]
)
def test_bytes_that_kvm_does_not_vouch_for_are_not_shown(run: bytes) -> None:
    assert kvm.decode(run).instruction == b""
    assert "(unknown)" in told(kvm.decode(run)).message


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EOPNOTSUPP])
def test_other_architectures_say_by_an_errno_what_is_not_emulated(error: int) -> None:
    assert told(kvm.decode(b"", error)).code == "guest.emulation"


def test_an_internal_error_gives_its_number_and_the_first_word_of_more() -> None:
    stop = kvm.decode(run_of(INTERNAL, struct.pack("<IIQQ", 3, 2, 0x8000_0B0E, 7)))
    assert (stop.data, stop.extra) == (3, 0x8000_0B0E)
    assert "could not deliver (internal error 3, 0x80000b0e)" in told(stop).message


def test_memory_is_named_where_kvm_says_which() -> None:
    run = run_of(MEMORY_FAULT, struct.pack("<QQQ", 0, 0x1234_5000, 4096))
    assert "behind the guest's (0x12345000) is gone" in told(kvm.decode(run, errno.EFAULT)).message
    assert "behind the guest's (0x12345000) is damaged" in told(kvm.decode(run, EHWPOISON)).message
    assert "behind the guest's is gone" in told(kvm.decode(run_of(SHUTDOWN), errno.EFAULT)).message


def test_a_guest_that_reports_a_crash_is_not_taken_for_a_reset() -> None:
    said = fault_of(ending("vm1", SYSTEM_EVENTS[3], console()), dmesg=False)
    assert (said.code, said.message) == ("guest.crash", "The guest crashed: it says so itself.")
    assert "--dmesg" in said.hint


def test_an_error_of_ours_is_not_the_guests() -> None:
    event = ending("vm1", Exit(ExitReason.FAILED, "KeyError(3)"), console())
    assert (event.kind, fault_of(event).fault) == ("failed", "crumble")


def test_lost_memory_is_told_alike_whoever_touched_it_first() -> None:
    by_guest = told(kvm.decode(b"", errno.EFAULT))
    by_vmm = memory_lost("vmm.a", guest=True)
    assert (by_vmm.code, by_vmm.fault) == (by_guest.code, by_guest.fault) == ("host.memory", "host")
    same = "The guest cannot go on: the host's memory behind the guest's is gone"
    assert by_vmm.message.startswith(same) and by_guest.message.startswith(same)
    assert "vmm.a" in by_vmm.message and by_vmm.hint == by_guest.hint


def test_another_process_that_lost_memory_may_have_lost_a_file() -> None:
    said = memory_lost("fsd.a", guest=False)
    assert (said.code, said.fault) == ("host.memory", "host")
    assert "fsd.a" in said.message and "file" in said.message and "/dev/shm" in said.hint


@pytest.mark.parametrize("reason", [2, 6, 10, 35])
def test_accesses_are_no_ends(reason: int) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        kvm.decode(run_of(reason))


@given(st.binary(max_size=400), st.sampled_from([0, errno.EFAULT, errno.ENOSYS, EHWPOISON]))
def test_whatever_the_structure_holds_is_told_in_one_sentence(run: bytes, error: int) -> None:
    """Any bytes are an end with a known code and at most 15 bytes of code, or none (EINVAL)."""
    try:
        stop = kvm.decode(run, error)
    except OSError as refused:
        assert refused.errno == errno.EINVAL
        return
    if stop.reason == kvm.EXIT_CANCELED:
        pytest.fail("an end is not a cancel")
    assert len(stop.instruction) <= 15
    if stop.reason != kvm.EXIT_SYSTEM and stop.reason != kvm.EXIT_EOI:
        assert told(stop).code in {code for _, _, _, code in FATAL.values()}
