"""The blackboard: one record kind, a store, a scrubber, and three faces (MCP, CLI, HTTP)."""
