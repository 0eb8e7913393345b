"""What asking a peer adds to the first byte: the same engine, once on this node and once behind a peer, over real TLS on loopback.

    python benchmarks/proxy_peer.py [--requests 500]

Both nodes' proxies, the mesh's fast path between them and the client live in one process, the engine in another; so what is
shown is the whole added work of both nodes on one core, without a network. One request at a time, the two models in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import statistics
import subprocess
import sys
import tempfile
import time
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
    return ServedModel(id=name, ready=True, slots=8, context_tokens=8192, capabilities=("chat",))


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


async def measure(path: str, folder: Path, requests: int) -> None:
    async with two_members(folder) as (there, here):
        far = _server(there.public, [Target(there.public, _model("far"), EngineAddress(path))], here.bulk.open_stream)
        there.services[StreamKind.HTTP] = far.serve_peer
        dispatch = FakeDispatch(
            [Target(here.public, _model("near"), EngineAddress(path)), Target(there.public, _model("far"))]
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
        assert not here.over_quic, "the fast path was not taken"
        await near.close()
        await far.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "engine.sock")
        command = [sys.executable, str(ROOT / "benchmarks/proxy_backend.py"), "--socket", path]
        engine = subprocess.Popen([*command, "--chunks", "4"], stdout=subprocess.PIPE)
        try:
            assert engine.stdout is not None
            engine.stdout.readline()
            uvloop.run(measure(path, Path(folder), options.requests))
        finally:
            engine.kill()
            engine.wait()


if __name__ == "__main__":
    main()
