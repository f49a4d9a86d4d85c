"""Keys of the terminal that are for the VMM itself."""

import pytest

from crumble_vmm.standalone import EscapeKeys


@pytest.mark.parametrize(
    ("typed", "wanted", "ends"),
    [
        ([b"abc"], b"abc", False),
        ([b"a\x01x"], b"a", True),
        ([b"a\x01", b"x"], b"a", True),
        ([b"\x01\x01x"], b"\x01x", False),
        ([b"\x01y"], b"\x01y", False),
        ([b"x\x01"], b"x", False),
        ([b""], b"", False),
    ],
)
def test_escape_keys(typed: list[bytes], wanted: bytes, ends: bool) -> None:
    keys = EscapeKeys()
    answers = [keys.feed(piece) for piece in typed]
    assert b"".join(data for data, _ in answers) == wanted
    assert answers[-1][1] is ends
