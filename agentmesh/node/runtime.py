"""The node: which parts it has, in which order they start, and in which they stop.

Start: console port, identity, mesh membership, board, mesh on the network, socket. Stop: the doors first, so that nobody
is answered by half a node; then the board's waits, the mesh (goodbye), the workers, the database. Owns the order; each
part does its own work, and what the management API says of the node is in management.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import getpass
import hashlib
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Final

import agentmesh
from agentmesh.blackboard.http import blackboard_router
from agentmesh.blackboard.logic.post import BLACKBOARD_KINDS
from agentmesh.blackboard.scrub import ScrubberUnavailable, ScrubPool, machine_context
from agentmesh.blackboard.service import BlackboardService
from agentmesh.blackboard.store import BlackboardStore
from agentmesh.console.guard import Activity, BodyLimit, Guard
from agentmesh.console.http import build_app
from agentmesh.core.clock import Clock, SteadyClock
from agentmesh.core.config import DEFAULT_API_PORT, DEFAULT_CONSOLE_PORT, Config
from agentmesh.core.errors import AgentMeshError
from agentmesh.core.paths import Home
from agentmesh.core.tasks import TaskSet
from agentmesh.inference.http import runtime_router
from agentmesh.inference.logic.target import ServedModel
from agentmesh.launchers.hints import launch_hints
from agentmesh.mesh.api import Mesh, MeshSettings
from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.logic.kinds import mesh_rules
from agentmesh.mesh.logic.limits import INVITE_LIFETIME_MS
from agentmesh.mesh.logic.names import check_name
from agentmesh.mesh.membership_file import forget_membership
from agentmesh.mesh.quic import QuicTransport
from agentmesh.mesh.tls import TlsTransport
from agentmesh.node.inference import NodeInference
from agentmesh.node.listeners import ApiServer, bind_api, bind_console, bind_home_socket, free_udp_port, port_of
from agentmesh.node.management import Management, Parts
from agentmesh.node.membership import OnMesh, find_mesh
from agentmesh.node.node_file import NodeFile, last_bind_port, new_token, remember_bind_port, write_node_file
from agentmesh.node.options import NodeOptions

_log = logging.getLogger(__name__)

DOOR_TIMEOUT_S: Final = 1.5  # running requests end or are dropped
PART_TIMEOUT_S: Final = (
    2.5  # each further part (a hung scrub worker is killed after 2 s); the process itself is cut off after five
)

Stop = Callable[[], Awaitable[None]]


class Node:
    """One node of one home, on one mesh. `start` once, `stop` once; the home's lock is held by the caller."""

    _key: NodeKey
    _mesh: Mesh
    _scrubber: ScrubPool
    _inference: NodeInference

    def __init__(self, home: Home, options: NodeOptions, config: Config, on_mesh: OnMesh | None = None) -> None:
        """`on_mesh`: the membership to run on, when it was found before."""
        self._home = home
        self._on_mesh = on_mesh
        self._options = options
        self._config = config
        self._clock: Clock = (
            SteadyClock()
        )  # timers and the dates of records share it; a wall clock set back stalls neither
        self._leave = False
        self._tasks = TaskSet("node")
        self._undo: list[tuple[str, Stop]] = []
        self._activity: Activity | None = None
        self._warming = False
        self.stopping = asyncio.Event()
        self.stop_reason = ""
        self.successor: Node | None = None  # what the process should run after this node
        self.notes: tuple[str, ...] = ()
        self.console_port = 0
        self.bind_port = 0
        self.api_port = 0
        self.say: Callable[[str], None] = _log.info  # told of what takes long, also later
        self.invite_token: str | None = None

    # ------------------------------------------------------------------ what the process asks

    def request_stop(self, reason: str) -> None:
        """Begin to end. The first reason counts."""
        self.successor = None  # whoever wants the node to end does not want another one in its place
        if not self.stopping.is_set():
            self.stop_reason = reason
            self.stopping.set()

    def client_came(self) -> None:
        """A client has found this node and will soon use it: have the scrubber ready by then (its start takes 2 s)."""
        if not self._warming and not self.stopping.is_set():
            self._warming = True
            self._tasks.spawn(self._warm_scrubber(), name="warm-scrubber")

    async def _warm_scrubber(self) -> None:
        try:
            await self._scrubber.warm()
        except ScrubberUnavailable as error:  # a post will say so
            _log.warning("%s", error.message)
        finally:
            self._warming = False

    def request_leave(self) -> None:
        """End, and forget the membership once nothing writes it any more."""
        self._leave = True
        self.request_stop("left the mesh")

    async def join(self, tokens: list[str]) -> str:
        """Become a member of another mesh and go on there; returns what happened.

        Raises: as find_mesh in the background; this node then stays on its mesh.
        """
        options = dataclasses.replace(self._options, join=tuple(tokens), background=True)
        found = await find_mesh(self._home, self._key, options, self._name(), self._clock, _log.info)
        if found.membership.mesh == self._mesh.mesh:
            return f"This node is on the mesh '{self._mesh.name}' already."
        self._succeed("joined another mesh", found)
        return found.notes[0]

    def _succeed(self, reason: str, on_mesh: OnMesh | None = None) -> None:
        """End, and have the process go on with a fresh node in the same home."""
        if self.stopping.is_set():
            return
        self.request_stop(reason)
        serve = dataclasses.replace(self._options.serve, again=bool(self._inference.service.status()))
        options = dataclasses.replace(self._options, join=(), serve=serve)
        self.successor = Node(self._home, options, self._config, on_mesh)

    def clients(self) -> int:
        """Requests in progress at any door."""
        own = self._activity.in_progress if self._activity is not None else 0
        return own + self._inference.api.exchanges

    def idle_s(self) -> float:
        """Seconds since the last client left; none while somebody uses a model of this node."""
        if hasattr(self, "_inference") and self._inference.is_used:
            return 0.0
        return self._activity.idle_s() if self._activity is not None else 0.0

    # ------------------------------------------------------------------ start

    async def start(self, say: Callable[[str], None]) -> None:
        """Become ready: on the mesh, and answering. `say` is told of what takes long, also after this.

        Raises:
            AgentMeshError: it cannot run; what was started is undone by `stop`.
        """
        self.say = _log.info if self._options.background else say
        console, api = self._bind_console(), self._bind_api()
        self._undo += [("console socket", _caller(console.close)), ("API socket", _caller(api.close))]
        name = self._name()
        self._key = key = await asyncio.to_thread(NodeKey.load_or_create, self._home.identity_key)
        on_mesh = self._on_mesh or await find_mesh(self._home, key, self._options, name, self._clock, say)
        store = BlackboardStore(on_mesh.membership.folder / "blackboard.db", key.public, self._clock)
        board_notes: list[str] = []
        store.on_reset = board_notes.append
        await store.open()
        self._undo.append(("database", store.close))
        self._mesh = mesh = self._make_mesh(key, on_mesh, store, name)
        board = await self._start_board(key, store, mesh, name)
        self._inference = inference = self._make_inference(key, mesh)
        await mesh.start(on_mesh.first, on_mesh.bootstrap)
        self._undo.append(("mesh", mesh.stop))
        self._undo.append(("models", inference.stop))
        await inference.start(api)
        # From here on a damaged database means that the index in memory is wrong: begin anew, with what peers have.
        store.on_reset = self._succeed
        self.bind_port = mesh.bind_port
        remember_bind_port(self._home, mesh.bind_port)
        self.notes = (*on_mesh.notes, *board_notes)
        await self._open_doors(Parts(key, name, mesh, board, inference), console)
        await self._make_invite(mesh)

    def _name(self) -> str:
        given = self._options.name if self._options.name is not None else self._config.name
        return check_name(given if given is not None else _user_name(), "node name")

    def _bind_console(self) -> socket.socket:
        chosen = self._options.console_port if self._options.console_port is not None else self._config.console_port
        bound = bind_console(chosen if chosen is not None else DEFAULT_CONSOLE_PORT, named=chosen is not None)
        self.console_port = port_of(bound)
        return bound

    def _bind_api(self) -> socket.socket:
        chosen = self._options.api_port if self._options.api_port is not None else self._config.api_port
        bound = bind_api(
            chosen if chosen is not None else DEFAULT_API_PORT,
            named=chosen is not None,
            everywhere=self._options.listen_all,
        )
        self.api_port = port_of(bound)
        return bound

    def _bind_host(self) -> str:
        """The one address to listen on, when the user named one; else every interface."""
        return os.environ.get("AGENTMESH_BIND_HOST") or self._config.bind_host or ""

    def _bind_port(self) -> int:
        """The port that was named, else the one that tokens and peers know from the last run, else any."""
        chosen = self._options.bind_port if self._options.bind_port is not None else self._config.bind_port
        return chosen if chosen is not None else free_udp_port(last_bind_port(self._home))

    def _make_mesh(self, key: NodeKey, on_mesh: OnMesh, store: BlackboardStore, name: str) -> Mesh:
        mesh: Mesh | None = None

        def is_known_source(host: str) -> bool:
            return mesh is not None and mesh.is_known_source(host)

        transport = QuicTransport(key, known_source=is_known_source)
        self._undo.append(("transport", transport.close))
        mesh = Mesh(
            key=key,
            membership=on_mesh.membership,
            transport=transport,
            store=store,
            rules=mesh_rules(*BLACKBOARD_KINDS),
            clock=self._clock,
            settings=MeshSettings(name, self._bind_host(), self._bind_port()),
            bulk=TlsTransport(key, known_source=is_known_source),
        )
        return mesh

    def _make_inference(self, key: NodeKey, mesh: Mesh) -> NodeInference:
        return NodeInference(
            self._home,
            key.public,
            mesh,
            self._options,
            say=self.say,
            on_ready=self._model_ready,
            name=self._name,
            port=self.api_port,
        )

    def _model_ready(self, model: ServedModel) -> None:
        self.say(launch_hints(self.api_port, model.id, asks_key=bool(self._options.api_keys)))

    async def _start_board(self, key: NodeKey, store: BlackboardStore, mesh: Mesh, name: str) -> BlackboardService:
        self._scrubber = scrubber = ScrubPool(machine_context())
        self._undo.append(("scrub worker", scrubber.close))
        board = BlackboardService(
            store=store,
            scrubber=scrubber,
            publisher=mesh,
            clock=self._clock,
            own_node=key.public,
            idempotency_secret=hashlib.blake2s(key.seed, person=b"idemkeys").digest(),
            default_author=name,
            author_posts_per_minute=lambda: mesh.policy().author_posts_per_minute,
            node_name=lambda node: name if node == key.public else mesh.name_of(node),
        )
        mesh.watch(board.on_records, board.on_dropped)
        self._undo.append(("board", board.close))
        await board.start()
        return board

    async def _open_doors(self, parts: Parts, console: socket.socket) -> None:
        token, started_at = new_token(), self._clock.now_ms()
        management = Management(self, parts, started_at, background=self._options.background)
        app = BodyLimit(build_app(management, blackboard_router(parts.board), runtime_router(parts.inference.service)))
        self._activity = Activity(app)
        bound = bind_home_socket(self._home.socket)
        doors = (
            ApiServer(self._activity, bound, self._tasks, "socket"),
            ApiServer(Guard(self._activity, token), console, self._tasks, "console"),
        )
        self._undo.append(("doors", lambda: _close_doors(doors)))
        self._undo.append(("waiting clients", _caller(self._activity.end_waiting)))
        content = NodeFile(
            pid=os.getpid(),
            version=agentmesh.__version__,
            background=self._options.background,
            started_at=started_at,
            socket=str(self._home.socket),
            token=token,
            console_port=self.console_port,
            bind_port=self.bind_port,
            api_port=self.api_port,
        )
        write_node_file(self._home.node_json, content)
        self._undo.append(("node files", self._remove_files))

    async def _make_invite(self, mesh: Mesh) -> None:
        if self._options.background:
            return
        try:
            self.invite_token = (await mesh.invite(INVITE_LIFETIME_MS, None)).token
        except AgentMeshError as error:  # a member who may not invite runs its node all the same
            self.notes = (*self.notes, f"No invite: {error.message}")

    # ------------------------------------------------------------------ stop

    async def stop(self) -> None:
        """End what was started, last first. Never fails; what does not end in time is left to the process's end."""
        self.stopping.set()
        while self._undo:
            what, undo = self._undo.pop()
            began = time.monotonic()
            try:
                async with asyncio.timeout(PART_TIMEOUT_S):
                    await undo()
            except TimeoutError:
                _log.error("%s did not end within %s s", what, PART_TIMEOUT_S)
            except Exception:  # noqa: BLE001 - the other parts must still be ended
                _log.exception("%s did not end cleanly", what)
            _log.debug("%s ended in %.2f s", what, time.monotonic() - began)
        await self._tasks.close(grace_s=0.5)
        if self._leave:
            forget_membership(self._home)

    async def _remove_files(self) -> None:
        for path in (self._home.node_json, self._home.socket):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


async def _close_doors(doors: tuple[ApiServer, ...]) -> None:
    await asyncio.gather(*(door.close(DOOR_TIMEOUT_S) for door in doors))


def _caller(function: Callable[[], None]) -> Stop:
    async def call() -> None:
        function()

    return call


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers
        return "node"
