"""The supervisor: starts, watches and stops services; passes clients' requests on to them.

One class for both modes. `crumble up` runs it in its process, for clients of this user; the CLI and
the SDK run it in a thread when there is no such daemon, for themselves alone. Everything below runs
in the thread of `run`, on one event loop; only `stop` may be called from elsewhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Coroutine
from typing import Any

import zmq

from crumble.snapshots.store import Store
from crumble.supervisor import limits, moving, names, recipe
from crumble.supervisor.captures import Captures
from crumble.supervisor.clients import Client, Clients
from crumble.supervisor.command import argv
from crumble.supervisor.commands import Commands
from crumble.supervisor.fdstore import FdStore
from crumble.supervisor.ground import Ground
from crumble.supervisor.images import REQUESTS as IMAGE_REQUESTS
from crumble.supervisor.images import Images
from crumble.supervisor.mainprocess import MainProcess
from crumble.supervisor.materials import Materials
from crumble.supervisor.networks import Networks
from crumble.supervisor.origin import Origin
from crumble.supervisor.reserve import Reserve
from crumble.supervisor.services import Services
from crumble.supervisor.spawner import Spawner
from crumble.supervisor.streams import StreamClient, Streams
from crumble.supervisor.table import TABLE, Table
from crumble.supervisor.tasks import Cancelled, Future, Task
from crumble.supervisor.vm import Vm
from crumble.supervisor.vm_requests import EVENTS, ask
from crumble_common import __version__, log, wire
from crumble_common.errors import CrumbleError, InternalError, UsageError
from crumble_common.eventloop import EventLoop
from crumble_common.messages import client as messages
from crumble_common.messages import vm as guest
from crumble_common.messages.image import Image
from crumble_common.messages.net import NetState
from crumble_common.messages.service import Ok, Ping

# Ended VMs that `ps --all` and `logs` still know.
_ENDED_KEPT = 50
# What ocid may take to end, s.
_OCID_GRACE = 2.0


class Supervisor:
    """The table of VMs, and everything a VM is made with."""

    def __init__(
        self,
        *,
        daemon: bool = False,
        context: zmq.Context[Any] | None = None,
        table: Table = TABLE,
        ground: Ground | None = None,
    ) -> None:
        # First of all: it takes longest, and needs nothing of us.
        self._ground = ground or Ground(daemon=daemon, table=table)
        self.table = self._ground.table
        self.instance = self._ground.instance
        self._spawner: Spawner | None = self._ground.spawner
        self.loop = EventLoop()
        self.loop.on_error = _survive
        self._context = context or zmq.Context()
        self._own_context = context is None
        self.fds = FdStore()
        self.services = Services(self.loop, self._context, self.instance.path, self._spawning)
        self.images = Images(self.services, self.table["ocid"])
        self.materials = Materials()
        self.store = Store()
        self.captures = Captures(self, self.store)
        self.networks = Networks(self)
        self.reserve = Reserve(self)
        self.vms: dict[str, Vm] = {}
        self._fetching: dict[Task[Any], Client] = {}
        self._started = time.time()
        self._stopping: Task[None] | None = None
        self._clients = Clients(self.loop, self._context, self._message)
        self._streams: Streams | None = None
        self._commands = Commands(self.instance.path, self.instance.logs)
        self._spawner.attach(self.loop, self._forkserver_lost)

    @property
    def inproc(self) -> str:
        """The address for clients in this process that share our ZeroMQ context."""
        return f"inproc://crumble-{self.instance.path.name}"

    def bind(self) -> None:
        """Takes clients from now on."""
        self._clients.bind(self.inproc)
        if self.instance.daemon:
            self._clients.bind(self.instance.address("client"))
            path = self.instance.path / "stream"
            self._streams = Streams(self.loop, path, self._message, self._stream_gone)
            self.instance.announce()
            self._keep_spares()
        else:
            self.images.start()  # whatever we are here for will ask it
        self.loop.call_soon(self.captures.sweep)

    def run(self) -> None:
        """Serves until stopped; leaves nothing behind."""
        try:
            self.loop.run()
        finally:
            self._close()

    def stop(self, grace: float = 0.0) -> None:
        """Ends every VM, every service and `run`. From any thread."""
        self.loop.call_soon_threadsafe(lambda: self._begin_stop(grace))

    def disown(self) -> None:
        """In a forked child of this process: lets go of what would keep the supervisor's alive."""
        self.instance.release()
        if self._spawner is not None:
            self._spawner.disown()

    # Forkserver.

    def _spawning(self) -> Spawner:
        if self._spawner is None:
            self._spawner = self._ground.new_spawner()
            self._spawner.attach(self.loop, self._forkserver_lost)
            self._keep_spares()
        return self._spawner

    def _keep_spares(self) -> None:
        """What every VM needs is ready before it is asked for: where there will be more than one."""
        rows = self.table.values()
        if self.instance.daemon and self._spawner is not None:
            self._spawner.keep_spares([row.entry for row in rows if row.per == "vm"])
            self._commands.start(self._spawner)

    def _forkserver_lost(self) -> None:
        lost, self._spawner = self._spawner, None
        if lost is not None:
            lost.close()

    # Clients.

    def _message(self, client: Client, envelope: wire.Envelope) -> None:
        try:
            if envelope.to.startswith("vm:") and isinstance(envelope.body, EVENTS):
                self._vm(envelope.to[3:]).vmm.send(envelope.body)
                if envelope.request:
                    client.answer(envelope.request, Ok())
                return
            if isinstance(envelope.body, messages.Lease) and isinstance(client, StreamClient):
                client.lease = envelope.body.identity
                return
            if not envelope.request or envelope.body is None:
                return
            work = self._route(client, envelope)
        except CrumbleError as error:
            if envelope.request:
                client.refuse(envelope.request, error)
            return
        task = Task(work)
        if envelope.to == "images":
            self._fetching[task] = client
        task.then(lambda _: self._done(client, envelope, task))

    def _done(self, client: Client, envelope: wire.Envelope, task: Task[Any]) -> None:
        self._fetching.pop(task, None)
        _answer(client, envelope, task)

    def _route(self, client: Client, envelope: wire.Envelope) -> Coroutine[Any, Any, Any]:
        """The work that a request is; raises UsageError for one that is not for its target."""
        body, to = envelope.body, envelope.to
        if to.startswith("vm:"):
            return ask(client, self._vm(to[3:]), body)
        if to == "images" and isinstance(body, IMAGE_REQUESTS):
            return self.images.ask(body, lambda event: client.deliver(event, "images"))
        if to == "" and type(body) in self._own:
            return self._own[type(body)](self, client, body)
        raise UsageError(
            f"{type(body).wire_type} cannot be asked of {to or 'the supervisor'!r}.",
            code="wire.target",
        )

    def _vm(self, name: str) -> Vm:
        if name in self.vms:
            return self.vms[name]
        by_id = [vm for vm in self.vms.values() if len(name) >= 4 and vm.id.startswith(name)]
        if len(by_id) == 1:
            return by_id[0]
        raise UsageError(
            f"There is no VM {name}.", code="vm.unknown", hint="`crumble ps --all` lists them."
        )

    def _stream_gone(self, stream: StreamClient) -> None:
        self._gone(stream)
        if stream.lease:
            self._gone(self._clients.client(stream.lease))

    def _gone(self, client: Client) -> None:
        """A client has gone, and with it what it did not detach."""
        for vm in tuple(self.vms.values()):
            vm.forget(client)
            if vm.owner == client and not vm.request.detach:
                vm.stop(0)
        for task in [task for task, asker in self._fetching.items() if asker == client]:
            task.cancel()

    # Requests of our own.

    async def _create(self, client: Client, request: messages.VmCreate) -> messages.VmInfo:
        limits.check(request)
        origin = self.captures.named(request.snapshot) if request.snapshot else None
        return (await self.make(client, request, origin)).info()

    async def make(
        self, client: Client, request: messages.VmCreate, origin: Origin | None = None
    ) -> Vm:
        """A VM, running: booted, or gone on from `origin` or a boot snapshot."""
        alive = {name for name, vm in self.vms.items() if not vm.ended.done}
        vm = Vm(self, names.choose_name(request.name, alive), request, client, origin)
        self.vms[vm.name] = vm
        vm.ended.then(lambda _: self._vm_ended(vm))
        try:
            vm.booting = Task(recipe.boot(vm, lambda event: client.deliver(event, vm.source)))
            await vm.booting
            if vm.boot_key and vm.origin is None:
                await self.captures.boot(vm)
            if request.detach and request.main is not None:
                await self._start_main(vm, request.main)
            self.reserve.started(vm)
        except (CrumbleError, Cancelled, OSError) as problem:
            error = vm.failure or recipe.boot_error(problem, vm)
            vm.fail(error)
            await vm.ended
            if vm.trial_failed and isinstance(problem, CrumbleError):
                self.captures.distrust(vm, error)
                return await self.make(client, request)
            raise error from None
        return vm

    @staticmethod
    async def _start_main(vm: Vm, start: guest.ProcessStart) -> None:
        assert vm.image is not None
        config = vm.image.config
        words = argv(config.entrypoint, config.cmd, start.argv, vm.request.entrypoint)
        await MainProcess(vm).start(start, words)

    def _vm_ended(self, vm: Vm) -> None:
        self.reserve.ended()
        if not vm.request.detach and self.vms.get(vm.name) is vm:
            self._remove(vm)
        ended = [vm for vm in self.vms.values() if vm.ended.done]
        for old in ended[:-_ENDED_KEPT]:
            self._remove(old)

    def _remove(self, vm: Vm) -> None:
        vm.log.remove()
        if self.vms.get(vm.name) is vm:
            del self.vms[vm.name]

    async def _snapshot(
        self, client: Client, request: messages.SnapshotCreate
    ) -> messages.SnapshotMade:
        return await self.captures.create(client, self._vm(request.vm), request.name)

    async def _fork(self, client: Client, request: messages.Fork) -> messages.Forked:
        return await self.captures.fork(client, self._vm(request.vm), request)

    async def _commit(self, client: Client, request: messages.Commit) -> Image:
        return await self.captures.commit(client, self._vm(request.vm), request)

    async def _list(self, _client: Client, request: messages.VmList) -> messages.VmInfos:
        shown = [vm for vm in self.vms.values() if request.all or not vm.ended.done]
        return messages.VmInfos([vm.info() for vm in shown])

    async def _stop_vm(self, _client: Client, request: messages.VmStop) -> Ok:
        vm = self._vm(request.name)
        await vm.stop(max(0.0, request.grace))
        self._remove(vm)
        return Ok()

    async def _logs(self, client: Client, request: messages.VmLogs) -> messages.LogData:
        vm = self._vm(request.name)
        follow = request.follow and not vm.log.ended
        if follow:
            vm.log.follow(lambda event: client.deliver(event, vm.source))
        return messages.LogData(vm.name, vm.log.read(request.tail), eof=not follow)

    async def _status(self, _client: Client, _request: messages.Status) -> messages.StatusInfo:
        return messages.StatusInfo(
            pid=os.getpid(),
            version=__version__,
            started=self._started,
            services=[process.info() for process in self.services],
            vms=sum(vm.alive for vm in self.vms.values()),
        )

    async def _network(self, _client: Client, request: messages.NetworkInspect) -> NetState:
        return await self.networks.inspect(request.name)

    async def _network_rm(self, _client: Client, request: messages.NetworkRemove) -> Ok:
        self.networks.remove(request.name)
        return Ok()

    async def _move(
        self, _client: Client, request: messages.NetworkConnect | messages.NetworkDisconnect
    ) -> messages.VmInfo:
        leaves = isinstance(request, messages.NetworkDisconnect)
        work = moving.disconnect if leaves else moving.connect
        return await work(self._vm(request.vm), request.network)

    async def _ping(self, _client: Client, _request: Ping) -> Ok:
        return Ok()

    async def _down(self, _client: Client, request: messages.Down) -> Ok:
        self.loop.call_soon(lambda: self._begin_stop(max(0.0, request.grace)))
        return Ok()

    _own: dict[type, Callable[[Supervisor, Client, Any], Coroutine[Any, Any, Any]]] = {
        messages.VmCreate: _create,
        messages.SnapshotCreate: _snapshot,
        messages.Fork: _fork,
        messages.Commit: _commit,
        messages.VmList: _list,
        messages.VmStop: _stop_vm,
        messages.VmLogs: _logs,
        messages.NetworkInspect: _network,
        messages.NetworkRemove: _network_rm,
        messages.NetworkConnect: _move,
        messages.NetworkDisconnect: _move,
        messages.Status: _status,
        messages.Down: _down,
        Ping: _ping,
    }

    # The end.

    def _begin_stop(self, grace: float) -> None:
        if self._stopping is None:
            self._stopping = Task(self._stop_all(grace))
            self._stopping.then(lambda _: self.loop.stop())
        elif grace == 0:
            for vm in self.vms.values():
                vm.stop(0)

    async def _stop_all(self, grace: float) -> None:
        """VMs first, all at once; then what serves them."""
        ends = [vm.stop(grace) for vm in self.vms.values() if not vm.ended.done]
        await self.reserve.close()
        for end in ends:
            await end
        await self.captures.finish()
        for process in self.services:
            # What is half done is given up properly, even by a ^C: no temporary file is left.
            process.stop(_OCID_GRACE if process.busy else min(grace, _OCID_GRACE))
            await process.ended

    def _close(self) -> None:
        self._commands.close()
        if self._spawner is not None:
            self._spawner.close()
        self.services.close()
        self.fds.close_all()
        self.instance.close()
        self._clients.close()
        if self._streams is not None:
            self._streams.close()  # last: who waits for its lease to end finds nothing left
        self.loop.close()
        if self._own_context:
            self._context.term()


def _answer(client: Client, envelope: wire.Envelope, done: Future[Any]) -> None:
    try:
        client.answer(envelope.request, done.result())
    except CrumbleError as error:
        client.refuse(envelope.request, error)
    except Cancelled:
        pass  # the client has gone
    except BaseException as error:  # noqa: BLE001  a bug must not end the other VMs
        log.exception("request failed", error, request=type(envelope.body).wire_type)
        client.refuse(envelope.request, InternalError(f"Crumble failed: {error!r}.", code="bug"))


def _survive(kind: str, error: Exception) -> None:
    log.exception("bug in the supervisor", error, kind=kind)
