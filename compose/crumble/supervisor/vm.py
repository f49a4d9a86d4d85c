"""One VM: its state, its services, its processes and who listens to them; how it ends.

    starting ──agent ready──► running ──stop, power-off──► stopping ──all ended──► stopped
        └──────────any failure───┴───────────────────────► stopping ──all ended──► failed

A VM's services live and die together: when one of them dies the others are stopped, and the requester
and everybody who has a process in the VM is told why.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from typing import TYPE_CHECKING, Any, Literal, Protocol

from crumble.supervisor import backend, capture, limits, names
from crumble.supervisor.causes import Causes
from crumble.supervisor.command import with_defaults
from crumble.supervisor.network import NETWORKS, Network
from crumble.supervisor.poweroff import late, power_off
from crumble.supervisor.services import ServiceProcess
from crumble.supervisor.succession import Netd
from crumble.supervisor.tasks import Future, Task, limited
from crumble.supervisor.vmlog import VmLog
from crumble_common import log
from crumble_common.errors import CrumbleError, GuestError, UsageError
from crumble_common.messages import vm as messages
from crumble_common.messages.client import VmCreate, VmInfo
from crumble_common.messages.fs import FsCaptured
from crumble_common.messages.image import Image
from crumble_common.messages.net import NetIdle
from crumble_common.messages.vm import VmEvent
from crumble_common.vm_faults import SEE_DMESG

if TYPE_CHECKING:
    from crumble.snapshots.manifest import Manifest
    from crumble.supervisor.latefsd import LateFsd
    from crumble.supervisor.origin import Origin
    from crumble.supervisor.supervisor import Supervisor

# What `fsd` may take to write its files back when a VM is stopped in an orderly way, s.
_FSD_GRACE = 5.0
# How long the capture of a VM that is to end may go on, s.
_SAVING = 3.0


class Listener(Protocol):
    """Who gets events of a VM or of a process in it. source: "vm:NAME"."""

    def deliver(self, event: Any, source: str) -> None: ...


class Vm:
    """A VM in the supervisor's table. Everything is called in the supervisor's loop.

    owner: gets VmEvent, ConsoleOutput. booting: the recipe's task. agent: resolved when the guest's
    agent is ready, or with why it will not be. ended: resolved when every process of it is gone.
    origin: what it goes on from. boot_key: what its boot snapshot depends on, empty when it has none.
    saving: the capture under way, resolved when it is complete; unsaved: the events that are to say so,
    save_error: what the first of them said. lineage: the snapshot since which the guest's writes are marked.
    """

    def __init__(
        self,
        host: Supervisor,
        name: str,
        request: VmCreate,
        owner: Listener,
        origin: Origin | None = None,
    ) -> None:
        self.host = host
        self.id = secrets.token_hex(6)
        self.name = name
        self.request = request
        self.cpus, self.memory = request.cpus, limits.rounded_memory(request.memory)
        self.hostname = request.hostname or names.hostname_of("" if request.seed else name)
        self.network = Network(request.network, self)
        self.created = time.time()
        self.state = "starting"
        self.detail = ""
        self.hypervisor = request.hypervisor
        self.backend = backend.SOFT  # until it boots
        self.transport, self.watchdog = request.transport, request.watchdog
        self.irqchip = request.irqchip
        self.image: Image | None = None
        self.paused = False
        self.origin: Origin | None = None
        self.boot_key: dict[str, str] = {}
        self.trial_failed = False
        self.saving: Future[None] | None = None
        self.unsaved: set[type] = set()
        self.save_error = ""
        self.lineage: Manifest | None = None
        self.log = VmLog(host.instance.logs / f"vm-{name}.log", name)
        self.agent: Future[None] = Future()
        self.ended: Future[None] = Future()
        self.services: list[ServiceProcess] = []
        self.netd: Netd | None = None
        self.late_fsd: LateFsd | None = None
        self.failure: CrumbleError | None = None
        self.booting: Task[None] | None = None
        self.owner = owner
        self._off: Future[None] = Future()
        self._listeners: dict[int, Listener] = {}
        self._main = 0
        self._causes = Causes(host.loop, name, self.fail)
        self._stopping: Task[None] | None = None
        if origin is not None:
            self.go_on_from(origin)

    def go_on_from(self, origin: Origin) -> None:
        """Will not boot, but be what `origin` was."""
        about, wanted = origin.about, self.request.network
        given = about.kind == "boot" or wanted not in NETWORKS
        self.network = Network(wanted if given and about.network != "none" else about.network, self)
        origin.take()
        self.origin = origin
        self.lineage = origin.about
        self.cpus, self.memory = origin.about.cpus, origin.about.memory
        self.backend = backend.Backend(origin.about.hypervisor, origin.about.architecture)
        self.transport, self.watchdog, self.irqchip = about.transport, about.watchdog, about.irqchip
        self.image = self.image or origin.image()

    @property
    def on_trial(self) -> bool:
        """If it does not go on from its boot snapshot, another one boots in its place."""
        booted = self.origin is not None and bool(self.boot_key)
        return booted and self.state == "starting"

    @property
    def source(self) -> str:
        """Where its events come from and requests for it go to."""
        return f"vm:{self.name}"

    @property
    def alive(self) -> bool:
        """It has not been told to end, and nothing has ended it."""
        return self.state in ("starting", "running")

    @property
    def vmm(self) -> ServiceProcess:
        """The process that runs the guest; the VM's failure when there is none any more."""
        self.check()
        return self.service("vmm")

    def check(self) -> None:
        """Raises what it failed with, or that it does not run."""
        if not self.alive:
            raise self.failure or GuestError(
                f"The VM {self.name} is not running.",
                code="vm.not_running",
                hint="Start it again with `crumble run`.",
            )

    def service(self, name: str) -> ServiceProcess:
        """One of its processes; GuestError when it has none yet."""
        for service in self.services:
            if service.row.name == name:
                return service
        raise GuestError(
            f"The VM {self.name} is still starting.",
            code="vm.not_running",
            hint="Wait until `crumble ps` shows it running.",
        )

    @property
    def fsd(self) -> ServiceProcess:
        """The process that serves its files, which begins now if nobody has wanted it yet; CrumbleError."""
        return self.late_fsd.begun() if self.late_fsd else self.service("fsd")

    async def named(self) -> None:
        """Before a client has something done in the guest: its files name it. UsageError when it is paused."""
        self.awake()
        if self.late_fsd is not None:
            await self.late_fsd.named()

    def info(self) -> VmInfo:
        """This VM, for `ps`."""
        config = self.image.config if self.image else None
        return VmInfo(
            id=self.id,
            name=self.name,
            image=self.request.image or (self.image.reference if self.image else ""),
            state="paused" if self.paused and self.alive else self.state,
            created=self.created,
            cpus=self.cpus,
            memory=self.memory,
            hypervisor=self.hypervisor,
            detail=self.detail,
            entrypoint=config.entrypoint if config else [],
            cmd=config.cmd if config else [],
            env=config.env if config else [],
            working_dir=config.working_dir if config else "",
            user=config.user if config else "",
            services=[service.info() for service in self.services],
            snapshot=self.origin.about.name if self.origin else "",
            network=self.network.kind if self.network.connected else "none",
            address=self.network.address if self.network.connected else "",
        )

    def adopt(self, service: ServiceProcess) -> None:
        """Adds a service of this VM; its end is the VM's end."""
        self.services.append(service)
        service.ended.then(lambda reason: self._service_ended(service, reason.result()))

    def event(self, event: Any) -> None:
        """An event of one of this VM's services."""
        if isinstance(event, messages.ProcessOutput | messages.ProcessCredit):
            if isinstance(event, messages.ProcessOutput) and event.process == self._main:
                self.log.append(event.data)
            self._to_listener(event)
        elif isinstance(event, messages.ProcessExit):
            self._to_listener(event)
            self._listeners.pop(event.process, None)
        elif isinstance(event, messages.ConsoleOutput):
            self.log.append(event.data)
            self.owner.deliver(event, self.source)
        elif isinstance(event, messages.Captured | FsCaptured):
            capture.ended(self, event)
        elif isinstance(event, NetIdle | messages.NetWanted):
            if self.netd is not None:
                self.netd.heard(event)
        elif isinstance(event, messages.FsWanted):
            if self.late_fsd is not None and self.alive:
                self.late_fsd.wanted()
        elif isinstance(event, VmEvent):
            if self.alive or event.kind in ("poweroff", "reset"):
                self._vm_event(event)
        else:
            log.warning("unexpected event", vm=self.name, type=event.wire_type)

    async def start_process(self, start: messages.ProcessStart, listener: Listener) -> Any:
        """Starts a process in the guest; its events go to `listener` from the reply on."""
        assert self.image is not None
        await self.named()
        answer = self.awake().request(with_defaults(start, self.image.config, self.hostname))
        # At once, when the reply comes: output may be the very next message.
        answer.then(lambda reply: self._listen(reply, listener))
        return await answer

    async def pause(self, wanted: bool) -> Any:
        """Lets the guest stand still, or go on."""
        answer = await self.vmm.request(messages.Pause() if wanted else messages.Resume())
        self.paused = wanted
        return answer

    def awake(self) -> ServiceProcess:
        """Its `vmm`, for what the guest must answer; UsageError when it is paused."""
        if self.paused and self.alive:
            raise UsageError(
                f"The VM {self.name} is paused.",
                code="vm.paused",
                hint=f"`crumble unpause {self.name}` lets it go on.",
            )
        return self.vmm

    def forget(self, listener: Listener) -> None:
        """A client has gone: its processes in the guest are killed."""
        for number in [key for key, value in self._listeners.items() if value == listener]:
            del self._listeners[number]
            if self.alive:
                self.vmm.request(messages.ProcessSignal(number, 9))

    def fail(self, error: CrumbleError) -> None:
        """Ends the VM because of `error`."""
        if self.alive and self.failure is None:
            self.failure = error
            self.detail = error.message
            self.agent.fail(error)
            log.error("vm failed", vm=self.name, error=error)
            kind: Literal["panic", "failed"] = "panic" if error.code == "guest.panic" else "failed"
            self.trial_failed = self.on_trial
            if not self.trial_failed:
                self._tell(VmEvent(self.name, kind, str(error), error.code))
            self.stop(0)

    def stop(self, grace: float) -> Future[None]:
        """Ends the VM: orderly within `grace` seconds, else by force. Returns `ended`."""
        if self._stopping is None:
            self.agent.fail(
                GuestError(
                    f"The VM {self.name} was stopped.",
                    code="vm.stopped",
                    hint="Start it again to use it.",
                )
            )
            if self.booting is not None:
                self.booting.cancel()
            running, self.state = self.state == "running", "stopping"
            self._stopping = Task(self._stop(running, grace))
        elif grace == 0:
            for service in self.services:
                service.kill()
        return self.ended

    async def _stop(self, running: bool, grace: float) -> None:
        if self.late_fsd is not None:
            self.late_fsd.close(last_call=running and grace > 0)
        vmms = [service for service in self.services if service.row.name == "vmm"]
        others = [service for service in self.services if service.row.name != "vmm"]
        if running and self.saving is not None:
            with contextlib.suppress(CrumbleError):
                await limited(self.host.loop, self.saving, _SAVING, late)
        if running and grace > 0:
            await power_off(self, vmms[0], self._off, grace)
        for service in others:
            service.may_end()  # as soon as it has nobody to serve
        for service in vmms if grace > 0 else self.services:
            service.stop(min(grace, 1.0))
        for service in vmms:
            await service.ended
        for service in others:
            service.stop(_FSD_GRACE if grace > 0 else 0)
        for service in others:
            await service.ended
        if self.saving is not None:
            self.saving.fail(self.failure or GuestError("The VM ended.", code="vm.stopped"))
        if self.origin is not None:
            self.origin.release()
        self.host.fds.close(self.id)
        if self.netd is not None:
            self.netd.close()
        self._tell_who_waits()
        self.log.end()
        self.state = "failed" if self.failure else "stopped"
        log.info("vm ended", vm=self.name, state=self.state)
        self.ended.set(None)

    def _tell_who_waits(self) -> None:
        """Processes that ended with the VM will not say so themselves."""
        left, self._listeners = set(self._listeners.values()), {}
        for listener in left:
            ended = VmEvent(self.name, "stopped", f"The VM {self.name} was stopped.")
            listener.deliver(ended, self.source)

    def _vm_event(self, event: VmEvent) -> None:
        if event.kind == "agent_ready":
            if self.state == "starting":
                self.state = "running"
            self.agent.set(None)
        elif event.kind == "booting":
            self.hypervisor = event.detail or self.hypervisor
        elif event.kind in ("poweroff", "reset"):
            self._powered_off(event)
        elif event.kind in ("panic", "crash", "failed"):
            self._causes.guest_failed(self.vmm, event, self.request.dmesg)
            return  # everybody is told when it is clear why
        self._tell(event)

    def _powered_off(self, event: VmEvent) -> None:
        self._off.set(None)
        how = "powered off" if event.kind == "poweroff" else "was reset"
        if self.state == "starting":
            self.fail(
                GuestError(
                    f"The guest {how} before it was ready.",
                    code="guest.early_end",
                    hint="" if self.request.dmesg else SEE_DMESG,
                )
            )
        elif self.state == "running":
            self.detail = f"The guest {how}."
            self.host.loop.call_soon(self._stop_soon)  # after everybody was told

    def _stop_soon(self) -> None:
        self.stop(0)

    def _service_ended(self, service: ServiceProcess, error: CrumbleError) -> None:
        mine = service in self.services  # else it was left
        if self.alive and mine and not (self.netd and self.netd.ended(service, error)):
            self._causes.service_ended(service, error)

    def _listen(self, reply: Future[Any], listener: Listener) -> None:
        try:
            started = reply.result()
        except CrumbleError:
            return
        self._listeners[started.process] = listener
        # With a daemon, `crumble logs` also shows what an attached run prints.
        if listener == self.owner and not self._main and self.host.instance.daemon:
            self._main = started.process

    def _to_listener(self, event: Any) -> None:
        if listener := self._listeners.get(event.process):
            listener.deliver(event, self.source)

    def _tell(self, event: VmEvent) -> None:
        """Tells the requester, and whoever has a process in this VM."""
        for listener in {self.owner, *self._listeners.values()}:
            listener.deliver(event, self.source)
