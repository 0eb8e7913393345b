"""Finds the model API that an agent will use, and waits until its models are known.

Owns the order: the home's node, what answers on the port, a node that is started. Owns when a node that was started here
ends again. Talks to the node through agentmesh.control only, and to the API over HTTP on loopback.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from agentmesh.control.api_keys import KEY_VARIABLE
from agentmesh.control.client import NodeClient
from agentmesh.control.errors import NodeSilent
from agentmesh.control.start import ensure_node
from agentmesh.core.errors import AgentMeshError, InvalidInput, NoNode
from agentmesh.core.paths import Home
from agentmesh.launchers.base import LauncherError, MeshModel, NoModel
from agentmesh.launchers.choice import find_model, parse_models, strongest

DEFAULT_PORT: Final = 9337
API_TIMEOUT_S: Final = 5.0
STATUS_TIMEOUT_S: Final = 10.0  # a node on a loaded machine, just after its start
MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
FRESH_WAIT_S: Final = 10.0  # peers of a mesh connect within 1 to 3 s, and say what they serve within one more
SETTLE_S: Final = 1.0  # the first peer to answer need not have the best model
LOADING_WAIT_S: Final = 60.0  # from a fast disk; a model that takes longer is worth a message
POLL_S: Final = 0.25
RELEASE_WAIT_S: Final = 2.0  # until the node has noticed that this client left

Say = Callable[[str], None]

NO_MODEL: Final = """There is no model on the mesh. Bring one, with either of:
  agentmesh --model qwen2.5-3b           serve one on this machine
  agentmesh --join TOKEN --client        join a mesh that has one"""


@dataclass(frozen=True, slots=True)
class FoundApi:
    """An API. `node`: of this home, if it is that one's; `started`: by this process."""

    base_url: str
    node: NodeClient | None = None
    started: bool = False


class Api:
    """Asks one API for its models. Raises, for every call: LauncherError: it wants a key, or none but another."""

    def __init__(self, base_url: str, key: str | None) -> None:
        self._port = int(base_url.rpartition(":")[2])
        self._key = key

    def models(self) -> tuple[MeshModel, ...] | None:
        """What it offers, None when nothing (that we understand) answers."""
        try:
            status, body = self._get("/v1/models")
        except (OSError, http.client.HTTPException):
            return None
        if status in (401, 403):
            raise LauncherError(
                f"The API on port {self._port} asks for a key"
                + (f", and not for the one in ${KEY_VARIABLE}." if self._key else f": set {KEY_VARIABLE}.")
            )
        try:
            return parse_models(json.loads(body)) if status == 200 else None
        except (ValueError, RecursionError):
            return None

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=API_TIMEOUT_S)
        try:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read(MAX_ANSWER_BYTES)
        finally:
            connection.close()


def running_api(home: Home, port: int | None, key: str | None, say: Say) -> FoundApi | None:
    """The API of the home's node, else whatever answers on the port; None when there is neither."""
    client = NodeClient(home)
    found = _api_of(client)
    if found is not None:
        if port is not None and not found.base_url.endswith(f":{port}"):
            say(f"using this home's node, at {found.base_url}, not --port {port}")
        return found
    url = base_url(port)
    return FoundApi(url) if Api(url, key).models() is not None else None


def start_api(home: Home, say: Say) -> FoundApi:
    """Start the home's node in the background. Raises: NoNode: it does not start, or offers no API."""
    lines: list[str] = []
    client = ensure_node(home, say=lines.append)
    started = any(line.startswith("started a node") for line in lines)
    say("started a node for this; it ends with the agent" if started else "found a node that was just started")
    try:
        found = _api_of(client)
        if found is None:
            raise NoNode("The node of this home offers no model API; its port may be in use. See: agentmesh status")
    except NoNode:
        release(FoundApi("", client, started), say)
        raise
    return FoundApi(found.base_url, client, started)


def base_url(port: int | None) -> str:
    """Of an API on loopback, without `/v1`."""
    return f"http://127.0.0.1:{port or DEFAULT_PORT}"


def _api_of(client: NodeClient) -> FoundApi | None:
    try:
        port = client.request("GET", "/api/status", timeout_s=STATUS_TIMEOUT_S).get("api_port")
    except NoNode as error:
        if type(error) is not NoNode:  # it is there, but silent, stopping, or somebody else's
            raise
        return None
    return FoundApi(base_url(port), client) if isinstance(port, int) and port > 0 else None


# ------------------------------------------------------------------ models


class ModelWait:
    """Waits, bounded, for the models of an API. The clock and the sleep are arguments so that tests need none."""

    def __init__(
        self,
        ask: Callable[[], tuple[MeshModel, ...] | None],
        say: Say,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._ask, self._say, self._monotonic, self._sleep = ask, say, monotonic, sleep

    def choose(self, wanted: str | None, *, fresh: bool) -> tuple[tuple[MeshModel, ...], MeshModel]:
        """All models and the one to use. `fresh`: the node was started just now and may not know its peers yet.

        Raises:
            NoModel: there is none anywhere, or none that becomes ready.
            InvalidInput: there is none of the name `wanted`.
        """
        models = self._known(wanted) if fresh else self._ask()
        if models is None:
            raise LauncherError("The model API does not answer as one. See: agentmesh status")
        if not models:
            raise NoModel(NO_MODEL)
        chosen = find_model(models, wanted) if wanted is not None else strongest(models)
        if chosen is not None and chosen.ready:
            return models, chosen
        return self._ready(wanted)

    def _known(self, wanted: str | None) -> tuple[MeshModel, ...] | None:
        """What there is once the list has been the same for a moment, or time is up."""
        self._say(f"waiting up to {FRESH_WAIT_S:.0f} s for the models of the mesh")
        began = self._monotonic()
        models = self._ask()
        since = began
        while (now := self._monotonic()) - began < FRESH_WAIT_S:
            settled = now - since >= SETTLE_S and any(model.ready for model in models or ())
            if settled and (wanted is None or _has(models or (), wanted)):
                break
            self._sleep(POLL_S)
            latest = self._ask()
            if latest != models:
                models, since = latest, self._monotonic()
        return models

    def _ready(self, wanted: str | None) -> tuple[tuple[MeshModel, ...], MeshModel]:
        self._say(f"waiting up to {LOADING_WAIT_S:.0f} s for {wanted or 'a model'} to be loaded")
        began = self._monotonic()
        while self._monotonic() - began < LOADING_WAIT_S:
            self._sleep(POLL_S)
            models = self._ask() or ()
            chosen = (find_model(models, wanted) if wanted else strongest(models)) if models else None
            if chosen is not None and chosen.ready:
                return models, chosen
        raise NoModel(f"{wanted or 'The model'} is still being loaded; try again later. See: agentmesh status")


def _has(models: tuple[MeshModel, ...], wanted: str) -> bool:
    try:
        find_model(models, wanted)
    except InvalidInput:
        return False
    return True


# ------------------------------------------------------------------ afterwards


def release(found: FoundApi, say: Say, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """End the node that was started here, unless somebody else uses it or it serves models. Never fails."""
    if not found.started or found.node is None:
        return
    try:
        if (reason := _needed(found.node, sleep)) is not None:
            say(f"the node stays in the background: {reason}. Stop it: agentmesh stop")
            return
        found.node.request("POST", "/api/node/stop", timeout_s=STATUS_TIMEOUT_S)
    except NodeSilent:
        say("the node does not answer, and stays in the background. Stop it: agentmesh stop")
    except NoNode:
        return  # it is gone already
    except AgentMeshError as error:
        say(f"the node could not be stopped: {error.message}")


def _needed(node: NodeClient, sleep: Callable[[float], None]) -> str | None:
    if _serves(node):
        return "it serves models"
    waited_s = 0.0
    while _clients(node) > 0:
        if waited_s >= RELEASE_WAIT_S:
            return "another client uses it"
        sleep(POLL_S)
        waited_s += POLL_S
    return None


def _clients(node: NodeClient) -> int:
    """How many clients other than this request are attached to the node; 0 from a node that does not say."""
    clients = node.request("GET", "/api/node", timeout_s=STATUS_TIMEOUT_S).get("clients")
    return clients if isinstance(clients, int) else 0


def _serves(node: NodeClient) -> bool:
    try:
        models: Any = node.request("GET", "/api/runtime/models", timeout_s=STATUS_TIMEOUT_S).get("models")
    except NoNode:
        raise
    except AgentMeshError:  # a node without models has no such route
        return False
    return isinstance(models, list) and bool(cast("list[Any]", models))
