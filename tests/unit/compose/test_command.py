"""Docker's rules for what runs in a container."""

import pytest

from crumble.supervisor import command
from crumble_common.errors import UsageError
from crumble_common.messages.image import ImageConfig
from crumble_common.messages.vm import ProcessStart


@pytest.mark.parametrize(
    ("image", "given", "entrypoint", "words"),
    [
        ((["e"], ["c"]), [], None, ["e", "c"]),
        ((["e"], ["c"]), ["g"], None, ["e", "g"]),
        (([], ["c", "d"]), [], None, ["c", "d"]),
        (([], ["c"]), ["g", "h"], None, ["g", "h"]),
        ((["e"], ["c"]), [], ["x"], ["x"]),
        ((["e"], ["c"]), ["g"], ["x"], ["x", "g"]),
        ((["e"], ["c"]), ["g"], [], ["g"]),
    ],
)
def test_argv(
    image: tuple[list[str], list[str]],
    given: list[str],
    entrypoint: list[str] | None,
    words: list[str],
) -> None:
    assert command.argv(*image, given, entrypoint) == words


@pytest.mark.parametrize("entrypoint", [None, []])
def test_no_command_at_all_is_refused(entrypoint: list[str] | None) -> None:
    with pytest.raises(UsageError, match="no command"):
        command.argv([], [], [], entrypoint)


@pytest.mark.parametrize(("given", "entrypoint"), [([""], None), ([], [""]), (["", "x"], None)])
def test_an_empty_command_is_not_found(given: list[str], entrypoint: list[str] | None) -> None:
    with pytest.raises(UsageError) as caught:
        command.argv([], ["sh"], given, entrypoint)
    assert caught.value.code == "exec.not_found"


def test_environment_directory_and_user() -> None:
    config = ImageConfig(env=["A=image", "B=image=2", "C"], working_dir="/work", user="web")
    start = ProcessStart(["x"], env={"A": "given"}, tty=True)
    full = command.with_defaults(start, config, "box")
    assert full.env == {
        "PATH": command.PATH, "HOSTNAME": "box", "TERM": "xterm",
        "A": "given", "B": "image=2", "C": "",
    }  # fmt: skip
    assert (full.cwd, full.user) == ("/work", "web")
    full = command.with_defaults(ProcessStart(["x"], cwd="/a", user="0"), ImageConfig(), "box")
    assert (full.cwd, full.user) == ("/a", "0")
    assert "TERM" not in full.env
    assert command.with_defaults(ProcessStart(["x"]), ImageConfig(), "box").cwd == "/"
