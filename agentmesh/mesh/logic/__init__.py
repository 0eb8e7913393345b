"""Pure protocol logic of the mesh: no I/O, clock, randomness, logging or async in this folder."""
