"""Decisions of the inference add-on, without I/O: what a file says, what it needs, which model is meant."""
