"""The stack's layers: each takes what its name says, without I/O."""
