from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crumble_common.errors import UsageError
from crumble_ocid.platform import choose, make_platform, parse_platform
from crumble_ocid.reference import RegistryReference, parse_reference

HEX = "0" * 64


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("me/app", "docker.io/me/app:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/me/app", "docker.io/me/app:latest"),
        ("quay.io/a/b/c:v1", "quay.io/a/b/c:v1"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("Host/x", "Host/x:latest"),
        ("[::1]:5000/x:y", "[::1]:5000/x:y"),
        ("127.0.0.1:5000/a_b/c--d.e__f", "127.0.0.1:5000/a_b/c--d.e__f:latest"),
        (f"alpine@sha256:{HEX}", f"docker.io/library/alpine@sha256:{HEX}"),
        (f"r.io/a:t@sha256:{HEX}", f"r.io/a:t@sha256:{HEX}"),
        (f"r.io/a@sha512:{HEX}{HEX}", f"r.io/a@sha512:{HEX}{HEX}"),
        ("deb:trixie", "deb:trixie"),
        ("deb:trixie/vim,curl,vim", "deb:trixie/curl,vim"),
        ("deb:bookworm/g++,libstdc++-12-dev", "deb:bookworm/g++,libstdc++-12-dev"),
        ("oci:/a/b", "oci:/a/b"),
        ("oci:/a/b:tag", "oci:/a/b:tag"),
        ("oci:/a:b/c", "oci:/a:b/c"),
        ("docker-archive:/x.tar", "docker-archive:/x.tar"),
        ("docker-archive:/x.tar:app", "docker-archive:/x.tar:docker.io/library/app:latest"),
        ("docker-archive:/x.tar:@1", "docker-archive:/x.tar:@1"),
    ],
)
def test_references_and_their_full_form(text: str, full: str) -> None:
    reference = parse_reference(text)
    assert str(reference) == full
    assert parse_reference(full) == reference


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not the name"),
        ("Alpine", "capital letters"),
        ("a/B", "capital letters"),
        ("alpine:", "names no tag"),
        ("alpine:-x", "tag that is none"),
        ("alpine:" + "x" * 129, "tag that is none"),
        ("alpine@sha256:0", "digest"),
        ("alpine@md5:0", "digest"),
        ("a//b", "not the name"),
        ("/a", "not the name"),
        ("a/", "not the name"),
        ("a b", "not the name"),
        ("-a.io/x", "registry's name"),
        ("r.io:99999/x", "registry's name"),
        ("http://r.io/x", "registry's name"),
        ("../../etc", "registry's name"),
        ("a" * 300, "not the name"),
        ("x" * 9000, "too long"),
        ("deb:", "Debian suite"),
        ("deb:Trixie", "Debian suite"),
        ("deb:../x", "Debian suite"),
        ("deb:trixie/", "cannot be a package"),
        ("deb:trixie/a,,b", "cannot be a package"),
        ("deb:trixie/A", "cannot be a package"),
        ("deb:trixie/" + ",".join(f"p{n}" for n in range(300)), "more than 256"),
        ("oci:", "no file or directory"),
        ("oci:a", "relative path"),
        ("docker-archive:a.tar", "relative path"),
        ("docker-archive:/x.tar:A", "capital"),
    ],
)
def test_bad_references(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_reference(text)
    assert caught.value.code == "image.reference"
    assert says in caught.value.message


def test_relative_paths_start_where_asked() -> None:
    assert str(parse_reference("oci:a/b:t", Path("/base"))) == "oci:/base/a/b:t"
    assert str(parse_reference("oci:/a", Path("/base"))) == "oci:/a"


# Invariant: a text either is refused with "image.reference", or has a full form that means the same
# and holds nothing that could lead out of a registry's URL.
@given(st.text(max_size=40) | st.from_regex(r"[a-zA-Z0-9./:@_,-]{0,40}", fullmatch=True))
@example("a.b/c:d")
@example("[:::]/a")
def test_any_text(text: str) -> None:
    try:
        reference = parse_reference(text)
    except UsageError as error:
        assert error.code == "image.reference"
        return
    assert parse_reference(str(reference)) == reference
    if isinstance(reference, RegistryReference):
        assert ".." not in reference.path and not set(reference.path) & set("?#%\\ \n")
        assert not set(reference.domain) & set("/?#@\\ \n")


def test_platforms() -> None:
    assert str(parse_platform("")) == "linux/riscv64"
    assert str(parse_platform("linux/aarch64")) == str(parse_platform("linux/arm64/v8"))
    for bad in ("linux", "linux/", "a/b/c/d", "linux/a b"):
        with pytest.raises(UsageError):
            parse_platform(bad)


def test_the_best_variant_is_chosen() -> None:
    arm = [make_platform("linux", "arm", variant) for variant in ("v5", "v6", "v7", "v8")]
    assert choose(parse_platform("linux/arm"), arm) == 2
    assert choose(parse_platform("linux/arm/v6"), arm) == 1
    assert choose(parse_platform("linux/arm/v6"), arm[2:]) is None
    assert choose(parse_platform("linux/riscv64"), arm) is None
    amd = [make_platform("linux", "amd64", variant) for variant in ("", "v3")]
    assert choose(parse_platform("linux/amd64"), amd) == 0
    assert choose(parse_platform("linux/amd64/v4"), amd) == 1
    assert choose(parse_platform("linux/amd64"), amd[1:]) is None
