"""`crumble up`."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys

from crumble.cli.held import Held
from crumble.cli.main import say
from crumble.cli.parser import Parser
from crumble.supervisor.ground import Ground
from crumble_common import log, paths
from crumble_common.errors import CrumbleError, InternalError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crumble.supervisor.supervisor import Supervisor

# What VMs and services may take to end after a signal, s.
_GRACE = 10.0


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit status."""
    parser = Parser("up", "Runs the supervisor, which VMs need that outlive the command.")
    parser.add_argument("-d", "--detach", action="store_true", help="go to the background")
    options = parser.parse_args(arguments)
    if options.detach:
        return _detach()
    with Held():
        supervisor = _daemon_supervisor()
        _end_by_signal(supervisor)
    say(f"The supervisor is running in {supervisor.instance.path}. ^C or `crumble down` ends it.")
    _serve(supervisor)
    return 0


def _daemon_supervisor() -> Supervisor:
    ground = Ground(daemon=True, fork=True)
    try:
        from crumble.supervisor.supervisor import Supervisor  # while the forkserver imports, too

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a VM takes five
        supervisor = Supervisor(ground=ground)
        supervisor.bind()
    except BaseException:
        ground.close()
        raise
    return supervisor


def _end_by_signal(supervisor: Supervisor) -> None:
    def stop(_number: int, _frame: object) -> None:
        # A second signal ends everything by force.
        supervisor.stop(0 if signals.count else _GRACE)
        signals.count += 1

    signals = _Count()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, stop)


def _serve(supervisor: Supervisor) -> None:
    log.setup("supervisor")
    supervisor.run()


class _Count:
    count = 0


def _detach() -> int:
    """Forks before anything is started; the child says over a pipe how it went."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        with os.fdopen(reader) as pipe:
            said = pipe.read()
        if said != "ready":
            raise InternalError(said or "The supervisor ended at once.", code="up.failed")
        return 0
    os.close(reader)
    os.setsid()
    status = 1
    try:
        status = _daemon(writer)
    except BaseException as error:  # noqa: BLE001  told to who waits
        text = str(error) if isinstance(error, CrumbleError) else repr(error)
        with contextlib.suppress(OSError):
            os.write(writer, text.encode())
    finally:
        os._exit(status)


def _daemon(writer: int) -> int:
    with Held():
        supervisor = _daemon_supervisor()
        _end_by_signal(supervisor)
    path = supervisor.instance.logs / "supervisor.log"
    output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.write(writer, b"ready")
    os.close(writer)
    paths.leave()
    sys.stdout.flush()
    _serve(supervisor)
    return 0
