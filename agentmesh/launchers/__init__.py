"""Start coding agents against the node's API."""
