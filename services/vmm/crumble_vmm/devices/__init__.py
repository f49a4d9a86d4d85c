"""Devices served by `vmm` itself."""
