"""The management API over a real socket, in front of a scripted node."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agentmesh.console.guard import Activity, BodyLimit, Guard
from agentmesh.console.http import build_app
from agentmesh.console.models import BoardStatus, Done, Invite, NodeProcess, Status
from agentmesh.control.client import AsyncNodeClient
from agentmesh.core.errors import AgentMeshError, InvalidInput, NodeRunning, NotFound
from agentmesh.core.paths import Home
from agentmesh.core.tasks import TaskSet
from agentmesh.node import listeners
from agentmesh.node.listeners import ApiServer, bind_console, bind_home_socket, port_of

TOKEN = "console-token"


@dataclass
class ScriptedNode:
    """Answers what a real node would, and remembers what it was asked."""

    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    state: str = "connected"
    asked: list[object] = field(default_factory=list)

    def process(self) -> NodeProcess:
        return NodeProcess(pid=7, version="0.1.0", background=False, started_at=1, clients=0)

    async def status(self) -> Status:
        return Status(
            node_id="n" * 52, name="ada", version="0.1.0", mesh_id="m" * 52, mesh_name="lab", state=self.state, api_port=None,
            console_port=3131, bind_port=7, peers=[], models=[], lent=[], blackboard=BoardStatus(posts=3), policy={"posts_per_minute": 120},
        )  # fmt: skip

    def stop(self) -> Done:
        self.stopping.set()
        return Done(message="Stopping.")

    def hand_over(self) -> Done:
        raise NodeRunning()

    async def leave(self) -> Done:
        raise RuntimeError("a defect")

    async def invite(self, expires_ms: int | None, uses: int | None) -> Invite:
        self.asked.append((expires_ms, uses))
        return Invite(token="amesh1.x", invite_id="ab" * 16, expires_at=5, uses=uses)

    async def revoke(self, target: str) -> Done:
        raise NotFound(f"There is no node or invite {target}.")

    async def join(self, tokens: list[str]) -> Done:
        self.asked.append(tokens)
        return Done(message="Joined.")


@dataclass
class Served:
    node: ScriptedNode
    client: AsyncNodeClient
    server: ApiServer
    console_port: int

    async def over_tcp(self, request: str) -> tuple[int, Any]:
        """One raw HTTP request to the console port."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.console_port)
        writer.write(request.replace("\n", "\r\n").encode())
        async with asyncio.timeout(60):
            data = await reader.read()
        writer.close()
        head, _, body = data.partition(b"\r\n\r\n")
        return int(head.split()[1]), body


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    root = Path(tempfile.mkdtemp(prefix="am-"))
    home, tasks, node = Home(root), TaskSet("test"), ScriptedNode()
    home.prepare()
    app = Activity(BodyLimit(build_app(node)))
    console = bind_console(0, named=True)
    server = ApiServer(app, bind_home_socket(home.socket), tasks, "socket")
    guarded = ApiServer(Guard(app, TOKEN), console, tasks, "console")
    yield Served(node, AsyncNodeClient(home), server, port_of(console))
    await server.close(5)
    await guarded.close(5)
    await tasks.close()
    shutil.rmtree(root)


async def test_status_has_exactly_the_fields_that_others_build_on(served: Served) -> None:
    status = await served.client.request("GET", "/api/status")
    assert set(status) == {
        "node_id", "name", "version", "mesh_id", "mesh_name", "state", "api_port", "console_port", "bind_port", "peers",
        "models", "lent", "blackboard", "policy",
    }  # fmt: skip
    assert status["api_port"] is None
    assert status["blackboard"] == {"posts": 3}


async def test_an_invite_is_made_as_asked_for(served: Served) -> None:
    made = await served.client.request("POST", "/api/mesh/invite", json={"expires_ms": 60_000, "uses": 2})
    assert made == {"token": "amesh1.x", "invite_id": "ab" * 16, "expires_at": 5, "uses": 2}
    await served.client.request("POST", "/api/mesh/invite", json={})
    assert served.node.asked == [(60_000, 2), (None, None)]


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/api/mesh/invite", {"uses": 0}, "uses"),
        ("/api/mesh/invite", {"use": 1}, "use"),
        ("/api/mesh/invite", {"expires_ms": "soon"}, "expires_ms"),
        ("/api/mesh/revoke", {}, "target"),
        ("/api/mesh/revoke", {"target": ""}, "target"),
        ("/api/mesh/join", {"tokens": []}, "tokens"),
        ("/api/mesh/join", {"tokens": "amesh1.x"}, "tokens"),
    ],
)
async def test_a_body_of_the_wrong_shape_is_answered_with_the_field(
    served: Served, path: str, body: object, said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        await served.client.request("POST", path, json=body)


async def test_the_nodes_own_errors_keep_their_class_and_sentence(served: Served) -> None:
    with pytest.raises(NotFound, match="There is no node or invite abc"):
        await served.client.request("POST", "/api/mesh/revoke", json={"target": "abc"})
    with pytest.raises(NodeRunning):
        await served.client.request("POST", "/api/node/handover")


async def test_a_defect_is_one_sentence_and_the_node_goes_on(served: Served) -> None:
    with pytest.raises(AgentMeshError, match="log") as caught:
        await served.client.request("POST", "/api/node/leave")
    assert "RuntimeError" not in caught.value.message
    assert (await served.client.request("GET", "/healthz")) == {"status": "ok"}


async def test_an_unknown_route_is_said_to_be_unknown(served: Served) -> None:
    with pytest.raises(NotFound, match="no such route"):
        await served.client.request("GET", "/api/nonsense")


async def test_the_event_stream_shows_the_status_its_changes_and_ends_with_the_node(served: Served) -> None:
    async with asyncio.timeout(60), aclosing(served.client.stream_events("/api/events")) as events:
        states = [json.loads((await anext(events)).data)["state"]]
        served.node.state = "alone"
        states.append(json.loads((await anext(events)).data)["state"])
        served.node.stopping.set()
        with pytest.raises(StopAsyncIteration):
            await anext(events)
    assert states == ["connected", "alone"]


async def test_over_tcp_everything_but_the_open_pages_needs_the_token(served: Served) -> None:
    head = "Host: localhost\nConnection: close\n"
    assert (await served.over_tcp(f"GET /healthz HTTP/1.1\n{head}\n"))[0] == 200
    assert (await served.over_tcp(f"GET /api/status HTTP/1.1\n{head}\n"))[0] == 401
    assert (await served.over_tcp(f"GET /api/status HTTP/1.1\n{head}Authorization: Bearer {TOKEN}\n\n"))[0] == 200


async def test_the_api_describes_itself_without_loading_anything_from_elsewhere(served: Served) -> None:
    status, page = await served.over_tcp("GET /docs HTTP/1.1\nHost: localhost\nConnection: close\n\n")
    assert status == 200
    assert b"POST /api/mesh/invite" in page
    assert b"http://" not in page
    assert b"https://" not in page
    assert b"<script" not in page


async def test_a_server_ends_in_time_though_a_client_hangs_on(served: Served) -> None:
    async with aclosing(served.client.stream_events("/api/events")) as events:
        await anext(events)
        async with asyncio.timeout(30):  # the client would hang on for ever
            await served.server.close(3)
    assert served.server.connections() == 0


@pytest.mark.parametrize("sent", [b"", b"GET /hea", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea"])
async def test_whoever_sends_no_whole_request_is_hung_up_on(
    served: Served, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(listeners, "SILENCE_S", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.console_port)
    writer.write(sent)
    async with asyncio.timeout(60):
        with suppress(ConnectionError):  # reset, where the server was quicker than our words
            await reader.read()  # ends because the server closes
    writer.close()


async def test_an_event_stream_may_be_quiet_for_longer_than_that(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with aclosing(served.client.stream_events("/api/events")) as events:
        await anext(events)
        monkeypatch.setattr(listeners, "SILENCE_S", 0.01)  # not earlier: the request itself may take longer than that
        connections = list(served.server._server.server_state.connections)
        assert connections
        for connection in connections:
            assert isinstance(connection, listeners._Connection)
            connection._close_if_idle()
        served.node.state = "alone"  # shown two seconds later at most
        assert json.loads((await anext(events)).data)["state"] == "alone"


async def test_beyond_the_limit_of_connections_the_latest_is_hung_up_on(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "MAX_CONNECTIONS", 2)
    held = [await asyncio.open_connection("127.0.0.1", served.console_port) for _ in range(3)]
    async with asyncio.timeout(60):
        with suppress(ConnectionError):
            assert await held[2][0].read() == b""
    held[0][1].write(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")
    async with asyncio.timeout(60):
        assert b'"ok"' in await held[0][0].read()
    for _, writer in held:
        writer.close()
