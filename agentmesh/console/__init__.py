"""The management API of a node, on its socket and on loopback. Sees the node only through the protocol it states."""
