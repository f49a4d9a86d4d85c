"""The control plane's codec: what goes in comes out; what is malformed changes nothing."""

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crumble_common import wire
from crumble_common.errors import GuestError, UsageError
from crumble_common.messages import fs, image, service, vm


def test_round_trip_of_a_nested_message() -> None:
    config = fs.FsConfig("root", "fs", [fs.Layer("a", "b")], shares=[fs.Share("/x", "/y", True)])
    sent = wire.Envelope(config, request=7, to="vm:a", deadline=2.5)
    assert wire.decode(wire.encode(sent)) == sent


def test_errors_keep_their_kind_code_and_hint() -> None:
    error = UsageError("No such image.", code="image.unknown", hint="Pull it.", name="x", n=3)
    got = wire.decode(wire.encode(wire.Envelope(reply_to=3, error=error)))
    assert got.reply_to == 3
    assert isinstance(got.error, UsageError)
    assert (got.error.code, got.error.hint, got.error.detail) == (
        "image.unknown",
        "Pull it.",
        {"name": "x", "n": 3},
    )
    assert not isinstance(got.error, GuestError)


@pytest.mark.parametrize(
    "frame",
    [
        [],
        {"t": "no.such"},
        {"t": 3},
        {"t": "service.ping", "b": {"extra": 1}},
        {"t": "service.ready", "b": {}},
        {"t": "vm.process.exit", "b": {"process": True, "status": 0}},
        {"t": "vm.process.exit", "b": {"process": 1, "status": "0"}},
        {"t": "vm.process.start", "b": {"argv": [b"x"]}},
        {"t": "vm.event", "b": {"vm": "a", "kind": "bogus"}},
        {"re": -1},
        {"id": 1, "zz": 0},
        {"re": 1, "error": {"fault": "nobody"}},
        {"re": 1, "error": {"fault": "guest", "message": 1}},
    ],
)
def test_malformed_frames_are_refused(frame: object) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(msgpack.packb(frame))


def test_huge_frames_are_refused() -> None:
    with pytest.raises(wire.WireError, match="limit"):
        wire.decode(bytes(wire.MAX_FRAME + 1))


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_decode_or_raise_wire_error(data: bytes) -> None:
    """Invariant: decode() of any bytes returns an Envelope or raises WireError, nothing else."""
    try:
        wire.decode(data)
    except wire.WireError:
        pass


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=8,
    ),
    st.sampled_from([service.Ready, vm.VmConfig, fs.FsConfig, image.Image, vm.ProcessStart]),
)
def test_no_body_does_anything_but_validate_or_raise(body: object, kind: Any) -> None:
    """Invariant: any body for any type gives a message or WireError."""
    try:
        wire.decode(msgpack.packb({"t": kind.wire_type, "b": body}))
    except wire.WireError:
        pass


@pytest.mark.parametrize("value", ["\udcff", 1 << 70, "x" * (wire.MAX_FRAME + 1)])
def test_what_cannot_be_sent_is_the_callers_fault(value: Any) -> None:
    with pytest.raises(UsageError) as caught:
        wire.encode(wire.Envelope(service.Ok(), to=value))
    assert caught.value.code == "wire.value" and len(str(caught.value)) < 300


def test_errors_can_always_be_sent() -> None:
    error = UsageError("There is no \udcff.", hint="\udcfe", path="\udcff", size=1 << 70)
    read = wire.decode(wire.encode(wire.Envelope(reply_to=1, error=error))).error
    assert read is not None and str(read) == "There is no \\udcff. \\udcfe" and read.detail == {}
