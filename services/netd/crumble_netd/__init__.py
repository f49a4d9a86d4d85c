"""`netd`: a virtual network in one process: guests' Ethernet on one side, host sockets on the other."""
