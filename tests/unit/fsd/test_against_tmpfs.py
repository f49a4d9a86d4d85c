"""Random file operations on fsd and on a real directory: results, errors and trees stay the same."""

import os
import shutil

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import rule

from crumble_common.messages.fs import Share
from crumble_fsd.assemble import add_shares, new_session, new_tree, options_for
from crumble_fsd.upper import Upper
from crumble_fsd.upper_directory import DirectoryUpper
from framework.abandon import abandon
from framework.fuse_client import direct
from framework.share_client import ShareClient
from framework.tree_machine import PHASES, Machine


class ShareMachine(Machine):
    """The whole tree is a host directory. Layers are written into it, as on the other side."""

    numbers_stay = False

    def mount(self) -> None:
        shared = self.work / "shared"
        shutil.copytree(self.real, shared, symlinks=True)
        self.tree, nodes = new_tree([], self.upper)
        self.shares = add_shares(self.tree, nodes, [Share(str(shared), "/")])
        options = options_for(self.upper, shared=True)
        self.fuse = ShareClient(direct(new_session(nodes, [self.tree, *self.shares], options)))
        self.fuse.init()

    def teardown(self) -> None:
        if hasattr(self, "shares"):
            self.shares[0].close()
        super().teardown()


class DirectoryMachine(Machine):
    """The upper is in a directory, and fsd is killed and started again now and then."""

    def make_upper(self) -> Upper:
        return DirectoryUpper(str(self.work / "upper"), ["l0", "l1"][: len(self.layers)])

    @rule(killed=st.booleans())
    def restart(self, killed: bool) -> None:
        for fd, _ in self.open.values():
            os.close(fd)
        self.open.clear()
        if killed:
            abandon(self.upper)
        else:
            self.upper.close()
        self.upper = self.make_upper()
        self.mount()


TestMemoryUpper = Machine.TestCase
TestShare = ShareMachine.TestCase
TestDirectoryUpper = DirectoryMachine.TestCase
TestMemoryUpper.settings = TestShare.settings = TestDirectoryUpper.settings = settings(
    derandomize=True, max_examples=40, stateful_step_count=40, deadline=None, phases=PHASES
)
