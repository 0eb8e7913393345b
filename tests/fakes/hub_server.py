"""A model hub on loopback: the part of the Hugging Face API that we use, with small files, and every way to fail that we know.

A fault waits for the next request of a file's bytes (or of a listing) and is used up by it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer."""

    status: int = 200
    retry_after: str | None = None
    truncate_after: int | None = None
    flip_byte: int | None = None
    extra: bytes = b""
    stall_after: int | None = None
    wrong_range: bool = False


@dataclass
class Request:
    path: str
    range: str | None
    authorization: str | None


@dataclass
class HubServer:
    """Repositories by name, each path -> bytes. Files of 64 bytes and more are LFS files, as models are."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    token: str | None = None
    gated: set[str] = field(default_factory=set)
    file_faults: deque[Fault] = field(default_factory=deque)
    listing_faults: deque[Fault] = field(default_factory=deque)
    ignore_range: bool = False
    extra_siblings: list[dict[str, object]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    resume: threading.Event = field(default_factory=threading.Event)
    wrong_lfs: bool = False
    redirect_to: str | None = None  # where files' bytes are, as the real hub sends clients to a CDN

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.resume.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def commit(self, repo: str) -> str:
        digest = hashlib.sha1(repo.encode())
        for path, data in sorted(self.repos[repo].items()):
            digest.update(path.encode() + hashlib.sha256(data).digest())
        return digest.hexdigest()

    def body_requests(self) -> list[Request]:
        return [request for request in self.requests if "/resolve/" in request.path]

    def listing(self, repo: str) -> dict[str, object]:
        siblings: list[dict[str, object]] = []
        for path, data in self.repos[repo].items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            sibling: dict[str, object] = {"rfilename": path, "size": len(data), "blobId": blob}
            if len(data) >= 64:
                content = data + b"?" if self.wrong_lfs else data
                sibling["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(data), "pointerSize": 134}
            siblings.append(sibling)
        return {"id": repo, "sha": self.commit(repo), "siblings": [*siblings, *self.extra_siblings]}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubServer

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients of these tests hang up in the middle
            super().handle_error(request, client_address)  # pyright: ignore[reportArgumentType]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.hub.requests.append(Request(url.path, self.headers.get("Range"), self.headers.get("Authorization")))
        try:
            self._answer(unquote(url.path), parse_qs(url.query))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer(self, path: str, query: dict[str, list[str]]) -> None:
        if path == "/api/models":
            self._search(query)
        elif path.startswith("/api/models/"):
            self._listing(path.removeprefix("/api/models/").partition("/revision/")[0])
        elif "/resolve/" in path:
            repo, _, rest = path[1:].partition("/resolve/")
            self._file(repo, rest.partition("/")[2])
        else:
            self._status(404)

    def _search(self, query: dict[str, list[str]]) -> None:
        words = query["search"][0].lower().split()
        hits = [r for r in self.hub.repos if all(word in r.lower() for word in words)]
        rows = [{"id": r, "downloads": 7, "likes": 1, "lastModified": "2026-01-02T03:04:05.000Z"} for r in hits]
        self._json(rows[: int(query["limit"][0])])

    def _listing(self, repo: str) -> None:
        fault = self.hub.listing_faults.popleft() if self.hub.listing_faults else Fault()
        if fault.status != 200:
            self._status(fault.status, fault.retry_after)
        elif self._allowed(repo):
            self._json(self.hub.listing(repo)) if not fault.extra else self._bytes(fault.extra)

    def _allowed(self, repo: str) -> bool:
        if repo in self.hub.gated and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._status(401)
        elif repo not in self.hub.repos:
            self._status(404)
        else:
            return True
        return False

    def _file(self, repo: str, path: str) -> None:
        fault = self.hub.file_faults.popleft() if self.hub.file_faults else Fault()
        if fault.status != 200:
            self._status(fault.status, fault.retry_after)
            return
        if not self._allowed(repo):
            return
        if self.hub.redirect_to is not None:
            self.send_response(302)
            self.send_header("Location", self.hub.redirect_to + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = self.hub.repos[repo].get(path)
        if data is None:
            self._status(404)
            return
        if fault.flip_byte is not None:
            at = fault.flip_byte
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        (start, end), total = self._range(), len(data)
        body = data[start:end] + fault.extra
        partial = start > 0 or end is not None
        self.send_response(206 if partial else 200)
        if partial:
            claimed = start + 1 if fault.wrong_range else start
            self.send_header("Content-Range", f"bytes {claimed}-{min(end or total, total) - 1}/{total}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self._body(body, fault)

    def _body(self, body: bytes, fault: Fault) -> None:
        if fault.stall_after is not None:
            self.wfile.write(body[: fault.stall_after])
            self.wfile.flush()
            self.hub.stalled.set()
            self.hub.resume.wait(60)
            self.close_connection = True
        elif fault.truncate_after is not None:
            self.wfile.write(body[: fault.truncate_after])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def _range(self) -> tuple[int, int | None]:
        """Where the answer begins, and where it ends when that was asked for."""
        value = self.headers.get("Range")
        if self.hub.ignore_range or value is None:
            return 0, None
        first, _, last = value.removeprefix("bytes=").partition("-")
        return int(first), int(last) + 1 if last else None

    def _json(self, value: object) -> None:
        self._bytes(json.dumps(value).encode())

    def _bytes(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _status(self, status: int, retry_after: str | None = None) -> None:
        self.send_response(status)
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        self.send_header("Content-Length", "0")
        self.end_headers()
