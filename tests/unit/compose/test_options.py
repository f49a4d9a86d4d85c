"""What people write on a command line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crumble.sdk import options
from crumble_common.errors import GuestError, InternalError, UsageError
from crumble_common.messages.fs import Share
from crumble_common.messages.vm import VmEvent


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1024", 1024),
        ("512m", 512 << 20),
        ("1.5G", 3 << 29),
        ("2GiB", 2 << 30),
        ("64 mb", 64 << 20),
        (7, 7),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert options.memory_size(text) == size


@given(st.text())
def test_no_size_is_a_stack_trace(text: str) -> None:
    """Any text is a size of 0 or more, or a UsageError."""
    try:
        assert options.memory_size(text) >= 0
    except UsageError:
        pass


def test_volumes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    expected = [Share(f"{tmp_path}/here", "/there", True), Share("/a", "/b")]
    assert options.shares(["here:/there:ro", "/a:/b"]) == expected
    assert options.shares({"here": "/there:ro", "/a": "/b:rw"}) == expected
    for bad in ("/a", "/a:", ":/b", "/a:/b:rx"):
        with pytest.raises(UsageError, match="no volume"):
            options.shares([bad])


def test_relative_paths_in_references_become_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert options.image_reference("oci:dir:tag") == f"oci:{tmp_path}/dir:tag"
    assert options.image_reference("docker-archive:/a.tar") == "docker-archive:/a.tar"
    assert options.image_reference("alpine:3") == "alpine:3"


def test_what_ends_a_vm_is_an_error_for_its_user() -> None:
    assert isinstance(options.failure_of(VmEvent("a", "panic", "x")), GuestError)
    assert isinstance(options.failure_of(VmEvent("a", "failed", "x")), InternalError)
    assert isinstance(options.failure_of(VmEvent("a", "poweroff")), GuestError)
    assert options.failure_of(VmEvent("a", "agent_ready")) is None
    assert options.failure_of(InternalError("x")) is not None
