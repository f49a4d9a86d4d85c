"""Directories that are locked and made durable."""

import os
from pathlib import Path

import pytest

from crumble_common.directories import lock, sync


def test_a_lock_is_one_owners_at_a_time(tmp_path: Path) -> None:
    held = lock(tmp_path)
    assert held is not None
    assert lock(tmp_path) is None
    os.close(held)
    again = lock(tmp_path)
    assert again is not None
    os.close(again)


def test_a_directory_on_another_disk_is_made_durable_and_not_locked(tmp_path: Path) -> None:
    """Users put links in a store's place; who locks says where it is."""
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to("there")
    sync(link)
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        lock(link)
