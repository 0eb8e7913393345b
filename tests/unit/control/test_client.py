"""The thin client against a scripted server on the home's socket: every way in which a node can fail to answer."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentmesh.control.client import AsyncNodeClient, NodeClient, ServerEvent
from agentmesh.control.errors import ForeignSocket, NodeLost, NodeSilent
from agentmesh.control.http1 import BadResponse
from agentmesh.core.errors import AgentMeshError, InvalidInput, NoNode, QuotaExceeded, TokenError
from agentmesh.core.paths import Home


def response(status: int, body: object) -> bytes:
    payload = json.dumps(body).encode()
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(payload)}\r\n\r\n".encode() + payload


@pytest.fixture
def home() -> Iterator[Home]:
    root = Path(tempfile.mkdtemp(prefix="am-"))
    home = Home(root)
    home.prepare()
    yield home
    shutil.rmtree(root)


@pytest.fixture
def serve(home: Home) -> Iterator[Callable[[bytes], list[bytes]]]:
    """Answer the next connection with these bytes and close; gives the list that the request arrives in."""
    listeners: list[tuple[socket.socket, threading.Thread]] = []

    def start(answer: bytes, *, hold: bool = False) -> list[bytes]:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(home.socket))
        listener.listen()
        requests: list[bytes] = []

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(60)
                requests.append(connection.recv(65536))
                connection.sendall(answer)
                if hold:
                    connection.recv(1)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        listeners.append((listener, thread))
        return requests

    yield start
    for listener, thread in listeners:
        thread.join(60)
        assert not thread.is_alive()
        listener.close()


def sync_request(home: Home, timeout_s: float = 60.0) -> dict[str, object]:
    return NodeClient(home).request("GET", "/api/status", timeout_s=timeout_s)


def async_request(home: Home, timeout_s: float = 60.0) -> dict[str, object]:
    return asyncio.run(AsyncNodeClient(home).request("GET", "/api/status", timeout_s=timeout_s))


both = pytest.mark.parametrize("request_status", [sync_request, async_request])


@both
def test_an_answer_is_the_json_object_that_the_node_sent(home: Home, serve, request_status) -> None:
    requests = serve(response(200, {"name": "ada"}))
    assert request_status(home) == {"name": "ada"}
    assert requests[0].startswith(b"GET /api/status HTTP/1.1\r\n")


@both
def test_no_socket_means_no_node_and_names_the_home(home: Home, request_status) -> None:
    with pytest.raises(NoNode, match=str(home.root)):
        request_status(home)


@both
def test_a_socket_that_a_killed_node_left_means_no_node(home: Home, request_status) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(home.socket))
    stale.close()
    with pytest.raises(NoNode):
        request_status(home)


@both
def test_a_node_that_ends_mid_answer_is_lost(home: Home, serve, request_status) -> None:
    serve(response(200, {"name": "ada"})[:-3])
    with pytest.raises(NodeLost):
        request_status(home)


@both
def test_a_node_that_never_answers_is_given_up_in_time(home: Home, serve, request_status) -> None:
    serve(b"HTTP/1.1 200 OK\r\n", hold=True)
    with pytest.raises(NodeSilent):
        request_status(home, timeout_s=0.1)


@both
def test_the_nodes_error_comes_back_as_its_own_class(home: Home, serve, request_status) -> None:
    serve(response(400, {"error": {"code": "token_error", "message": "The token is cut off.", "retryable": False}}))
    with pytest.raises(TokenError, match=r"^The token is cut off\.$"):
        request_status(home)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, InvalidInput), (422, InvalidInput), (429, QuotaExceeded), (418, AgentMeshError), (503, AgentMeshError)],
)
def test_an_unknown_error_code_keeps_the_exit_code_of_its_status(home: Home, serve, status: int, kind: type) -> None:
    serve(response(status, {"error": {"code": "from_the_future", "message": "So it is.", "retryable": False}}))
    with pytest.raises(kind, match="So it is") as caught:
        sync_request(home)
    assert caught.value.exit_code == kind.exit_code


@both
@pytest.mark.parametrize(
    "answer", [b"SSH-2.0\r\n\r\n", response(200, [1]), b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{{{"]
)
def test_what_is_no_node_is_said_to_be_none(home: Home, serve, request_status, answer: bytes) -> None:
    serve(answer)
    with pytest.raises(BadResponse):
        request_status(home)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to give a file to another user")
def test_a_socket_of_another_user_is_not_used(home: Home) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(home.socket))
        os.chown(home.socket, 65534, 65534)
        with pytest.raises(ForeignSocket):
            sync_request(home)


EVENT_STREAM = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1d\r\nevent: post\nid: 1\ndata: one\n\n\r\n0\r\n\r\n"
)


def test_events_are_given_one_by_one_and_end_with_the_stream(home: Home, serve) -> None:
    serve(EVENT_STREAM)
    assert list(NodeClient(home).stream_events("/api/events")) == [ServerEvent("post", "one", "1")]


async def test_events_arrive_on_asyncio_too(home: Home, serve) -> None:
    serve(EVENT_STREAM)
    events = [event async for event in AsyncNodeClient(home).stream_events("/api/events")]
    assert events == [ServerEvent("post", "one", "1")]


def test_an_event_stream_that_breaks_off_is_a_lost_node(home: Home, serve) -> None:
    serve(EVENT_STREAM[:-7])
    with pytest.raises(NodeLost):
        list(NodeClient(home).stream_events("/api/events"))


def test_an_event_stream_that_is_refused_raises_the_nodes_error(home: Home, serve) -> None:
    serve(response(429, {"error": {"code": "quota_exceeded", "message": "Too many readers."}}))
    with pytest.raises(QuotaExceeded, match="Too many readers"):
        list(NodeClient(home).stream_events("/api/blackboard/events"))


def _let_in_after(listener: socket.socket, seconds: float) -> threading.Timer:
    """A node that takes nobody for a moment, then everybody, and answers the last."""

    def run() -> None:
        listener.settimeout(60)
        waiting = listener.accept()[0]
        waiting.close()
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(response(200, {"late": True}))

    timer = threading.Timer(seconds, run)
    timer.start()
    return timer


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_node_at_whose_door_too_many_wait_is_waited_for(home: Home, *, asynchronous: bool) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(home.socket))
        listener.listen(0)
        first.connect(str(home.socket))  # the only place in the queue
        timer = _let_in_after(listener, 0.2)
        if asynchronous:
            answer = asyncio.run(AsyncNodeClient(home).request("GET", "/x"))
        else:
            answer = NodeClient(home).request("GET", "/x")
        assert answer == {"late": True}
        timer.join(60)
