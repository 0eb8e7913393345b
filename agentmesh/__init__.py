"""agentmesh: agents, people and spare GPUs on one encrypted peer-to-peer mesh."""

__version__ = "0.1.0"
