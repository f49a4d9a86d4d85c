"""Who a process runs as, by runc's rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crumble_common.errors import UsageError
from crumble_vmm.agent.users import Identity, resolve

PASSWD = b"""root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
# a comment
broken line
bad:x:minus:0::/:
www-data:x:33:33::/var/www:/bin/sh
1234:x:77:78::/odd:
homeless:x:90:91:::
"""
GROUP = b"""root:x:0:
adm:x:4:root,www-data
www-data:x:33:
tape:x:26:www-data,
bogus:x:x:www-data
staff:x:50:
"""


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("", Identity(0, 0, (4,), "/root", "root")),
        ("root", Identity(0, 0, (4,), "/root", "root")),
        ("0", Identity(0, 0, (4,), "/root", "root")),
        ("www-data", Identity(33, 33, (4, 26), "/var/www", "www-data")),
        ("33", Identity(33, 33, (4, 26), "/var/www", "www-data")),
        ("www-data:staff", Identity(33, 50, (), "/var/www", "www-data")),
        ("www-data:7", Identity(33, 7, (), "/var/www", "www-data")),
        ("5000", Identity(5000, 0, (), "/")),
        ("5000:5001", Identity(5000, 5001, (), "/")),
        ("5000:adm", Identity(5000, 4, (), "/")),
        (":adm", Identity(0, 4, (), "/root", "root")),
        ("1234", Identity(77, 78, (), "/odd", "1234")),
        ("homeless", Identity(90, 91, (), "/", "homeless")),
        ("2147483647", Identity(2147483647, 0, (), "/")),
    ],
)
def test_identities(spec: str, wanted: Identity) -> None:
    assert resolve(spec, PASSWD, GROUP) == wanted


@pytest.mark.parametrize(
    "spec",
    ["nobody", "bad", "broken line", "2147483648", "-1", "٣", "root:nogroup", "0:-1", "x:y:z"],
)
def test_who_is_not_there(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(spec, PASSWD, GROUP)
    assert caught.value.code == "exec.user"
    assert caught.value.hint


def test_an_image_without_the_files() -> None:
    assert resolve("", b"", b"") == Identity(0, 0, (), "/")
    assert resolve("7:8", b"", b"") == Identity(7, 8, (), "/")


@given(st.text(max_size=20), st.binary(max_size=200), st.binary(max_size=200))
def test_any_files_give_an_identity_or_a_usage_error(
    spec: str, passwd: bytes, group: bytes
) -> None:
    """The guest's files can be anything: ids stay in range and nothing else is raised."""
    try:
        found = resolve(spec, passwd, group)
    except UsageError:
        return
    assert all(0 <= number < 1 << 31 for number in (found.uid, found.gid, *found.groups))
    assert found.home
