"""Kernels in the store: whole ones are found, and finding one imports nothing of the archive's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from crumble_common.errors import UsageError
from crumble_ocid.kernels import WANTED_FILE, kernels_home, stored_kernel, wanted_text
from crumble_ocid.store import Store

RELEASE = "6.12.1-riscv64"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = kernels_home(Store(tmp_path), "riscv64", "")
    (made / RELEASE).mkdir(parents=True)
    said = {
        "architecture": "riscv64", "version": RELEASE, "digest": "", "image": "image",
        "modules": ["a.ko"],
    }  # fmt: skip
    (made / RELEASE / "kernel.json").write_text(json.dumps(said))
    for name in ("image", "a.ko"):
        (made / RELEASE / name).touch()
    (made / RELEASE / WANTED_FILE).write_text(wanted_text("riscv64"))
    (made / "default").write_text(RELEASE)
    return made


@pytest.mark.parametrize("version", ["", RELEASE])
def test_a_whole_kernel_is_found_with_its_paths(home: Path, version: str) -> None:
    kernel = stored_kernel(home, version)
    assert kernel is not None
    assert kernel.version == RELEASE
    assert kernel.image == str(home / RELEASE / "image")
    assert kernel.modules == [str(home / RELEASE / "a.ko")]


@pytest.mark.parametrize("lost", ["image", "a.ko", "kernel.json", WANTED_FILE])
def test_a_kernel_that_lacks_a_file_is_none(home: Path, lost: str) -> None:
    (home / RELEASE / lost).unlink()
    assert stored_kernel(home, "") is None


def test_a_kernel_that_was_searched_for_other_modules_is_none(home: Path) -> None:
    (home / RELEASE / WANTED_FILE).write_text("virtiofs")
    assert stored_kernel(home, "") is None


def test_a_default_that_leaves_the_directory_is_none(home: Path) -> None:
    (home / "default").write_text("../riscv64/" + RELEASE)
    assert stored_kernel(home, "") is None


def test_other_names_of_an_architecture_are_known(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert kernels_home(store, "aarch64", "") == kernels_home(store, "arm64", "")
    for architecture, version in (("vax", ""), ("arm64", "../6.1")):
        with pytest.raises(UsageError):
            kernels_home(store, architecture, version)


def test_an_image_service_that_only_looks_imports_no_network_and_no_archive_code() -> None:
    code = (
        "import sys, crumble_ocid.service\n"
        "heavy = {'httpx', 'ssl', 'pysequoia', 'zstandard', 'sqlite3', 'rich', 'crumble_ocid.debian'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    said = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert said.strip() == "[]"
