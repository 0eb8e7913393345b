"""Time until a split model answers: alone, over raw TCP RPC and through the relay, on loopback and at 1 Gbit/s.

    python benchmarks/split_load.py [--bin-dir DIR] [--quick] [--rounds 3]

The hosts and the line between them are those of split_decode.py, and so is the model; the line is a tenth of a millisecond long. The worker
has half of the layers, or all. Nothing is known of the tensors' hashes at the relay's first load: "unaided" without the program that
hashes beside the engine, "first" with it, begun at the same moment as llama-server (a node begins earlier, when it asks workers). At the
second they are known. Files are in the page cache. What crosses is counted by the line, with all headers.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import uvloop

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from agentmesh.inference.rpc.weights import WeightHashes  # noqa: E402
from benchmarks.split_hosts import Hosts, TimedServer, find_engine, split_arguments, split_hosts  # noqa: E402
from benchmarks.split_model import QUICK, TARGET, Table, write_model  # noqa: E402
from tests.fakes.delay_line import DelayLine, can_make_lines  # noqa: E402

NAMES = ("solo", "raw", "unaided", "first", "second")
RELAYED = NAMES[2:]
GIGABIT = 1e9
LINE_RTT_MS = 0.1
JUMBO_BYTES = 9_000  # the router is a program: with packets of 1500 bytes it would be the bound, not the line
REFERENCE = "mesh-llm, 17 GB: stock RPC 16.88 GB and 14+ minutes; its fork 0 bytes and ~9 s"


class Loads:
    """Loads of one model on one world, in turn."""

    def __init__(self, hosts: Hosts, layers: int, line: DelayLine | None) -> None:
        self._hosts = hosts
        self._layers = layers
        self._line = line
        self.took_s: dict[str, list[float]] = {name: [] for name in NAMES}
        self.crossed: dict[str, int] = {}

    async def round(self) -> None:
        """One load of each kind."""
        await self._load("solo", self._hosts.serve())
        await self._load("raw", self._split(self._hosts.raw_endpoints(1)))
        none, hashes = WeightHashes(), WeightHashes()
        for name, known in (("unaided", none), ("first", hashes), ("second", hashes)):
            async with self._hosts.gateways(1, known, compress=self._line is not None) as joined:
                server = self._split([joined[0][1]])
                if name == "first":
                    await asyncio.gather(self._load(name, server), self._hosts.hash(known, self._layers))
                else:
                    await self._load(name, server)

    def _split(self, endpoints: Sequence[str]) -> TimedServer:
        return self._hosts.serve(*split_arguments(endpoints, self._layers))

    async def _load(self, name: str, server: TimedServer) -> None:
        before = self._line.counts() if self._line else None
        try:
            self.took_s[name].append(await server.ready())
            if self._line and before:
                self.crossed[name] = sum(self._line.counts().since(before).bytes.values())
        finally:
            await server.end()

    def row(self, name: str) -> str:
        """The best, as whatever else runs on the machine only makes it longer, and ratios of these."""
        best = {each: min(self.took_s[each]) for each in NAMES}
        cells = [f"{each:.2f}" for each in best.values()]
        for relayed in RELAYED:
            cells += [f"{best[relayed] / best[other]:.2f}" for other in ("solo", "raw")]
        crossed = (f"{self.crossed[each]:,}" if each in self.crossed else "" for each in NAMES[1:])
        return f"| {name} | {' | '.join((*cells, *crossed))} |"


async def run(chosen: argparse.Namespace, line: DelayLine | None, folder: Path) -> None:
    shape = QUICK if chosen.quick else TARGET
    engine = await find_engine(chosen.bin_dir)
    model = folder / "model.gguf"
    if line is None:
        write_model(model, shape, Table.cycle())
        heads = [f"{model.stat().st_size / 1e6:.0f} MB", *(f"{name} s" for name in NAMES)]
        heads += [f"{name} / {other}" for name in RELAYED for other in ("solo", "raw")]
        heads += [f"bytes crossed, {name}" for name in NAMES[1:]]
        print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)
    else:
        line.shape(rtt_ms=LINE_RTT_MS, bits_per_s=GIGABIT)
    async with split_hosts(engine, model, 1, line) as hosts:
        for layers, share in ((shape.layers // 2, "half"), (shape.layers, "all")):
            loads = Loads(hosts, layers, line)
            for _ in range(chosen.rounds):
                await loads.round()
            print(loads.row(f"{'1 Gbit/s' if line else 'loopback'}, {share} on the worker"), flush=True)


def _run(chosen: argparse.Namespace, line: DelayLine | None, folder: Path) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(chosen, line, folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin-dir", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="split-load-") as name:
        _run(chosen, None, Path(name))
        if can_make_lines():
            with DelayLine(2, mtu=JUMBO_BYTES) as line, line.inside(0):
                _run(chosen, line, Path(name))
        else:
            print("The row of the line needs root, iproute2 and /dev/net/tun.")
    print(f"\n{REFERENCE}")


if __name__ == "__main__":
    main()
