"""Models bigger than one machine, run: what nodes say of themselves, RPC servers lent to hosts, and hosts. docs/splits.md."""
