"""What a process in a container gets from its image: arguments, environment, directory, user.

The rules are docker's: ENTRYPOINT and CMD are joined; given arguments replace CMD; a given entrypoint
replaces ENTRYPOINT and drops CMD (OCI image-spec, config.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from crumble_common.errors import UsageError
from crumble_common.messages.image import ImageConfig
from crumble_common.messages.vm import ProcessStart

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def argv(
    image_entrypoint: Sequence[str],
    image_cmd: Sequence[str],
    given: Sequence[str] = (),
    entrypoint: Sequence[str] | None = None,
) -> list[str]:
    """The arguments to run; UsageError when there are none."""
    if entrypoint is not None:
        words = [*entrypoint, *given]
    else:
        words = [*image_entrypoint, *(given or image_cmd)]
    if words and not words[0]:
        raise UsageError(
            "The command is an empty string.",
            code="exec.not_found",
            hint="Give a command after the image's name.",
        )
    if not words:
        raise UsageError(
            "The image names no command to run.",
            code="run.no_command",
            hint="Give one after the image's name.",
        )
    return words


def with_defaults(start: ProcessStart, config: ImageConfig, hostname: str) -> ProcessStart:
    """`start` with what it leaves open taken from the image."""
    env = {"PATH": PATH, "HOSTNAME": hostname}
    if start.tty:
        env["TERM"] = "xterm"
    for item in config.env:
        name, _, value = item.partition("=")
        env[name] = value
    env.update(start.env)
    where = {"cwd": start.cwd or config.working_dir or "/", "user": start.user or config.user}
    return ProcessStart(**{**vars(start), "env": env, **where})
