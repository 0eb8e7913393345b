"""A worker of the benchmarks of splits, in a process of its own: a member of the mesh with its RPC servers. Started by split_hosts.py.

Reads one line of JSON (see `Wanted`), writes one (`Ready`), and ends when its input does.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec
import uvloop

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from agentmesh.inference.models.identity import FileIdentities  # noqa: E402
from agentmesh.inference.rpc.exit import RpcExits, RpcJob  # noqa: E402
from agentmesh.inference.rpc.weights import WeightFiles  # noqa: E402
from agentmesh.mesh.streams import StreamKind  # noqa: E402
from benchmarks.split_direct import use_on_worker  # noqa: E402
from tests.fakes.mesh_nodes import TestNode, eventually  # noqa: E402
from tests.fakes.rpc_world import Program, free_port  # noqa: E402

JOB = "model"


class Wanted(msgspec.Struct, frozen=True):
    """What the worker is. `raw` is served to llama-server itself, without the relay; on `address`."""

    name: str
    folder: str
    address: str
    token: str
    rpc_program: str
    model: str
    direct: bool = False


class Ready(msgspec.Struct, frozen=True):
    """Where it is."""

    key_hex: str
    raw_port: int


def _listens(port: int) -> bool:
    rows = Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]
    return any(row.split()[1].endswith(f":{port:04X}") and row.split()[3] == "0A" for row in rows)


async def _serve(wanted: Wanted) -> None:
    folder = Path(wanted.folder)
    if wanted.direct:
        await use_on_worker(wanted.address)
    programs: list[Program] = []
    ports: list[int] = []
    for name, host in (("raw", wanted.address), ("relayed", "127.0.0.1")):
        port = free_port()
        command = [wanted.rpc_program, "-H", host, "-p", str(port), "-t", "1"]
        programs.append(Program(command, folder / f"{wanted.name}-{name}.log"))
        ports.append(port)
    try:
        weights = await WeightFiles.open(Path(wanted.model), FileIdentities(folder / f"{wanted.name}-identities.json"))
        node = TestNode(folder, wanted.name, fast_path=True, bind_host=wanted.address)
        await (await node.join(wanted.token)).start()
        exits = RpcExits()
        node.mesh.serve(StreamKind.RPC, exits.serve)
        exits.add(RpcJob(JOB, ports[1], lambda _: True, weights))
        await eventually(lambda: all(map(_listens, ports)))
        print(msgspec.json.encode(Ready(node.key.public.hex(), ports[0])).decode(), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await node.mesh.stop()
    finally:
        for program in programs:
            program.kill()


def main() -> None:
    wanted = msgspec.json.decode(sys.stdin.readline(), type=Wanted)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(wanted))


if __name__ == "__main__":
    main()
