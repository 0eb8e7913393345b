"""A tiny model API on loopback: `GET /v1/models` with the list it was given, a key if wanted, and a count of what was asked.

with ModelApi([model("big", parameters=70)]) as api:
    ...  # api.port, api.url, api.models = [...]
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def model(name: str, **facts: Any) -> dict[str, Any]:
    """An entry of the list as agentmesh writes it."""
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "agentmesh",
        "aliases": [],
        "context_length": 32768,
        "capabilities": ["chat", "completion", "tools"],
        "parameters": 7_000_000_000,
        "ready": True,
        "nodes": 1,
        **facts,
    }


class ModelApi:
    """Serves until it is left."""

    def __init__(self, models: list[dict[str, Any]], *, key: str | None = None, answer: bytes | None = None) -> None:
        self.models = models
        self.key = key
        self.answer = answer
        self.asked = 0
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                api.asked += 1
                if api.key is not None and self.headers.get("authorization") != f"Bearer {api.key}":
                    self._send(401, b"{}")
                elif self.path == "/v1/models":
                    listed = json.dumps({"object": "list", "data": api.models}).encode()
                    self._send(200, listed if api.answer is None else api.answer)
                else:
                    self._send(404, b"{}")

            def _send(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> ModelApi:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
