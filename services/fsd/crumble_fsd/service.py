"""`fsd` as a service: opens what it serves, confines itself, then serves one front end."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from crumble_common.errors import HostError, UsageError
from crumble_common.layer_index import LayerIndex
from crumble_common.messages.fs import FsCaptured, FsConfig, FsFreeze, FsFrozen, Layer
from crumble_common.sandbox import Profile
from crumble_common.service import Context, Reply, Service
from crumble_common.vhost_user.serving import Serving
from crumble_fsd.assemble import add_shares, new_session, new_tree, options_for
from crumble_fsd.filesystem import Filesystem
from crumble_fsd.freeze import freeze_files, freeze_session
from crumble_fsd.gone import GoneShare
from crumble_fsd.handles import MAX_HANDLES
from crumble_fsd.later import Later
from crumble_fsd.passthrough import Share
from crumble_fsd.queue_pump import FsDevice
from crumble_fsd.restore import restore_session
from crumble_fsd.share_nodes import MAX_CACHED, MAX_PINNED
from crumble_fsd.thaw import corrupt
from crumble_fsd.tree import split_path
from crumble_fsd.union_parts import LayerFiles
from crumble_fsd.upper import MemoryUpper, Upper
from crumble_fsd.upper_directory import DirectoryUpper

# Copying up from a layer; attributes of read-only shares.
_SYSCALLS = frozenset(("sendfile", "getxattr", "listxattr"))
# What root needs to act on host files as their owners would: CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER,
# CAP_FSETID. Nothing is kept without shares, or by an ordinary user.
_SHARE_CAPABILITIES = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4

# Open files of shares, their O_PATH descriptors, an upper directory's data, and the rest. Where the hard
# limit is lower, the guest sees EMFILE sooner.
_NOFILE = MAX_HANDLES + MAX_CACHED + MAX_PINNED + 2_048
# What the upper has put off is saved this often, seconds.
_SETTLE = 1.0


class FsdService(Service[FsConfig]):
    """Serves one guest's tree until its front end leaves."""

    name = "fsd"
    config_type = FsConfig
    keep_ids = True  # root serves shares with files of many owners

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.device = FsDevice(context.loop)
        self._shares: list[Share | GoneShare] = []
        # Of the capture that is not complete.
        self._later: Later | None = None
        self._contents = -1

    def open(self, config: FsConfig) -> None:
        """Opens layers, upper and shares; everything wrong with them is said here."""
        self._config = config
        self.device = FsDevice(self.context.loop, config.tag, lockstep=config.lockstep)
        self._serving = Serving(self.context, config.socket_fd, self.device)
        layers = [open_layer(layer) for layer in config.layers]
        self._upper = open_upper(config)
        if config.restore:
            self._restore(config, layers)
        else:
            self._begin(config, layers)
        self.device.session = self.session

    def _restore(self, config: FsConfig, layers: list[LayerFiles]) -> None:
        """Goes on from a capture."""
        restored = restore_session(
            config.restore, layers, self._upper, config.shares, self.device.complete
        )
        self.tree, self._shares, self.session = restored.tree, restored.shares, restored.session

    def _begin(self, config: FsConfig, layers: list[LayerFiles]) -> None:
        """Makes a new tree."""
        self.tree, nodes = new_tree(layers, self._upper)
        for file in config.injected:
            self.tree.inject(file.path, file.data, file.mode)
        if config.layers and any(not split_path(share.target) for share in config.shares):
            raise UsageError(
                "A share cannot be the guest's root when there is an image.",
                code="share.target",
                hint="Choose another target.",
            )
        shares = add_shares(self.tree, nodes, config.shares)
        options = options_for(self._upper, shared=bool(shares), remote_locks=config.shared_locks)
        filesystems: list[Filesystem] = [self.tree, *shares]
        self.session = new_session(
            nodes, filesystems, options, self.device.complete, self._upper.commit
        )
        self._shares = [*shares]

    def sandbox(self) -> Profile:
        """Layers are open already: no path is needed but those of shares and of the upper."""
        shares = self._config.shares
        return Profile(
            read=[share.source for share in shares if share.read_only],
            write=[
                *(share.source for share in shares if not share.read_only),
                *([self._config.upper] if self._config.upper else []),
            ],
            syscalls=_SYSCALLS,
            nofile=_NOFILE,
            capabilities=_SHARE_CAPABILITIES if shares else 0,
        )

    def start(self) -> None:
        """Waits for the front end, or serves the one that is connected already."""
        self._settle()
        self._serving.start()

    def _settle(self) -> None:
        self._upper.settle()
        self.context.loop.call_later(_SETTLE, self._settle)

    def handle(self, message: Any, reply: Reply) -> None:
        """FsFreeze; the rest is not for us."""
        if not isinstance(message, FsFreeze):
            super().handle(message, reply)
            return
        fds: list[int] = []
        try:
            reply.ok(self._freeze(message, fds))
        except ValueError as error:
            raise corrupt(error) from error
        except OSError as error:
            raise _not_written(error) from error
        finally:
            for fd in fds:
                os.close(fd)

    def _freeze(self, message: FsFreeze, fds: list[int]) -> FsFrozen:
        """fds: gets those that are to be closed afterwards."""
        began = time.monotonic()
        fds.append(self.context.take_fd(message.index_fd))
        fds.append(self.context.take_fd(message.contents_fd))
        if not message.capture_fd:
            found = freeze_files(self.session, self.tree, fds[0], fds[1], message.excludes)
            took = time.monotonic() - began
            return FsFrozen(b"", changed=found is not None, size=found or 0, seconds=took)
        fds.append(self.context.take_fd(message.capture_fd))
        if message.excludes:
            raise UsageError("A snapshot of a whole VM cannot leave out files.", code="fs.excludes")
        if self._serving.running:
            raise UsageError("The VM is not frozen: its rings run.", code="fs.running")
        self._end_capture()
        later = None
        if isinstance(self._upper, MemoryUpper):
            self._contents = os.dup(fds[1])
            later = self._later = self._upper.copy_later(self._contents, self._not_captured)
        try:
            state, size = freeze_session(
                self.session, self.tree, self._shares, fds[0], fds[1], later
            )
        except BaseException:
            self._end_capture()
            raise
        self._serving.capture_to(fds.pop())
        pending = later is not None and later.pending
        if later is not None and pending:
            self.context.loop.call_soon(lambda: self._copy_on(later))
        else:
            self._end_capture()
        took = time.monotonic() - began
        return FsFrozen(state, changed=True, size=size, seconds=took, pending=pending)

    def _copy_on(self, later: Later) -> None:
        if later.step():
            self.context.loop.call_soon(lambda: self._copy_on(later))
        elif later.complete:
            self._end_capture()
            self.context.send(FsCaptured())

    def _not_captured(self, error: OSError) -> None:
        self._end_capture()
        self.context.send(FsCaptured(_not_written(error).message))

    def _end_capture(self) -> None:
        if self._later is not None:
            self._later.give_up()
            self._later = None
        if self._contents >= 0:
            os.close(self._contents)
            self._contents = -1

    def stats(self) -> dict[str, int]:
        """Counters for the heartbeat."""
        return {"fs.nodes": self.session.nodes.count, **self.device.pump.stats()}

    def stop(self, grace: float) -> None:  # noqa: ARG002  nothing here takes long
        """Stops the rings; the upper writes down what it holds."""
        self._serving.close()
        self._end_capture()
        for share in self._shares:
            share.close()
        self._upper.close()


def _not_written(error: OSError) -> HostError:
    return HostError(
        f"What the guest has written cannot be captured: {error.strerror or error}.",
        code="snapshot.write",
        hint="Make room on the disk, or choose another place for snapshots.",
    )


def open_upper(config: FsConfig) -> Upper:
    """Where the guest's writes go; UsageError or HostError."""
    if not config.upper:
        return MemoryUpper(config.upper_limit)
    if config.restore:
        raise UsageError(
            "A restored VM keeps what it writes in memory, not in a directory.",
            code="upper.restore",
            hint="Leave out the upper directory, or snapshot the restored VM.",
        )
    return DirectoryUpper(config.upper, [Path(layer.index).stem for layer in config.layers])


def open_layer(layer: Layer) -> LayerFiles:
    """A layer's index and contents; HostError when either is missing or does not fit the other."""
    index = LayerIndex.open(layer.index)
    try:
        contents = os.open(layer.contents, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        index.close()
        raise HostError(
            f"Cannot open the layer contents {layer.contents}: {error.strerror}.",
            code="store.missing",
            hint="Remove the image and pull it again.",
        ) from error
    if os.fstat(contents).st_size < index.contents_size:
        os.close(contents)
        index.close()
        raise HostError(
            f"The layer contents {layer.contents} are shorter than their index says.",
            code="store.corrupt",
            hint="Remove the image and pull it again.",
        )
    return LayerFiles(index, contents)
