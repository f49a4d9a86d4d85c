import io
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumble_common.errors import CrumbleError, HostError, RemoteError
from crumble_ocid.debian.accounts import Accounts, add_sysuser
from crumble_ocid.debian.alternatives import parse_script
from crumble_ocid.debian.control import parse_stanzas
from crumble_ocid.debian.deb import DebReader
from crumble_ocid.debian.packages import parse_package, parse_packages, parse_provides
from crumble_ocid.debian.resolve import parse_relations
from crumble_ocid.debian.sources import Source, find_sources, read_sources
from crumble_ocid.debian.version import satisfies, version_key
from framework.debian_archive import COMPRESSIONS, Deb, ar
from framework.registry_archives import Item, tar


def test_stanzas() -> None:
    text = "# note\nA: 1\nB-c:  two \n more\n\t.\n\n\nA: 2\n"
    assert list(parse_stanzas(text)) == [{"a": "1", "b-c": "two\nmore\n."}, {"a": "2"}]
    for bad in (" stray\n", "no colon\n", ": x\n", "é: x\n"):
        with pytest.raises(RemoteError):
            list(parse_stanzas(bad))


# Invariant: any text gives stanzas of texts, each line stripped, or RemoteError.
@given(st.text(alphabet="Aa:-# \n\té", max_size=60))
def test_any_control_data(text: str) -> None:
    try:
        stanzas = list(parse_stanzas(text))
    except RemoteError:
        return
    for key, value in (item for stanza in stanzas for item in stanza.items()):
        assert key == key.lower()
        assert all(line == line.strip() for line in value.split("\n"))


ORDER = ["0~~", "0~", "0", "0a", "0+", "1.0~beta1~svn1245", "1.0~beta1", "1.0", "1.0-1~deb13u1", "1.0-1",
         "1.0-1+b1", "1.0-2", "1.0-10", "1.0a", "1.0+dfsg-1", "1.0.0", "1.2", "1.10", "2.0", "1:0", "1:1",
         "10:0"]  # fmt: skip


def test_versions_are_ordered() -> None:
    shuffled = random.Random(3).sample(ORDER, len(ORDER))
    assert sorted(shuffled, key=version_key) == ORDER
    assert version_key("1.0") == version_key("0:1.0") == version_key("01.00")


@pytest.mark.skipif(not shutil.which("dpkg"), reason="dpkg is not installed")
def test_versions_compare_as_dpkg_does() -> None:
    rng = random.Random(11)
    for _ in range(60):
        one, two = ("".join(rng.choices("01.~a+-", k=rng.randint(1, 6))) for _ in range(2))
        one, two = f"0{one}", f"0{two}"
        for operator in ("lt", "eq"):
            done = subprocess.run(
                ["dpkg", "--compare-versions", one, operator, two],
                stderr=subprocess.PIPE,
                check=False,
            )
            if b"bad syntax" not in done.stderr:
                ours = satisfies(one, {"lt": "<<", "eq": "="}[operator], two)
                assert ours == (done.returncode == 0), (one, operator, two)


def test_relations() -> None:
    parsed = parse_relations("a (>= 1:2~) | b:any, c [linux-any] <!nocheck>,d(<<3)")
    assert [[str(item) for item in group] for group in parsed] == [
        ["a (>= 1:2~)", "b"],
        ["c"],
        ["d (<< 3)"],
    ]
    for bad in ("a (>= 1", "a b", "A", "a (~ 1)", "a | "):
        with pytest.raises(ValueError, match="no relation"):
            parse_relations(bad)
    assert parse_provides("aa (= 1), bb, cc:any (= 2), (x)") == [
        ("aa", "1"),
        ("bb", ""),
        ("cc", "2"),
    ]


GOOD = (
    b"Package: aa\nVersion: 1\nFilename: pool/a.deb\nSize: 3\nSHA256: "
    + b"0" * 64
    + b"\nDepends: b\n"
)


def test_package_indexes() -> None:
    package = parse_package(GOOD + b"Essential: yes\nInstalled-Size: 2\n")
    assert (package.name, package.size, package.essential, package.installed) == (
        "aa",
        3,
        True,
        2048,
    )
    whole = GOOD + b"\n" + GOOD.replace(b": aa", b": b2") + b"\n\n"
    for size in (1, 7, 1000):
        chunks = [whole[at : at + size] for at in range(0, len(whole), size)]
        assert [item.name for item in parse_packages(chunks)] == ["aa", "b2"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"a.deb", b"../../etc/passwd"),
        (b"pool/", b"/pool/"),
        (b"pool/", b"http://evil/\r\n"),
        (b"Size: 3", b"Size: -3"),
        (b"Size: 3", b"Size: " + b"9" * 30),
        (b"Package: aa", b"Package: ../a"),
        (b"Version: 1", b"Version: 1 2"),
        (b"00\n", b"0g\n"),
        (b"SHA256", b"MD5"),
    ],
)
def test_bad_package_entries_are_refused(old: bytes, new: bytes) -> None:
    with pytest.raises(RemoteError) as caught:
        parse_package(GOOD.replace(old, new))
    assert caught.value.code == "debian.data"


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_packages_are_read(tmp_path: Path, compression: str) -> None:
    deb = Deb("x", (Item("./a", b"data"),), scripts={"postinst": "true"}, compression=compression)
    (tmp_path / "x.deb").write_bytes(deb.data())
    with (tmp_path / "x.deb").open("rb") as file:
        reader = DebReader(file)
        assert reader.control.fields["package"] == "x"
        assert reader.control.members == {"postinst": b"true"}
        tar_reader = reader.data()
        files = {member.name: tar_reader.read(99) for member in tar_reader if member.kind == "0"}
        assert files == {b"./a": b"data"}


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is not installed")
def test_the_packages_of_these_tests_are_packages(tmp_path: Path) -> None:
    (tmp_path / "x.deb").write_bytes(Deb("x", (Item("./a", b"data"),)).data())
    done = subprocess.run(
        ["dpkg-deb", "-c", str(tmp_path / "x.deb")], capture_output=True, check=True
    )
    assert b"./a" in done.stdout


# Invariant: a damaged package is read as far as it goes or refused with RemoteError, nothing else.
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 900), st.binary(min_size=1, max_size=6), st.integers(0, 1000))
def test_damaged_packages(at: int, patch: bytes, cut: int) -> None:
    data = bytearray(Deb("x", (Item("./a", b"data"),)).data())
    at %= len(data)
    data[at : at + len(patch)] = patch
    try:
        reader = DebReader(io.BytesIO(bytes(data[: max(cut, 8)])))
        tar_reader = reader.data()
        for _ in tar_reader:
            pass
    except RemoteError:
        pass


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"!<arch>\n",
        ar(("debian-binary", b"3.0\n")),
        ar(("debian-binary", b"2.0\n"), ("data.tar", b"")),
        ar(("debian-binary", b"2.0\n"), ("control.tar", tar(Item("./other", b"x")))),
        ar(("debian-binary", b"2.0\n"), ("control.tar", tar(Item("./control", b"no fields")))),
        ar(
            ("debian-binary", b"2.0\n"),
            ("control.tar", tar(Item("./control", b"Package: x\n"))),
            ("evil", b""),
        ),
    ],
)
def test_what_is_no_package_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    with (tmp_path / "x").open("rb") as file, pytest.raises(CrumbleError):
        DebReader(file).data()


def test_alternatives_are_read_from_scripts() -> None:
    script = """#!/bin/sh
if [ "$1" = configure ]; then
    update-alternatives --install /usr/bin/awk awk /usr/bin/mawk 5 \\
        --slave /usr/share/man/man1/awk.1.gz awk.1.gz /usr/share/man/man1/mawk.1.gz || true
    update-alternatives --quiet --remove x /y
    update-alternatives --install "$link" "$name" /usr/bin/x 5
    # update-alternatives --install /usr/bin/no no /usr/bin/no 5
    update-alternatives --quiet --install /usr/bin/vi vi /usr/bin/vim 30; echo
    update-alternatives --install /usr/bin/q 'unclosed
    update-alternatives --install /usr/bin/r ../../etc /usr/bin/x 1
fi
"""
    awk, vi = parse_script(script)
    assert (awk.link, awk.name, awk.path, awk.priority) == (
        "/usr/bin/awk",
        "awk",
        "/usr/bin/mawk",
        5,
    )
    assert awk.slaves == {
        "awk.1.gz": ("/usr/share/man/man1/awk.1.gz", "/usr/share/man/man1/mawk.1.gz")
    }
    assert vi.priority == 30


def test_sysusers() -> None:
    accounts = Accounts(groups={"nogroup": 65534})
    for line in (
        "g input -",
        'u sshd 100:65534 "sshd user" /run/sshd',
        "u! daemon - - /",
        "m daemon input",
        "m daemon input",
        "u bad:name - x",
        "r - 500-900",
        "u 'unclosed",
    ):
        add_sysuser(accounts, line)
    assert accounts.groups == {"nogroup": 65534, "input": 999, "daemon": 998}
    assert (accounts.users["sshd"].uid, accounts.users["sshd"].gid) == (100, 65534)
    assert accounts.users["daemon"].uid == 998
    assert accounts.members == {"input": ["daemon"]}


# Sources


def etc(tmp_path: Path, **files: str) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    for name, text in files.items():
        path = name.replace("__", ".")
        (
            tmp_path / ("sources.list" if path == "sources.list" else f"sources.list.d/{path}")
        ).write_text(text)
    return tmp_path


def test_sources_of_both_kinds_are_read(tmp_path: Path) -> None:
    mirrors = tmp_path / "mirrors"
    mirrors.write_text("http://d.example/debian\n# http://no\n")
    found = list(
        read_sources(
            etc(
                tmp_path,
                sources__list="deb [arch=amd64 signed-by=/k.gpg] http://a.example/debian/ trixie main # x\n"
                "deb-src http://a.example/debian trixie main\ndeb cdrom:[x]/ trixie main\nnonsense\n",
                b__sources="Types: deb deb-src\nURIs: https://b.example/debian http://c.example/x\n"
                "Suites: bookworm bookworm-updates\nSigned-By:\n -----BEGIN PGP\n .\n x\n"
                "Check-Valid-Until: no\n\nTypes: deb\nEnabled: no\nURIs: http://off\nSuites: x\n"
                f"\nTypes: deb\nURIs: mirror+file:{mirrors}\nSuites: trixie\n",
                c__sources=" damaged\n",
                d__list__save="deb http://no.example x main\n",
            )
        )
    )
    assert found[0] == Source("http://a.example/debian", ("trixie",), ("/k.gpg",))
    assert [item.uri for item in found[1:]] == [
        "https://b.example/debian",
        "http://c.example/x",
        "http://d.example/debian",
    ]
    assert found[1].signed_by == ("-----BEGIN PGP\n\nx",) and not found[1].check_valid_until


def test_the_likeliest_mirror_comes_first(tmp_path: Path) -> None:
    found = find_sources(
        "trixie",
        etc(
            tmp_path,
            sources__list="deb http://other.example/repo nodistro main\n"
            "deb http://m.example/debian-security bookworm-security main\n"
            "deb http://m.example/debian bookworm main\ndeb http://m.example/debian bookworm-updates main\n"
            "deb http://t.example/debian trixie main\n",
        ),
    )
    assert [item.uri for item in found] == [
        "http://t.example/debian",
        "http://m.example/debian",
        "http://other.example/repo",
        "http://m.example/debian-security",
    ]


def test_the_mirror_of_the_environment_is_the_only_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRUMBLE_DEBIAN_MIRROR", "https://m.example/debian/")
    assert find_sources("sid", tmp_path) == [Source("https://m.example/debian", ("sid",))]
    monkeypatch.setenv("CRUMBLE_DEBIAN_MIRROR", "ftp://m")
    with pytest.raises(HostError, match="no http"):
        find_sources("sid", tmp_path)


def test_no_mirror_is_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        find_sources("trixie", tmp_path / "none")
    assert caught.value.code == "debian.no_mirror" and "CRUMBLE_DEBIAN_MIRROR" in caught.value.hint
