"""llama.cpp's programs on this machine: finding, building, probing and running them as children of the node."""
