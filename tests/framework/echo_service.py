"""The smallest real service: says back what it is asked; misbehaves on request.

Run with `python -m framework.echo_service`, under a supervisor (or a test that plays one).
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from dataclasses import dataclass
from typing import Any

from crumble_common.errors import GuestError, UsageError
from crumble_common.messages.vm import ConsoleOutput
from crumble_common.service import Context, Reply, Service, service_main
from crumble_common.wire import message


@message("test.echo.config")
@dataclass(frozen=True)
class EchoConfig:
    """fail: the stage ("open", "start") in which it fails. fd: name of an fd to write "hi" to."""

    fail: str = ""
    fd: str = ""


@message("test.echo")
@dataclass(frozen=True)
class Echo:
    """Reply: the same. Texts with a meaning: see `EchoService.handle`."""

    text: str


class EchoService(Service[EchoConfig]):
    name = "echo"
    config_type = EchoConfig

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.config = EchoConfig()

    def open(self, config: EchoConfig) -> None:
        self.config = config
        if config.fd:
            os.write(self.context.fd(config.fd), b"hi")
        self._fail_at("open")

    def start(self) -> None:
        self._fail_at("start")

    def _fail_at(self, stage: str) -> None:
        if self.config.fail == stage:
            raise UsageError(f"Told to fail in {stage}.", code="test.told", hint="Do not.")
        if self.config.fail == f"bug in {stage}":
            raise KeyError(stage)

    def handle(self, message: Any, reply: Reply) -> None:
        if not isinstance(message, Echo):
            super().handle(message, reply)
        elif message.text == "usage error":
            raise UsageError("Not that.", code="test.that")
        elif message.text == "bug":
            raise KeyError("bug")
        elif message.text == "event first":
            self.context.send(ConsoleOutput("vm", b"event"))
            reply.ok(message)
        elif message.text == "from a thread":
            threading.Thread(target=reply.ok, args=(message,)).start()
        elif message.text == "thread reads /etc/passwd":
            threading.Thread(target=self._try_to_read, args=(reply,)).start()
        elif message.text == "fail":
            reply.ok(message)
            self.context.fail(GuestError("The guest panicked.", code="guest.panic"))
        elif message.text.startswith("take "):
            with os.fdopen(self.context.take_fd(message.text[5:]), "rb") as file:
                reply.ok(Echo(file.read().decode()))
        elif message.text == "finish":
            self.context.finish()
        else:
            reply.ok(message)

    def _try_to_read(self, reply: Reply) -> None:
        try:
            with open("/etc/passwd") as file:
                reply.ok(Echo(file.read()))
        except OSError as error:
            reply.ok(Echo(errno.errorcode[error.errno or 0]))


def main() -> int:
    if len(sys.argv) > 1:
        return service_main(EchoService, EchoConfig(fail=sys.argv[1]))
    return service_main(EchoService)


if __name__ == "__main__":
    sys.exit(main())
