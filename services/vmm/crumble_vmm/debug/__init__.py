"""Debugging a guest from outside: gdb's remote protocol, and what it needs of the machine."""
