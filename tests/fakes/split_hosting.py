"""A split without nodes: a host and workers as members of a real mesh, real RPC servers lent by real workers, a real llama-server."""

from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import psutil

from agentmesh.inference.engine.arguments import ServerPlan
from agentmesh.inference.engine.engine import Device, Engine
from agentmesh.inference.engine.process import EngineProcess
from agentmesh.inference.engine.split_arguments import SplitWords
from agentmesh.inference.logic.job_wire import JobFile
from agentmesh.inference.logic.model_parts import model_parts
from agentmesh.inference.logic.plan import make_plan
from agentmesh.inference.logic.split_offer import WantedModel, WorkedModel, content_of
from agentmesh.inference.logic.split_values import NodeFacts, PlanModel, Split, Wish
from agentmesh.inference.memory import MemoryBook
from agentmesh.inference.models.gguf import read_header, read_model
from agentmesh.inference.models.identity import FileIdentities
from agentmesh.inference.rpc.weights import WeightFiles, WeightHashes
from agentmesh.inference.settings import Lending
from agentmesh.inference.split.host import HostJob, HostParts, SplitHost
from agentmesh.inference.split.host_lease import DEFAULT_LIMITS, LeaseLimits
from agentmesh.inference.split.worker import SplitWorker
from agentmesh.inference.split.worker_files import OpenedFiles
from agentmesh.mesh.streams import StreamKind
from tests.fakes.mesh_nodes import TestNode
from tests.fakes.rpc_world import members
from tests.fakes.split_world import a_node

BUFFERS = 90_000_000  # what a plan adds to weights: 64 MiB the program
PROMPT = "The mesh joins machines as equals, and"
ANSWER_S = 240.0
LIKE_ALL = ("-t", "1", "-lv", "5")


class Silent:
    """Tells nobody what a worker holds."""

    def want(self, model: WantedModel) -> None: ...

    def unwant(self, content: str) -> None: ...

    def work(self, model: WorkedModel) -> None: ...


class HeldFiles:
    """A worker's copies of a model's files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.files: list[Path] = []

    def hold(self, files: Sequence[Path]) -> None:
        self._folder.mkdir(exist_ok=True)
        self.files = [Path(shutil.copy(file, self._folder)) for file in files]

    async def open(self, files: Sequence[JobFile], host: bytes, tell: object, *, fetch: bool) -> OpenedFiles:
        if not self.files:
            return OpenedFiles(None, "There are none.")
        return OpenedFiles(await WeightFiles.open_parts(self.files, FileIdentities(self._folder / "identities.json")))


@dataclass
class Lender:
    """A member that lends."""

    node: TestNode
    worker: SplitWorker
    files: HeldFiles

    @property
    def id(self) -> bytes:
        return self.node.key.public


@dataclass
class Hosting:
    """See the module. Made by `hosting`."""

    folder: Path
    engine: Engine
    node: TestNode
    lenders: list[Lender]
    lost: list[str] = field(default_factory=list[str])
    said: list[str] = field(default_factory=list[str])
    engines: int = 0

    def plan(self, model: Path, share: float) -> Split:
        """Over all of them; each has room for this share of the weights, the host for a little more."""
        whole = read_model(model).facts.weight_bytes
        ids = [self.node.key.public, *(lender.id for lender in self.lenders)]
        rtts = tuple((each, 1.0) for each in ids)
        facts: list[NodeFacts] = []
        for number, each in enumerate(ids):
            free_gb = (whole * share + BUFFERS) / 1e9 * (1.0 if number else 1.1)
            facts.append(msgspec.structs.replace(a_node(number + 1, free_gb), node=each, rtt_ms=rtts))
        spread = PlanModel("m", read_model(model).facts, model_parts([read_header(model)]))
        outcome = make_plan(spread, Wish(context_tokens=512, min_peers=len(self.lenders)), facts)
        assert isinstance(outcome, Split), outcome
        return outcome

    async def host(self, model: Path, plan: Split, term: int = 1, *, limits: LeaseLimits = DEFAULT_LIMITS) -> SplitHost:
        """Not opened yet."""
        identities = FileIdentities(self.folder / "identities.json")
        parts = HostParts(
            self.node.mesh.open_stream,
            {lender.id: lender.node.name for lender in self.lenders}.__getitem__,
            lambda _: False,
            identities,
            WeightHashes(self.folder / "fnv.json"),
        )
        content = content_of([bytes.fromhex((await identities.identify(model)).sha256)])
        job = HostJob(content, "m", term, (model,), self.engine)
        return SplitHost(parts, plan, job, on_lost=self.lost.append, say_progress=self.said.append, limits=limits)

    def llama_server(self, model: Path, words: SplitWords | None = None) -> EngineProcess:
        """As ModelRun would start it; alone without words."""
        self.engines += 1
        extra = words.extra if words is not None else ("--load-mode", "none")
        device = words.device if words is not None else None
        plan = ServerPlan(model, "m", 512, 1, device=device, extra=(*extra, *LIKE_ALL))
        log = self.folder / "logs" / f"server-{self.engines}.log"
        return EngineProcess(self.engine, plan, folder=self.folder / "run", log=log)

    def log(self) -> str:
        """Of the last llama-server."""
        return (self.folder / "logs" / f"server-{self.engines}.log").read_text("utf-8", "replace")


async def tokens(engine: EngineProcess, count: int = 24) -> list[int]:
    """What follows the prompt, greedily. Raises: httpx.HTTPError."""
    assert engine.address is not None
    assert engine.address.socket is not None
    body = {"prompt": PROMPT, "n_predict": count, "temperature": 0, "return_tokens": True, "cache_prompt": False}
    transport = httpx.AsyncHTTPTransport(uds=engine.address.socket)
    async with httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=ANSWER_S) as http:
        answer = await http.post("/completion", json={**body, "ignore_eos": True})
    assert answer.status_code == 200, answer.text
    return answer.json()["tokens"]


def listening_ports() -> set[int]:
    """Of this process and those that it started, on any address."""
    found: set[int] = set()
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            found |= {each.laddr.port for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN}
        except psutil.Error:  # it has ended
            continue
    return found


def engine_programs() -> set[str]:
    """The programs of llama.cpp that this process, or one that it started, has started."""
    names: set[str] = set()
    for process in psutil.Process().children(recursive=True):
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        names |= {Path(word).name for word in command if Path(word).name in ("llama-server", "ggml-rpc-server")}
    return names


@asynccontextmanager
async def hosting(engine: Engine, root: Path, workers: int) -> AsyncGenerator[Hosting]:
    """A host, and workers that lend to everybody."""
    async with AsyncExitStack() as stack:
        host, made = await stack.enter_async_context(members(root, workers))
        lenders: list[Lender] = []
        for member in made:
            files = HeldFiles(root / f"files-{member.node.name}")
            worker = SplitWorker(
                member.exits,
                Silent(),
                MemoryBook(_no_devices),
                _engine_of(engine),
                files,
                Lending(everyone=True),
                member.node.home,
                threads=1,
            )
            member.node.mesh.serve(StreamKind.JOB, worker.serve_job)
            stack.push_async_callback(worker.stop, 10.0)
            lenders.append(Lender(member.node, worker, files))
        yield Hosting(root, engine, host, lenders)


async def _no_devices(_engine: Engine) -> Sequence[Device]:
    return ()


def _engine_of(engine: Engine):  # the test's own
    async def find() -> Engine:
        return engine

    return find
