"""One OpenAI- and Anthropic-compatible API for every model that any node of the mesh serves."""
