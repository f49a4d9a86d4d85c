"""What runs inside a guest: its init and agent, in the dialect of crumble_ir. See README.md."""

from crumble_vmm.guest.build import build, module_path

__all__ = ["build", "module_path"]
