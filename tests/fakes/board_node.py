"""A node of memory only: HTTP over the home's Unix socket with the blackboard's routes, good enough for thin clients.

It can also misbehave: lose a request before or after it took effect, or refuse. It runs in the test's own event loop
(`async with BoardNode(home)`) and serves clients in other processes too.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from agentmesh.core.paths import Home

HOUR_MS = 3_600_000
TOKEN = "test-token-test-token-test-token"
KINDS = ("STATUS", "QUESTION", "FINDING", "TIP", "DONE", "CLAIM")


class Refusal(Exception):
    """An error that the fake node answers."""

    def __init__(self, status: int, code: str, message: str, *, retryable: bool = False) -> None:
        self.status = status
        self.body = {"error": {"code": code, "message": message, "retryable": retryable}}


class BoardNode:
    """One fake node in one home. `posts` are newest last, as JSON of the contract."""

    def __init__(self, home: Path) -> None:
        self.run = home / "run"
        self._socket = Home(home).socket  # elsewhere when the path is too long for a socket
        self.posts: list[dict[str, Any]] = []
        self.answers: dict[str, dict[str, Any]] = {}  # by idempotency key
        self.read_by: dict[str, int] = {}
        self.requests: list[tuple[str, str]] = []
        self.lose_before = 0  # how many of the next posts are lost before they take effect
        self.lose_after = 0  # ... and after they did, before the answer
        self.refuse: Refusal | None = None
        self.waiting = 0  # long polls in progress
        self._changed = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> BoardNode:
        self.run.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._socket.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self._socket)
        node_json = self.run / "node.json"
        node_json.write_text(json.dumps({"token": TOKEN}))
        node_json.chmod(0o600)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self._connections:
            connection.close()
        await self._server.wait_closed()
        self._socket.unlink(missing_ok=True)

    # ------------------------------------------------------------------ HTTP

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, target, _ = head.split("\r\n", 1)[0].split(" ")
            length = next(
                (int(line.split(":")[1]) for line in head.split("\r\n") if line.lower().startswith("content-length")), 0
            )
            body = json.loads(await reader.readexactly(length)) if length else {}
            self.requests.append((method, target))
            url = urlsplit(target)
            query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
            if url.path == "/api/blackboard/events":
                await self._events(reader, writer)
                return
            try:
                status, answer = 200, await self._answer(method, url.path, query, body, reader)
            except Refusal as refusal:
                status, answer = refusal.status, refusal.body
            if answer is not None:
                data = json.dumps(answer).encode()
                head_out = (
                    f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
                )
                writer.write(head_out.encode() + data)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _answer(
        self, method: str, path: str, query: dict[str, str], body: dict[str, Any], reader: asyncio.StreamReader
    ) -> dict[str, Any] | None:
        if path == "/api/node":
            return {"pid": 1, "version": "9.9.9", "background": False, "started_at": 0}
        if self.refuse is not None:
            raise self.refuse
        if (method, path) == ("POST", "/api/blackboard/post"):
            return await self._post(body)
        if path == "/api/blackboard/search":
            words = query["query"].lower().split()
            found = [p for p in self._filtered(query) if any(word in p["text"].lower() for word in words)]
            return self._page(found, query)
        if path == "/api/blackboard/feed":
            return await self._feed(query, reader)
        if path == "/api/blackboard/topics":
            return {"topics": self._names("topic")}
        if path == "/api/blackboard/authors":
            return {"authors": self._names("author")}
        if path.startswith("/api/blackboard/posts/"):
            return await self._one(method, unquote(path.rsplit("/", 1)[1]))
        raise Refusal(404, "not_found", "There is no such route here.")

    async def _events(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n: hello\n\n")
        sent = len(self.posts)
        while True:
            await writer.drain()
            async with self._changed:
                await self._changed.wait_for(lambda sent=sent: len(self.posts) > sent)
            for post in self.posts[sent:]:
                writer.write(f"event: post\nid: {post['id'][:4]}\ndata: {json.dumps(post)}\n\n".encode())
            sent = len(self.posts)

    # ------------------------------------------------------------------ the board

    async def _post(self, body: dict[str, Any]) -> dict[str, Any] | None:
        if self.lose_before:
            self.lose_before -= 1
            return None
        key = body.get("idempotency_key")
        if key not in self.answers:
            if not body["text"].strip():
                raise Refusal(400, "invalid_input", "The text is empty.")
            post = await self.add(body["text"], body.get("from"), body.get("topic"), body.get("reply_to"))
            related = [p for p in self.posts[:-1] if p["kind"] == "CLAIM" and post["kind"] == "CLAIM"]
            self.answers[key] = {"id": post["id"], "redactions": [], "related": related}
        if self.lose_after:
            self.lose_after -= 1
            return None
        return self.answers[key]

    async def add(
        self, text: str, author: str | None = None, topic: str | None = None, reply_to: str | None = None
    ) -> dict[str, Any]:
        """Put a post on the board as if another node had sent it."""
        now = time.time_ns() // 1_000_000
        kind = next((kind for kind in KINDS if text.startswith(kind + ":")), "NOTE")
        post: dict[str, Any] = {
            "id": hashlib.sha256(f"{len(self.posts)} {text}".encode()).hexdigest()[:32],
            "kind": kind,
            "topic": topic,
            "branch": None,
            "text": text,
            "author": author or "node-name",
            "node_id": "k" * 52,
            "node_name": "node-name",
            "created_at": now,
            "expires_at": now + 48 * HOUR_MS,
            "reply_to": reply_to,
            "verified": True,
        }
        self.posts.append(post)
        async with self._changed:
            self._changed.notify_all()
        return post

    async def _feed(self, query: dict[str, str], reader: asyncio.StreamReader) -> dict[str, Any] | None:
        posts = self._unread(query)
        wait_s = float(query.get("wait_seconds", "0"))
        if not posts and wait_s:
            self.waiting += 1
            gone = asyncio.ensure_future(reader.read(1))
            news = asyncio.ensure_future(self._news(len(self.posts)))
            try:
                await asyncio.wait([gone, news], timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self.waiting -= 1
                gone.cancel()
                news.cancel()
            posts = self._unread(query)
        if query.get("unread_only") == "true":
            self.read_by[query["reader"]] = len(self.posts)
        return self._page(posts, query)

    async def _news(self, known: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.posts) > known)

    def _unread(self, query: dict[str, str]) -> list[dict[str, Any]]:
        since = self.read_by.get(query.get("reader", ""), 0) if query.get("unread_only") == "true" else 0
        fresh = [p["id"] for p in self.posts[since:]]
        return [p for p in self._filtered(query) if p["id"] in fresh]

    def _filtered(self, query: dict[str, str]) -> list[dict[str, Any]]:
        posts = self.posts[::-1]
        for field in ("topic", "kind", "author"):
            if field in query:
                posts = [p for p in posts if p[field] == query[field]]
        if "thread" in query:
            posts = [p for p in posts if query["thread"] in (p["id"], p["reply_to"])]
        if query.get("unanswered") == "true":
            answered = {p["reply_to"] for p in self.posts}
            posts = [p for p in posts if p["kind"] == "QUESTION" and p["id"] not in answered]
        return posts

    def _page(self, posts: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
        start, limit = int(query.get("cursor", "0")), int(query.get("limit", "20"))
        more = start + limit < len(posts)
        return {"posts": posts[start : start + limit], "next_cursor": str(start + limit) if more else None}

    def _names(self, field: str) -> list[str]:
        return list(dict.fromkeys(p[field] for p in self.posts if p[field]))

    async def _one(self, method: str, post_id: str) -> dict[str, Any]:
        found = [p for p in self.posts if p["id"].startswith(post_id)]
        if not found:
            raise Refusal(404, "not_found", f"There is no post {post_id}.")
        if method == "DELETE":
            self.posts.remove(found[0])
        return found[0]
