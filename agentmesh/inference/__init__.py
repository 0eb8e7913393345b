"""The inference add-on: models, the engine that runs them, and the API in front of them."""
