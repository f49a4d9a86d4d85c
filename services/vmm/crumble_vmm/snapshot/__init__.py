"""Snapshots: a machine's state as bytes and back, and its memory saved while it runs."""
