"""What asking a peer costs: the same engine, once on this node and once behind a peer, over real TLS on loopback.

    python benchmarks/proxy_peer.py [--requests 500] [--seconds 4]

Both nodes' proxies and the mesh's fast path between them live in one process, engine and load in others; so what is shown is
the work of both nodes on one core, without a network. First one request at a time, the two models in turn; then requests a
second and CPU time, of both nodes together. 100 streams: one member may have 128 requests at another at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import uvloop

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from agentmesh.inference.logic.target import EngineAddress, ServedModel, Target  # noqa: E402
from agentmesh.inference.proxy.answers import LocalAnswers  # noqa: E402
from agentmesh.inference.proxy.directory import Directory  # noqa: E402
from agentmesh.inference.proxy.dispatch import Dispatcher  # noqa: E402
from agentmesh.inference.proxy.metrics import Metrics  # noqa: E402
from agentmesh.inference.proxy.parts import OpenPeer  # noqa: E402
from agentmesh.inference.proxy.server import ApiServer  # noqa: E402
from agentmesh.inference.proxy.settings import ApiSettings  # noqa: E402
from agentmesh.mesh.streams import StreamKind  # noqa: E402
from tests.fakes.bulk_world import two_members  # noqa: E402
from tests.fakes.proxy_world import FakeDispatch, post  # noqa: E402

WARM_UP = 50


def _model(name: str) -> ServedModel:
    return ServedModel(id=name, ready=True, slots=200, context_tokens=8192, capabilities=("chat",))


def _server(me: bytes, targets: list[Target], open_peer: OpenPeer) -> ApiServer:
    """A node's proxy with its real routing for its own engines."""
    loop = asyncio.get_running_loop()
    metrics = Metrics()
    directory = Directory(me, dict, loop.time)
    directory.set_own(targets)
    dispatch = Dispatcher(directory, metrics, loop.time, loop.call_later)
    own = LocalAnswers(dispatch.models, metrics.render, created_s=0)
    return ApiServer(dispatch, own, ApiSettings(), open_peer, metrics)


async def first_bytes(port: int, requests: int, streamed: bool) -> dict[str, list[float]]:
    """Milliseconds to the first byte, by model."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    took: dict[str, list[float]] = {"near": [], "far": []}
    for number in range(2 * (requests + WARM_UP)):
        name = ("near", "far")[number % 2]
        body = b'{"model":"%b"%b}' % (name.encode(), b',"stream":true' if streamed else b"")
        began = time.perf_counter()
        writer.write(post(body))
        head = await reader.readuntil(b"\r\n\r\n")
        took[name].append((time.perf_counter() - began) * 1000)
        assert head.startswith(b"HTTP/1.1 200")
        if streamed:
            await reader.readuntil(b"0\r\n\r\n")
        else:
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
    writer.close()
    return {name: times[WARM_UP:] for name, times in took.items()}


async def _load(port: int, model: str, connections: int, seconds: float, stream: bool) -> dict[str, float]:
    """What the load generator counted, and the CPU seconds that this process took meanwhile."""
    arguments = ["--port", str(port), "--model", model, "--connections", str(connections), "--seconds", str(seconds)]
    command = [sys.executable, str(ROOT / "benchmarks/proxy_load.py"), *arguments, *(["--stream"] if stream else [])]
    began_s = time.process_time()
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return {**json.loads(output), "cpu_s": time.process_time() - began_s}


async def under_load(port: int, seconds: float) -> None:
    """Prints requests a second and CPU time for each way."""
    print("\n| load | here | CPU us each | peer | CPU us each | errors |\n|---|---|---|---|---|---|")
    for what, connections, stream in (("requests/s", 1, False), ("requests/s", 64, False), ("chunks/s", 100, True)):
        unit = "chunks" if stream else "requests"
        cells: list[str] = []
        errors = 0.0
        for name in ("slow near", "slow far") if stream else ("near", "far"):
            got = await _load(port, name.replace(" ", "-"), connections, seconds, stream)
            cells += [f"{got[unit] / got['seconds']:,.0f}", f"{got['cpu_s'] / max(got[unit], 1) * 1e6:.1f}"]
            errors += got["errors"]
        print(f"| {what}, {connections} connections | {' | '.join(cells)} | {errors:.0f} |")


async def measure(paths: dict[str, str], folder: Path, requests: int, seconds: float) -> None:
    async with two_members(folder) as (there, here):
        behind = [Target(there.public, _model(f"{k}far"), EngineAddress(path)) for k, path in paths.items()]
        far = _server(there.public, behind, here.bulk.open_stream)
        there.services[StreamKind.HTTP] = far.serve_peer
        dispatch = FakeDispatch(
            [Target(here.public, _model(f"{k}near"), EngineAddress(path)) for k, path in paths.items()]
            + [Target(there.public, target.model) for target in behind]
        )
        own = LocalAnswers(dispatch.models, bytes, created_s=0)
        near = ApiServer(dispatch, own, ApiSettings(), here.bulk.open_stream, Metrics())
        sock = socket.create_server(("127.0.0.1", 0))
        await near.listen(sock)
        print("| answer | here p50 ms | peer p50 ms | added p50 ms | added p95 ms |\n|---|---|---|---|---|")
        for streamed in (False, True):
            took = await first_bytes(sock.getsockname()[1], requests, streamed)
            middle = {name: statistics.median(times) for name, times in took.items()}
            late = {name: statistics.quantiles(times, n=20)[18] for name, times in took.items()}
            kind = "streamed" if streamed else "whole"
            print(
                f"| {kind} | {middle['near']:.2f} | {middle['far']:.2f} | {middle['far'] - middle['near']:.2f} | "
                f"{late['far'] - middle['near']:.2f} |"
            )
        await under_load(sock.getsockname()[1], seconds)
        assert not here.over_quic, "the fast path was not taken"
        await near.close()
        await far.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as engines:
        paths: dict[str, str] = {}
        for kind, arguments in (("", ["--chunks", "4"]), ("slow-", ["--chunks", "40", "--rate", "20"])):
            paths[kind] = str(Path(folder) / f"{kind}engine.sock")
            engines.enter_context(_engine(["--socket", paths[kind], *arguments]))
        uvloop.run(measure(paths, Path(folder), options.requests, options.seconds))


@contextmanager
def _engine(arguments: list[str]) -> Iterator[None]:
    command = [sys.executable, str(ROOT / "benchmarks/proxy_backend.py"), *arguments]
    engine = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert engine.stdout is not None
        engine.stdout.readline()
        yield
    finally:
        engine.kill()
        engine.wait()


if __name__ == "__main__":
    main()
