"""TCP, without I/O: one connection is a control block, a table of states and two buffers."""
