"""The node process: wires mesh, board and management API together, and owns in which order they start and stop."""
