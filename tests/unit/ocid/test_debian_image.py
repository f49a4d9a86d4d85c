import json
import lzma
import stat
from pathlib import Path
from typing import Any

import pytest

from crumble_common.errors import CrumbleError, RemoteError, UsageError
from crumble_common.layer_index import Entry, LayerIndex
from crumble_common.messages.image import Image, ImageExport, ImageGet
from crumble_ocid.images import inspect_image
from crumble_ocid.library import Library
from crumble_ocid.store import Store
from framework.debian_archive import Deb, DebianArchive, base_system
from framework.registry import Fault
from framework.registry_archives import Item, folder, hardlink, sha256, symlink


class Tree:
    """The files of an image of one layer."""

    def __init__(self, image: Image) -> None:
        (layer,) = image.layers
        self.index = LayerIndex.open(layer.index)
        self.contents = Path(layer.contents).read_bytes()

    def entry(self, path: str) -> Entry:
        row = 0
        for part in path.split("/"):
            found = self.index.find(row, part.encode())
            assert found is not None, f"there is no {path}"
            row = found
        return self.index.entry(row)

    def read(self, path: str) -> str:
        entry = self.entry(path)
        return self.contents[entry.offset : entry.offset + entry.size].decode()

    def has(self, path: str) -> bool:
        try:
            return bool(self.entry(path))
        except AssertionError:
            return False


def get(library: Library, reference: str = "deb:trixie", pull: Any = "always") -> Image:
    return library.get(ImageGet(reference, "", pull))


def failure(library: Library, reference: str = "deb:trixie") -> CrumbleError:
    with pytest.raises(CrumbleError) as caught:
        get(library, reference)
    assert library.images().images == []
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_system_is_made(library: Library, archive: DebianArchive) -> None:
    mawk = Deb(
        "mawk",
        (Item("./usr/bin/mawk", b"x", mode=0o755),),
        scripts={"postinst": "update-alternatives --install /usr/bin/awk awk /usr/bin/mawk 5\n"},
        fields={"Priority": "required"},
    )
    pam = Deb(
        "libpam-runtime",
        (Item("./usr/share/pam/common-auth", b""),),
        fields={"Priority": "required"},
    )
    archive.publish(*base_system(mawk, pam))
    image = get(library)
    assert image.reference == "deb:trixie" and image.platform == "linux/riscv64"
    assert image.config.cmd == ["bash"] and image.config.env[0].startswith("PATH=/usr/local/sbin:")
    tree = Tree(image)
    assert tree.entry("bin").target == b"usr/bin" and tree.entry("sbin").target == b"usr/sbin"
    assert tree.entry("usr/bin/sh").target == b"dash" and tree.has("usr/bin/dash")
    assert tree.entry("tmp").mode == stat.S_IFDIR | 0o1777
    assert tree.entry("root").mode == stat.S_IFDIR | 0o700
    assert tree.read("etc/passwd") == ("root:x:0:0:root:/root:/bin/bash\n")
    assert tree.entry("etc/shadow").mode & 0o777 == 0o640
    assert tree.read("etc/group") == "root:x:0:\nmail:x:8:\n"
    assert tree.read("etc/profile") == "umask 022\n"
    assert tree.entry("usr/bin/awk").target == b"/etc/alternatives/awk"
    assert tree.entry("etc/alternatives/awk").target == b"/usr/bin/mawk"
    assert "pam_unix.so" in tree.read("etc/pam.d/common-auth")
    assert archive.uri in tree.read("etc/apt/sources.list.d/debian.sources")
    assert tree.entry("var/run").target == b"/run"
    times = {tree.index.entry(row).mtime_ns for row in range(tree.index.count)}
    assert len(times) <= 2, "all times come from the packages"
    assert not any(tree.index.entry(row).implicit for row in range(tree.index.count))


def test_dpkg_knows_what_is_installed(library: Library, archive: DebianArchive) -> None:
    tool = Deb(
        "tool",
        (
            folder("./etc"),
            Item("./etc/tool.conf", b"x=1\n"),
            hardlink("./etc/again", "./etc/tool.conf"),
        ),
        scripts={
            "conffiles": "/etc/tool.conf\n/etc/gone\n",
            "triggers": "interest-noawait /usr/lib\ninterest named\n",
        },
    )
    archive.publish(*base_system(tool))
    tree = Tree(get(library, "deb:trixie/tool"))
    status = tree.read("var/lib/dpkg/status")
    assert "Package: tool\nStatus: install ok installed\nVersion: 1.0\n" in status
    assert (
        "Conffiles:\n /etc/tool.conf dd17b6ebb6c5dd1dec2cb35c74d22b07\n" in status
        or "Conffiles:" in status
    )
    assert tree.read("var/lib/dpkg/info/tool.list") == "/.\n/etc\n/etc/tool.conf\n/etc/again\n"
    assert tree.has("var/lib/dpkg/info/libc6:riscv64.list")
    assert tree.read("var/lib/dpkg/triggers/File") == "/usr/lib tool/noawait\n"
    assert tree.read("var/lib/dpkg/triggers/named") == "tool\n"
    assert tree.entry("etc/again").nlink == 2


def test_the_same_packages_give_the_same_bytes(
    library: Library, archive: DebianArchive, tmp_path: Path
) -> None:
    archive.publish(*base_system())
    one = get(library)
    two = get(Library(Store(tmp_path / "second")))
    assert (one.id, one.digest) == (two.digest and one.id, two.digest)
    for path in ("contents", "index"):
        first, second = (Path(getattr(item.layers[0], path)).read_bytes() for item in (one, two))
        assert first == second


def test_an_image_is_kept_until_the_archive_changes(
    library: Library, archive: DebianArchive
) -> None:
    archive.publish(*base_system())
    first = get(library)
    asked = len(archive.registry.requests)
    assert get(library, pull="missing") == first == get(library, pull="never")
    assert len(archive.registry.requests) == asked
    assert get(library) == first
    assert archive.registry.count("pool/") == 5, "packages are not fetched twice"
    newer = Deb("apt", (Item("./usr/bin/apt", b"new", mode=0o755),), "2.0")
    archive.publish(*[item for item in base_system() if item.name != "apt"], newer)
    assert get(library).digest != first.digest
    assert archive.registry.count("pool/") == 6
    library.remove("deb:trixie")
    assert not [path for path in (library.store.root / "blobs").rglob("*") if path.is_file()]


def test_dependencies_are_resolved(library: Library, archive: DebianArchive) -> None:
    archive.publish(
        *base_system(
            Deb("app", fields={"Depends": "lib (>= 2), mail-agent, one | two, libc6:any"}),
            Deb("lib", version="1.9"),
            Deb("lib", version="1:0.1"),
            Deb("exim", fields={"Provides": "mail-agent"}),
            Deb("zmail", fields={"Provides": "mail-agent", "Priority": "standard"}),
            Deb("two", fields={"Pre-Depends": "virtual (>= 3)"}),
            Deb("wrong", fields={"Provides": "virtual"}),
            Deb("right", fields={"Provides": "virtual (= 3.1)"}),
            Deb("extra", fields={"Recommends": "app"}),
        )
    )
    status = Tree(get(library, "deb:trixie/app")).read("var/lib/dpkg/status")
    names = {line[9:] for line in status.splitlines() if line.startswith("Package: ")}
    base = {"base-files", "base-passwd", "dash", "libc6", "apt"}
    assert names == base | {"app", "lib", "zmail", "two", "right"}
    assert "Version: 1:0.1" in status


@pytest.mark.parametrize(
    ("depends", "says"),
    [
        ("nowhere", "app needs nowhere, which Debian trixie for riscv64 does not have."),
        ("libc6 (>> 9)", "app needs libc6 (>> 9)"),
        ("a | b (= 1)", "app needs a or b (= 1)"),
        ("enemy", "cannot be in one image: enemy conflicts with dash"),
        ("not readable (", "cannot be read"),
    ],
)
def test_what_cannot_be_resolved_is_said(
    library: Library, archive: DebianArchive, depends: str, says: str
) -> None:
    app = Deb("app", fields={"Depends": depends})
    archive.publish(*base_system(app, Deb("enemy", fields={"Conflicts": "dash"})))
    error = failure(library, "deb:trixie/app")
    assert isinstance(error, UsageError) and says in error.message


def test_an_unknown_package_suggests_others(library: Library, archive: DebianArchive) -> None:
    archive.publish(*base_system(Deb("python3"), Deb("python3-doc")))
    error = failure(library, "deb:trixie/pyhton3")
    assert "no package 'pyhton3'" in error.message
    assert error.hint == "Name other packages."
    assert failure(library, "deb:trixie/python4").hint == "Similar names: python3, python3-doc."


def test_the_release_must_be_signed_by_a_trusted_key(
    library: Library, archive: DebianArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.publish(*base_system())
    path = "/debian/dists/trixie/InRelease"
    good = archive.registry.blobs[path].data
    for bad in (good.replace(b"Origin: Test", b"Origin: Evil"), b"Origin: Test\n", b"", good[:300]):
        archive.registry.put(path, bad)
        assert failure(library).code == "debian.signature"
    archive.registry.put(path, b"Architectures: vax\n\n" + good + b"\nArchitectures: vax\n")
    get(library)  # what stands around the signed text is not read
    library.remove("deb:trixie")
    archive.registry.put(path, good)
    for content in (None, b"nonsense"):
        keyring = tmp_path / "other.gpg"
        if content:
            keyring.write_bytes(content)
        monkeypatch.setenv("CRUMBLE_DEBIAN_KEYRING", str(keyring))
        error = failure(library)
        assert error.code == "debian.no_keyring" and "CRUMBLE_DEBIAN_KEYRING" in error.hint


@pytest.mark.parametrize(
    ("release", "code"),
    [
        ("Suite: stable\nCodename: bookworm\n", "debian.data"),
        ("Codename: trixie\nDate: Thu, 01 Jan 2099 00:00:00 UTC\n", "debian.clock"),
        ("Codename: trixie\nDate: tomorrow\n", "debian.data"),
        ("Codename: trixie\nValid-Until: Thu, 01 Jan 2015 00:00:00 UTC\n", "debian.data"),
        ("Codename: trixie\nArchitectures: amd64\n", "debian.architecture"),
        ("Codename: trixie\nArchitectures: riscv64\n", "debian.data"),
        ("stray", "debian.data"),
    ],
)
def test_bad_releases_are_refused(
    library: Library, archive: DebianArchive, release: str, code: str
) -> None:
    archive.sign(release)
    assert failure(library).code == code


def test_a_damaged_index_or_package_is_refused(library: Library, archive: DebianArchive) -> None:
    archive.publish(*base_system())
    for part, fault in (
        ("Packages", "missing"),
        ("by-hash", "corrupt"),
        ("pool/", "corrupt"),
        ("pool/main/apt", "missing"),
    ):
        archive.registry.faults = {part: Fault(fault)}
        if part == "Packages":
            archive.registry.faults["by-hash"] = Fault("missing")
        error = failure(library)
        assert isinstance(error, RemoteError) and error.code in ("remote.digest", "remote.status")
    archive.registry.faults = {}
    archive.publish_index(b"Package: x\n\n")
    assert failure(library).code == "debian.data"


def test_a_mirror_between_two_releases(library: Library, archive: DebianArchive) -> None:
    """Its index of trixie is another than the release names; the folder of the other name is whole."""
    archive.publish(*base_system())
    torn = f"/debian/dists/{archive.codename}/main/binary-riscv64"
    index = next(blob.data for path, blob in archive.registry.blobs.items() if torn in path)
    archive.publish_index(lzma.decompress(index), archive.suite)
    for path in [path for path in archive.registry.blobs if torn in path]:
        del archive.registry.blobs[path]
    archive.registry.put(f"{torn}/Packages.xz", index + b"older")
    image = get(library)
    assert image.reference == "deb:trixie"
    assert "Suites: trixie\n" in Tree(image).read("etc/apt/sources.list.d/debian.sources")


def test_a_mirror_with_no_index_of_its_release(library: Library, archive: DebianArchive) -> None:
    archive.publish(*base_system())
    archive.registry.faults = {"by-hash": Fault("missing")}
    archive.registry.put(
        f"/debian/dists/{archive.codename}/main/binary-riscv64/Packages.xz", b"older"
    )
    error = failure(library)
    assert error.code == "remote.length" and "is not the one its release" in error.message
    assert "CRUMBLE_DEBIAN_MIRROR" in error.hint


def test_a_package_with_evil_paths_is_refused(library: Library, archive: DebianArchive) -> None:
    evil = Deb("evil", (Item("./../../etc/passwd", b"x"),))
    archive.publish(*base_system(evil))
    assert "leads out" in failure(library, "deb:trixie/evil").message
    loop = Deb("loop", (symlink("./a", "b"), symlink("./b", "a"), Item("./a/x", b"x")))
    archive.publish(*base_system(loop))
    assert "through a symlink" in failure(library, "deb:trixie/loop").message


def test_no_such_suite(library: Library, archive: DebianArchive) -> None:
    error = failure(library)
    assert isinstance(error, UsageError) and error.code == "debian.no_suite"


def test_the_layer_can_be_exported(
    library: Library, archive: DebianArchive, tmp_path: Path
) -> None:
    archive.publish(*base_system())
    image = get(library)
    assert not library.store.has_blob(sha256(b"")), "the archive itself is not kept"
    library.export(ImageExport("deb:trixie", str(tmp_path / "x"), "oci"))
    other = Library(Store(tmp_path / "other"))
    again = other.get(ImageGet(f"oci:{tmp_path / 'x'}:trixie"))
    assert (again.digest, again.id) == (image.digest, image.id)
    annotations = json.loads(inspect_image(library.store, image.digest).manifest)["annotations"]
    assert "crumble.deb.key" in annotations
