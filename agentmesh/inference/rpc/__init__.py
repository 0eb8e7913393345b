"""llama.cpp's RPC protocol carried between two nodes: docs/rpc-relay.md."""
