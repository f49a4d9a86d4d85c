"""VMs for programs: boot one around an image, run commands in it, move files.

with crumble.VM("deb:trixie") as vm:
    print(vm.run(["uname", "-a"], capture_output=True, text=True).stdout)
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, Self

from crumble.sdk import files
from crumble.sdk.options import Volumes, failure_of, image_reference, memory_size, policy, shares
from crumble.sdk.process import PIPE, CommandError, Process
from crumble.sdk.session import Session, session
from crumble.supervisor.command import argv as image_argv
from crumble.supervisor.names import invent
from crumble_common.errors import CrumbleError, UsageError
from crumble_common.lockstep import DEFAULT_SEED
from crumble_common.messages import client as messages
from crumble_common.messages import vm as guest
from crumble_common.publish import parse_forward

if TYPE_CHECKING:
    import socket

    import httpx

    from crumble.sdk.captured import Snapshot
    from crumble.sdk.network import Kind, Ports

Command = str | Sequence[str]
OnEvent = Callable[[Any], None]


class VM:
    """A virtual machine. Boots when entered (or by `start`), ends when left (or by `stop`).

    image: as `crumble run` takes it. memory: bytes, or "512m". volumes: {host: guest} or
    ["host:guest[:ro]"]. kernel: a path; the default one otherwise. pull: "missing", "always", "never".
    cpu_model: "host" or, on KVM, a level like "x86-64-v3". transport: of its devices, "mmio" or "pci".
    watchdog: the guest has one that ends it when nobody feeds it. irqchip: of KVM on x86_64, "split" or "kernel".
    boot_timeout: seconds its kernel and init may take. network: "user" (default), "none" or a network's name.
    publish: ports, ["8080:80"]. allow, deny: what it may talk to, ["host:5432/tcp", "*.debian.org:443"];
    internet: also what no rule speaks of. rate_out, rate_in: bytes a second; rate_flows: new ones a second.
    capture: a pcap file. snapshot: the name of one to go on from, instead of an image. boot_snapshot: False
    boots it whether or not that was captured before. deterministic: two of its kind do the same to the bit, with
    entropy from `seed`; one CPU, no network, slower. on_event: gets Progress, VmEvent and, with dmesg,
    ConsoleOutput messages, in another thread.
    """

    def __init__(
        self,
        image: str = "",
        *,
        snapshot: str = "",
        name: str = "",
        cpus: int = 1,
        memory: int | str = 512 << 20,
        kernel: str | os.PathLike[str] = "",
        cmdline: str = "",
        hypervisor: str = "auto",
        cpu_model: str = "host",
        transport: Literal["mmio", "pci"] = "mmio",
        watchdog: bool = False,
        irqchip: Literal["split", "kernel"] = "split",
        pull: str = "missing",
        volumes: Volumes = (),
        hostname: str = "",
        dmesg: bool = False,
        boot_timeout: float = 120.0,
        boot_snapshot: bool = True,
        network: str = "",
        publish: Sequence[str] = (),
        allow: Sequence[str] = (),
        deny: Sequence[str] = (),
        internet: bool = True,
        rate_out: int | str = 0,
        rate_in: int | str = 0,
        rate_flows: int = 0,
        capture: str | os.PathLike[str] = "",
        deterministic: bool = False,
        seed: str = "",
        on_event: OnEvent | None = None,
    ) -> None:
        self._request = messages.VmCreate(
            image=image_reference(image),
            name=name,
            cpus=cpus,
            memory=memory_size(memory),
            kernel=str(Path(kernel).absolute()) if os.fspath(kernel) else "",
            cmdline=cmdline,
            hypervisor=hypervisor,
            cpu_model=cpu_model,
            transport=transport,
            watchdog=watchdog,
            irqchip=irqchip,
            pull=pull,
            dmesg=dmesg,
            shares=shares(volumes),
            hostname=hostname,
            boot_timeout=boot_timeout,
            snapshot=snapshot,
            boot_snapshot=boot_snapshot,
            operation="boot",
            network=network or ("none" if deterministic else "user"),
            seed=(seed or DEFAULT_SEED) if deterministic else "",
            publish=[parse_forward(text) for text in publish],
            policy=policy(allow, deny, internet=internet, rates=(rate_out, rate_in, rate_flows)),
            capture=str(Path(capture).absolute()) if os.fspath(capture) else "",
        )
        self._on_event = on_event
        self._info: messages.VmInfo | None = None
        self._session: Session | None = None
        self._target = ""
        self._processes: dict[int, Process] = {}
        self._failure: CrumbleError | None = None
        self._ports: Ports | None = None

    def start(self) -> Self:
        """Boots it; raises CrumbleError when it does not come up."""
        if self._info is not None:
            raise UsageError(
                "This VM was started already.",
                code="vm.started",
                hint="Use it, or make another VM.",
            )
        self._session = session()
        name = self._request.name or invent()
        self._target = f"vm:{name}"
        self._session.listen(self._target, self._event)
        request = messages.VmCreate(**{**vars(self._request), "name": name})
        try:
            self._info = self._session.call(request)
        except BaseException:
            self.stop(0)  # ^C while it boots, too
            raise
        return self

    def __enter__(self) -> Self:
        return self if self.started else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def started(self) -> bool:
        """It was, by `start` or by a fork."""
        return self._info is not None

    @property
    def info(self) -> messages.VmInfo:
        """What it is; UsageError before it was started."""
        if self._info is None:
            raise _not_running()
        return self._info

    @property
    def name(self) -> str:
        """Its name, as `crumble ps` shows it."""
        return self.info.name

    def popen(
        self,
        command: Command = (),
        *,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | None = None,
        stderr: int | None = None,
        text: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        tty: tuple[int, int] | None = None,
        systemd: Literal["auto", "always", "never"] = "auto",
    ) -> Process:
        """Starts a command: a list, or a string for the guest's /bin/sh; nothing runs the image's own.

        stdout, stderr: PIPE, DEVNULL, an fd of ours, or None for our own. tty: (rows, columns).
        env: added to the image's. systemd: it becomes PID 1; "auto": if it is an init.
        Raises GuestError "exec.not_found", "exec.not_executable".
        """
        link = self._connected()
        args = self._arguments(command)
        process = Process(link, self._target, args)
        process.open(stdin, stdout, stderr, text)
        start = guest.ProcessStart(
            argv=args,
            env=dict(env or {}),
            cwd=cwd,
            user=user,
            tty=tty is not None,
            rows=tty[0] if tty else 24,
            cols=tty[1] if tty else 80,
            stdin=stdin == PIPE,
            systemd=systemd,
        )
        self._start(link, start, process)
        return process

    def run(
        self,
        command: Command = (),
        *,
        input: Any = None,  # noqa: A002  subprocess has it
        capture_output: bool = False,
        text: bool = False,
        check: bool = False,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
    ) -> subprocess.CompletedProcess[Any]:
        """Runs a command to its end, as subprocess.run does.

        Without capture_output its output goes to ours. Raises CommandTimeoutError (the command is killed),
        and CommandError with `check` when its status is not 0.
        """
        output = PIPE if capture_output else None
        process = self.popen(
            command,
            stdin=PIPE if input is not None else subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=text,
            env=env,
            cwd=cwd,
            user=user,
        )
        try:
            stdout, stderr = process.communicate(input, timeout)
        except BaseException:
            process.kill()  # ^C, too
            raise
        status = process.returncode
        assert status is not None
        if check and status:
            raise CommandError(process.args, status, stdout, stderr)
        return subprocess.CompletedProcess(process.args, status, stdout, stderr)

    def read_file(self, path: str) -> bytes:
        """The contents of a file in the guest; GuestError "file.ENOENT" and the like."""
        return files.read(self._connected(), self._target, path)

    def write_file(self, path: str, data: bytes | str, *, mode: int = 0o644) -> None:
        """Creates or replaces a file in the guest."""
        content = data.encode() if isinstance(data, str) else data
        files.write(self._connected(), self._target, path, content, mode)

    def dial(self, kind: Kind, port: int, timeout: float | None = None) -> socket.socket:
        """A socket connected to a port of the guest. Where nobody listens, it ends at once."""
        return self._network().dial(kind, port, timeout)

    def listen(self, kind: Kind, port: int, backlog: int = 128) -> socket.socket:
        """A listening (bound, for "udp") socket that the guest reaches as host.internal:PORT."""
        return self._network().listen(kind, port, backlog)

    def http_transport(self) -> httpx.BaseTransport:
        """For httpx.Client(transport=…): URLs' hosts are all the guest, their ports are its ports."""
        from crumble.sdk.network import HttpTransport

        return HttpTransport(self._network())

    def _network(self) -> Ports:
        from crumble.sdk.network import Ports

        link = self._connected()
        if self._ports is None:
            self._ports = Ports(link, self._target)
        return self._ports

    def connect(self, network: str) -> None:
        """Moves its interface to a network, "user" or a named one; its forwards, rules and `listen` ports go along."""
        self._info = self._connected().call(messages.NetworkConnect(network, self.name))

    def disconnect(self) -> None:
        """Takes it off its network, its link down; UsageError when it is not on one."""
        request = messages.NetworkDisconnect(self.info.network, self.name)
        self._info = self._connected().call(request)

    def pause(self) -> None:
        """Lets it stand still; UsageError "vm.paused" when it does already."""
        self._connected().call(guest.Pause(), to=self._target)

    def resume(self) -> None:
        """Lets it go on; UsageError "vm.not_paused"."""
        self._connected().call(guest.Resume(), to=self._target)

    def snapshot(self, name: str) -> Snapshot:
        """Captures it under a name; it goes on running. UsageError "snapshot.exists"."""
        from crumble.sdk.captured import Snapshot

        link = self._connected()
        made = link.call(messages.SnapshotCreate(self._target[3:], name))
        return Snapshot(made.name, made.pause)

    def fork(self, count: int = 1, *, name: str = "") -> list[VM]:
        """More VMs like this one, running from this moment on; each is to be stopped, or entered."""
        link = self._connected()
        made: messages.Forked = link.call(messages.Fork(self._target[3:], count, name))
        return [self._forked(link, info) for info in made.vms]

    def snapshot_filesystem(
        self, reference: str = "", *, excludes: Sequence[str] = (), comment: str = ""
    ) -> str:
        """Makes an image of what its files are now; its name, by which a VM can be made of it."""
        reference = reference or f"crumble.local/snapshot:{secrets.token_hex(8)}"
        vm, excluded = self._target[3:], list(excludes)
        self._connected().call(messages.Commit(vm, reference, excluded, comment=comment))
        return reference

    def digest(self) -> guest.Digested:
        """What a deterministic guest is now: instructions executed, and a hash of all of it."""
        found: guest.Digested = self._connected().call(guest.Digest(), to=self._target)
        return found

    def timeline(self) -> guest.TimelineSlices:
        """Where the time of its boot went."""
        slices: guest.TimelineSlices = self._connected().call(guest.Timeline(), to=self._target)
        return slices

    def stop(self, grace: float = 5.0) -> None:
        """Ends it: orderly within `grace` seconds, else by force. Fine when it has ended."""
        link = self._session
        if link is None or not self._target:
            return
        target, self._target, self._ports = self._target, "", None
        try:
            link.call(messages.VmStop(target[3:], grace))
        except CrumbleError as error:
            if error.code not in ("vm.unknown", "supervisor.gone", "client.closed"):
                raise
        finally:
            link.listen(target, None)
            stopped = UsageError(
                "The VM was stopped.", code="vm.stopped", hint="Make another VM, or call start()."
            )
            link.post(lambda: self._fail(stopped))

    def _forked(self, link: Session, info: messages.VmInfo) -> VM:
        made = VM(on_event=self._on_event)
        made._request = self._request
        made._info, made._session, made._target = info, link, f"vm:{info.name}"
        link.listen(made._target, made._event)
        return made

    def _connected(self) -> Session:
        if self._session is None or not self._target:
            raise _not_running()
        if self._failure is not None:
            raise self._failure
        return self._session

    def _arguments(self, command: Command) -> list[str]:
        if isinstance(command, str):
            return ["/bin/sh", "-c", command]
        info = self.info
        return list(command) or image_argv(info.entrypoint, info.cmd)

    def _start(self, link: Session, start: guest.ProcessStart, process: Process) -> None:
        box: SimpleQueue[CrumbleError | None] = SimpleQueue()

        def on_reply(reply: Any, error: CrumbleError | None) -> None:
            if error is None:
                process.started(reply)
                self._processes[process.number] = process
            box.put(error)

        link.request(start, on_reply, to=self._target)
        if (error := box.get()) is not None:
            raise error

    def _event(self, event: Any) -> None:
        """In the loop's thread."""
        if isinstance(event, guest.ProcessOutput | guest.ProcessCredit):
            if process := self._processes.get(event.process):
                process.event(event)
        elif isinstance(event, guest.ProcessExit):
            if process := self._processes.pop(event.process, None):
                process.event(event)
        elif (error := failure_of(event)) is not None:
            self._fail(error)
        if self._on_event is not None and not isinstance(event, CrumbleError):
            self._on_event(event)

    def _fail(self, error: CrumbleError) -> None:
        self._failure = self._failure or error
        for process in tuple(self._processes.values()):
            process.fail(error)
        self._processes.clear()


def _not_running() -> UsageError:
    hint = "Call start(), or use it in a with block."
    return UsageError("This VM is not running.", code="vm.not_running", hint=hint)
