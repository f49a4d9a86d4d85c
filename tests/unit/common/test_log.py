"""Log lines: one line each, whatever a guest put into them; floods are cut."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crumble_common import log


def written(tmp_path: Path, level: str = "info") -> tuple[int, Path]:
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    log.setup("fsd.a", fd=fd, level=level)
    return fd, path


def test_a_line_has_time_level_name_event_and_fields() -> None:
    text = log.line("info", "fsd.a", "mounted", {"layers": 3, "why": 'a "b"', "n": ""}, 0.25)
    assert text == ('1970-01-01T00:00:00.250Z info fsd.a mounted layers=3 why="a \\"b\\"" n=""')


@given(st.text())
def test_no_value_can_forge_a_second_line_or_a_terminal_escape(value: str) -> None:
    assert log.line("info", "x", "event", {"v": value}, 0).isprintable()


def test_levels_below_the_chosen_one_are_not_written(tmp_path: Path) -> None:
    fd, path = written(tmp_path, "warning")
    log.info("quiet")
    log.warning("loud")
    os.close(fd)
    assert "quiet" not in path.read_text()
    assert "loud" in path.read_text()
    log.setup()


def test_a_flood_is_cut_and_a_closed_log_is_no_error(tmp_path: Path) -> None:
    fd, path = written(tmp_path)
    for _ in range(5000):
        log.info("again")
    os.close(fd)
    log.error("nobody hears this")
    assert 1000 <= path.read_text().count("again") < 2000
    log.setup()


@pytest.mark.parametrize("name", ["", "nonsense"])
def test_an_unknown_level_is_info(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CRUMBLE_LOG", name)
    fd, path = written(tmp_path, "")
    log.debug("quiet")
    log.info("loud")
    os.close(fd)
    assert "quiet" not in path.read_text()
    assert "loud" in path.read_text()
    log.setup()
