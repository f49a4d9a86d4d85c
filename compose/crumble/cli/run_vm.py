"""What `crumble run` does once it knows what is wanted."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import TYPE_CHECKING, Any

from crumble.cli import run_options, terminal
from crumble.cli.attach import Attached, CommandLateError, status_of
from crumble.cli.link import Link, no_daemon
from crumble.cli.phases import Phases
from crumble.cli.progress import Bars
from crumble.cli.signals import Interrupted, Signals
from crumble.sdk.options import image_reference, memory_size, policy, shares
from crumble.supervisor.command import argv
from crumble.supervisor.names import invent
from crumble_common import paths
from crumble_common.errors import CrumbleError, UsageError
from crumble_common.messages import client as messages
from crumble_common.messages.net import Forward
from crumble_common.messages.vm import ConsoleOutput, Digest, ProcessStart, VmEvent

if TYPE_CHECKING:
    from crumble.supervisor.ground import Ground

# Writable shares: what the guest may take to write its pages back before it ends, s.
_SYNC_GRACE = 10.0


def run(options: argparse.Namespace, ground: Ground | None) -> int:
    """Runs the verb, in a supervisor of our own on `ground` or in the daemon; returns the status."""
    start = _process(options)
    request = _vm(options, start)
    phases = Phases()
    with Link(ground=ground) as link:
        phases.mark("supervisor")
        if options.detach:
            return _detached(link, request)
        return status_of(_Run(link, request, start, options, phases).live)


def _process(options: argparse.Namespace) -> ProcessStart:
    rows, cols = terminal.size(1)
    return ProcessStart(
        argv=options.command,
        env=run_options.environment(options),
        cwd=options.workdir,
        user=options.user,
        tty=options.tty,
        rows=rows,
        cols=cols,
        stdin=options.interactive,
        systemd=options.systemd,
    )


def _vm(options: argparse.Namespace, start: ProcessStart) -> messages.VmCreate:
    kernel = options.kernel and paths.absolute(options.kernel)
    entrypoint = None if options.entrypoint is None else _words(options.entrypoint)
    return messages.VmCreate(
        image=image_reference(options.image),
        name=options.name or invent(),
        cpus=options.cpus,
        memory=memory_size(options.memory),
        kernel=kernel,
        cmdline=options.cmdline,
        hypervisor=options.hv,
        cpu_model=options.cpu_model,
        transport=options.transport,
        watchdog=options.watchdog,
        irqchip=options.irqchip,
        pull=options.pull,
        dmesg=options.dmesg,
        shares=shares(options.volume),
        hostname=options.hostname,
        detach=options.detach,
        main=start if options.detach else None,
        entrypoint=entrypoint,
        boot_timeout=options.boot_timeout,
        snapshot=options.snapshot,
        boot_snapshot=not options.no_snapshot,
        operation="run",
        network=options.network,
        seed=options.seed,
        record=options.record and paths.absolute(options.record),
        replay=options.replay and paths.absolute(options.replay),
        publish=_forwards(options.publish),
        policy=policy(
            options.allow,
            options.deny,
            internet=not options.no_internet,
            rates=(options.rate_out, options.rate_in, options.rate_flows),
        ),
        capture=options.pcap and paths.absolute(options.pcap),
    )


# What few runs need is imported by them: it takes a good part of the time in which one starts.


def _forwards(texts: list[str]) -> list[Forward]:
    """Ports as people write them."""
    if not texts:
        return []
    from crumble_common.publish import parse_forward

    return [parse_forward(text) for text in texts]


def _words(text: str) -> list[str]:
    """A shell's words."""
    import shlex

    try:
        return shlex.split(text)
    except ValueError:
        raise UsageError(
            f"--entrypoint={text} has a quotation mark that is not closed.",
            code="usage.entrypoint",
            hint="Quote it as for a shell.",
        ) from None


def _detached(link: Link, request: messages.VmCreate) -> int:
    if not link.shared:
        raise no_daemon()
    bars = Bars()
    link.client.listen(f"vm:{request.name}", bars.event)
    try:
        info = link.call(request)
    finally:
        bars.close()
    print(info.name)
    return 0


class _Run:
    """One attached run: boot, process, end."""

    def __init__(
        self,
        link: Link,
        request: messages.VmCreate,
        start: ProcessStart,
        options: argparse.Namespace,
        phases: Phases,
    ) -> None:
        self._link = link
        self._request = request
        self._start = start
        self._options = options
        self._phases = phases
        self._target = f"vm:{request.name}"
        self._bars = Bars()
        self._attached: Attached | None = None
        self._limited = False

    def live(self) -> int:
        """Everything, and then nothing is left."""
        self._link.client.listen(self._target, self._event)
        try:
            with Signals(self._link.loop, _interrupt):
                info = self._link.call(self._request)
                self._phases.mark("boot")
            return self._run(info)
        finally:
            self._bars.close()
            self._end()

    def _run(self, info: messages.VmInfo) -> int:
        self._limit()  # the VM in reserve has booted long ago
        words = argv(info.entrypoint, info.cmd, self._start.argv, self._request.entrypoint)
        start = ProcessStart(**{**vars(self._start), "argv": words})
        self._attached = Attached(self._link, self._target, start)
        status = self._attached.run()
        self._phases.mark("command")
        if self._options.digest:
            self._show_digest()
        if self._options.timeline:
            self._phases.show(self._link, self._target)
        return status

    def _show_digest(self) -> None:
        found = self._link.call(Digest(), to=self._target)
        note = ", disturbed" if found.disturbed else ""
        print(f"{found.instructions} instructions, {found.digest}{note}", file=sys.stderr)

    def _end(self) -> None:
        """Stops the VM; with writable shares, after it has written its pages back."""
        writable = any(not share.read_only for share in self._request.shares)
        grace = _SYNC_GRACE if writable and self._attached is not None else 0.0
        try:
            with Signals(self._link.loop, _interrupt):
                self._link.call(messages.VmStop(self._request.name, grace))
        except (CrumbleError, Interrupted):
            pass  # it had ended, or was never made; our own supervisor ends everything

    def _event(self, event: Any) -> None:
        if isinstance(event, ConsoleOutput):
            sys.stderr.buffer.write(event.data)
            sys.stderr.flush()
        elif isinstance(event, VmEvent) and event.kind == "booting":
            self._phases.mark("image")
            self._bars.close()
            self._limit()
        elif self._attached is not None:
            self._attached.event(event)
        else:
            self._bars.event(event)

    def _limit(self) -> None:
        """Time runs from the boot on, however it went: fetching the image is not part of it."""
        if self._options.timeout and not self._limited:
            self._link.loop.call_later(self._options.timeout, self._late)
        self._limited = True

    def _late(self) -> None:
        if self._attached is None or not self._attached.ended:
            raise CommandLateError(self._options.timeout)


def _interrupt(number: int) -> None:
    if number != signal.SIGWINCH:
        raise Interrupted(number)
