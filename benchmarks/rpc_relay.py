"""What the RPC relay adds and saves: real llama-server and ggml-rpc-server, through two members of a mesh and raw over TCP, in turn.

    python benchmarks/rpc_relay.py --bin-dir DIR [--model FILE.gguf] [--rounds 3] [--round-trips 1000]

Everything is on loopback; both nodes live in one process, so the work of both ends is on one core. Without --model a dense model of
232 MB is generated (12 tensors over 10 MiB, the others under). Prints medians, and the ratio of relayed to raw.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from agentmesh.core.paths import Home  # noqa: E402
from agentmesh.inference.engine.engine import Engine, EngineSearch  # noqa: E402
from agentmesh.inference.engine.locate import find_engines  # noqa: E402
from agentmesh.inference.engine.probe import probe  # noqa: E402
from agentmesh.inference.logic.rpc_wire import Command  # noqa: E402
from agentmesh.inference.models.identity import FileIdentities  # noqa: E402
from agentmesh.inference.rpc.exit import RpcJob  # noqa: E402
from agentmesh.inference.rpc.gateway import RpcGateway  # noqa: E402
from agentmesh.inference.rpc.weights import WeightFiles, WeightHashes  # noqa: E402
from tests.fakes.fake_rpc_server import FakeClient  # noqa: E402
from tests.fakes.mesh_nodes import eventually  # noqa: E402
from tests.fakes.rpc_world import DENSE, Carried, Server, is_listening, rpc_server, two_members  # noqa: E402
from tests.fakes.tiny_gguf import write_tiny  # noqa: E402

TOKENS = 100
ON_WORKER = ("-ngl", "99", "--device", "RPC0")


async def round_trips(ports: dict[str, int], count: int) -> dict[str, list[float]]:
    """Microseconds from GET_DEVICE_MEMORY to its reply; one way after the other, as the RPC server serves one at a time."""
    took: dict[str, list[float]] = {name: [] for name in ports}
    for _ in range(4):
        for name, port in ports.items():
            client = await FakeClient.connect(port)
            await client.hello()
            await client.alloc(1)
            for _ in range(count // 4):
                began = time.perf_counter()
                await client.ask(Command.GET_DEVICE_MEMORY, bytes(4))
                took[name].append((time.perf_counter() - began) * 1e6)
            client.close()
            await asyncio.sleep(0.2)
    return took


async def serve(engine: Engine, model: Path, folder: Path, name: str, port: int | None) -> tuple[float, float]:
    """(seconds to load, tokens a second)."""
    where = ("--rpc", f"127.0.0.1:{port}", *ON_WORKER) if port is not None else ()
    server = Server(engine, model, folder, name, *where)
    try:
        loaded_s = await server.ready()
        await server.tokens(count=4)
        began = time.perf_counter()
        await server.tokens(count=TOKENS)
        return loaded_s, TOKENS / (time.perf_counter() - began)
    finally:
        server.program.process.terminate()
        await asyncio.to_thread(server.program.process.wait, 20)
        await asyncio.sleep(0.3)


def _print(title: str, unit: str, raw: Sequence[float], relayed: Sequence[float]) -> None:
    a, b = statistics.median(raw), statistics.median(relayed)
    print(f"{title:34} raw {a:9.2f} {unit}, relayed {b:9.2f} {unit}, ratio {b / a:.2f}")


async def run(engine: Engine, given: Path | None, rounds: int, count: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="rpc-relay-"))
    model = given or write_tiny(folder / "dense.gguf", DENSE)[0]
    program, worker_port = rpc_server(engine, folder)
    weights = await WeightFiles.open(model, FileIdentities(folder / "identities.json"))
    try:
        await eventually(lambda: is_listening(worker_port))
        async with two_members(folder) as (host, worker, exits):
            exits.add(RpcJob("model", worker_port, lambda _: True, weights))
            carried = Carried()
            opener = carried.opener(host, worker.key.public)
            gateway = RpcGateway(
                opener, job="model", worker="worker", weights=weights, hashes=WeightHashes(), compress=False
            )
            ports = {"raw": worker_port, "relayed": await gateway.listen()}
            trips = await round_trips(ports, count)
            _print("round trip", "us", trips["raw"], trips["relayed"])
            loads: dict[str, list[float]] = {"solo": [], "raw": [], "relayed": []}
            speeds: dict[str, list[float]] = {"solo": [], "raw": [], "relayed": []}
            for number in range(rounds):
                for name in ("solo", "raw", "relayed"):
                    load_s, speed = await serve(engine, model, folder, f"{name}-{number}", ports.get(name))
                    loads[name].append(load_s)
                    speeds[name].append(speed)
            _print(f"load of {model.stat().st_size / 1e6:.0f} MB", "s", loads["raw"], loads["relayed"])
            print(f"{'':34} first {loads['relayed'][0]:.2f} s; solo {statistics.median(loads['solo']):.2f} s")
            _print("decode, all layers on one worker", "tok/s", speeds["raw"], speeds["relayed"])
            print(f"bytes to the worker, all loads and tokens: {carried.sent:,}")
            await gateway.close()
    finally:
        program.kill()
        weights.close()


async def _engine(folder: Path) -> Engine:
    search = EngineSearch(folder, Home(Path(tempfile.mkdtemp())), None, {"PATH": ""})
    return await probe(next(iter(find_engines(search))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin-dir", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--round-trips", type=int, default=1000)
    chosen = parser.parse_args()

    async def everything() -> None:
        await run(await _engine(chosen.bin_dir), chosen.model, chosen.rounds, chosen.round_trips)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(everything())


if __name__ == "__main__":
    main()
