"""Opaque bytes between authenticated nodes: identity, admission, transports, gossip, replicated records."""
