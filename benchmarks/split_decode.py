"""Tokens a second of a model that is split over 2 and 3 hosts: through the relay and over raw TCP RPC in turn, with a delay between hosts.

    python benchmarks/split_decode.py [--bin-dir DIR] [--quick] [--direct] [--rounds 5] [--tokens 12]

The hosts are network namespaces on this machine, and a router between them adds the delay and counts what crosses (tests/fakes/delay_line.py):
needs root. Only the first row is without it: hosts are then processes on loopback. The model is generated: 730 MB in 12 layers (--quick: 245 MB
in 4), half of them on the worker, or two thirds on two workers; the output stays on the host. One thread computes, whichever host it is on.
The draft is generated too, and foretells the text but for a known share of tokens; it runs on the host.

Speeds are the best of the rounds. --direct measures a trial instead, in which activations go from worker to worker (split_direct.py).
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from agentmesh.inference.engine.draft_arguments import draft_arguments  # noqa: E402
from agentmesh.inference.rpc.gateway import RpcGateway  # noqa: E402
from benchmarks.split_direct import Activations, use_on_host  # noqa: E402
from benchmarks.split_hosts import Answer, Hosts, TimedServer, find_engine, split_arguments, split_hosts  # noqa: E402
from benchmarks.split_model import DRAFT, QUICK, TARGET, Table, write_model  # noqa: E402
from tests.fakes.delay_line import DelayLine, can_make_lines  # noqa: E402

PROMPT = "The mesh joins machines as equals, and"
RTTS_MS = (0.0, 5.0, 10.0, 20.0)
DRAFT_TOKENS = 8
WRONG_SHARES = (0.21, 0.14)  # of the draft's tokens
MIB = 1 << 20

# mesh-llm's published ones: other machines and another model, so only their course can be compared.
REFERENCE_TOK_S = {0.0: 60.2, 5.0: 30.1, 10.0: 21.4, 20.0: 12.6}  # three nodes on one machine, simulated latency
REFERENCE_DRAFT = "5.3 -> 6.2 tok/s with 56 % accepted (1.17 x), 7.3 with 75 % (1.38 x)"


@dataclass(frozen=True)
class Cost:
    """What was said between the hosts: by the gateways' counters, and by the line's, with all headers, both ways."""

    round_trips: float = 0.0
    written_bytes: float = 0.0
    crossed_bytes: float = 0.0

    def over(self, less: Cost, count: int) -> Cost:
        """A `count`th of what it is more than `less`."""
        return Cost(
            (self.round_trips - less.round_trips) / count,
            (self.written_bytes - less.written_bytes) / count,
            (self.crossed_bytes - less.crossed_bytes) / count,
        )


@dataclass
class Figures:
    """Of one row. Speeds in tokens a second: the best of the rounds, as whatever else runs on the machine only makes them less."""

    best: dict[str, float] = field(default_factory=dict[str, float])  # by way: solo, raw, relayed
    ratios: list[float] = field(default_factory=list[float])  # relayed to raw, pair by pair
    cost: dict[str, Cost] = field(default_factory=dict[str, Cost])  # a token and worker

    def share(self, delay_s: float) -> float:
        """Relayed to 1 / (what the host alone takes for a token + `delay_s`)."""
        return self.best["relayed"] * (1 / self.best["solo"] + delay_s)


@dataclass(frozen=True)
class Setting:
    """What is measured, and how often."""

    layers: int
    rounds: int
    tokens: int


class Pair:
    """Two llama-servers on the same workers, over raw RPC and through the relay; and one on the host alone."""

    def __init__(self, hosts: Hosts, workers: int, setting: Setting, line: DelayLine | None) -> None:
        self._hosts = hosts
        self._workers = workers
        self._setting = setting
        self._line = line
        self._stack = AsyncExitStack()
        self._gateways: list[RpcGateway] = []
        self._servers: dict[str, TimedServer] = {}

    async def __aenter__(self) -> Pair:
        # As the product does: deflated unless the peer is on loopback.
        gateways = self._hosts.gateways(self._workers, compress=self._line is not None)
        joined = await self._stack.enter_async_context(gateways)
        self._gateways = [gateway for gateway, _ in joined]
        endpoints = {"raw": self._hosts.raw_endpoints(self._workers), "relayed": [end for _, end in joined]}
        for name, ends in endpoints.items():
            layers = self._setting.layers * self._workers // (self._workers + 1)
            server = self._hosts.serve(*split_arguments(ends, layers))
            self._stack.push_async_callback(server.end)
            await server.ready()
            self._servers[name] = server
        server = self._servers["solo"] = self._hosts.serve()
        self._stack.push_async_callback(server.end)
        await server.ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def measure(self) -> Figures:
        """All in turn."""
        figures = Figures()
        texts: set[str] = set()
        prompt: dict[str, Cost] = {}
        for name, server in self._servers.items():
            await server.measure(PROMPT, self._setting.tokens)  # graphs of new shapes, sizes asked for the first time
            prompt[name] = (await self._measure(server, 1))[1]
        for _ in range(self._setting.rounds):
            speeds: dict[str, float] = {}
            for name, server in self._servers.items():
                answer, cost = await self._measure(server, self._setting.tokens)
                texts.add(answer.text)
                speeds[name] = answer.tokens_per_s
                figures.best[name] = max(answer.tokens_per_s, figures.best.get(name, 0.0))
                figures.cost[name] = cost.over(prompt[name], self._workers * (self._setting.tokens - 1))
            figures.ratios.append(speeds["relayed"] / speeds["raw"])
        if len(texts) != 1:
            raise SystemExit(f"The answers differ: {sorted(texts)}")
        return figures

    async def _measure(self, server: TimedServer, tokens: int) -> tuple[Answer, Cost]:
        before = self._cost()
        answer = await server.measure(PROMPT, tokens)
        return answer, self._cost().over(before, 1)

    def _cost(self) -> Cost:
        counters = [gateway.counters for gateway in self._gateways]
        return Cost(
            sum(each.round_trips for each in counters),
            sum(each.out_bytes + each.reply_bytes for each in counters),
            sum(self._line.counts().bytes.values()) if self._line else 0,
        )


async def with_draft(hosts: Hosts, draft: Path | None, setting: Setting) -> list[Answer]:
    """A relayed split over one worker; three times the tokens, as each round trip brings several."""
    async with hosts.gateways(1) as joined:
        arguments = split_arguments([joined[0][1]], setting.layers // 2)
        if draft is not None:
            arguments += draft_arguments(hosts.engine, draft, DRAFT_TOKENS)
        server = hosts.serve(*arguments)
        try:
            await server.ready()
            await server.measure(PROMPT, setting.tokens)
            return [await server.measure(PROMPT, 3 * setting.tokens) for _ in range(setting.rounds)]
        finally:
            await server.end()


# ------------------------------------------------------------------ what is printed


def _row(name: str, rtt_ms: float, workers: int, figures: Figures) -> str:
    best, cost, raw_cost = figures.best, figures.cost["relayed"], figures.cost["raw"]
    reference = f"{REFERENCE_TOK_S[rtt_ms]:.1f}" if workers == 2 and rtt_ms in REFERENCE_TOK_S else ""
    crossed = f"{raw_cost.crossed_bytes / 1000:.1f} / {cost.crossed_bytes / 1000:.1f}"
    return (
        f"| {name} | {best['solo']:.1f} | {best['raw']:.1f} | {best['relayed']:.1f} | {best['relayed'] / best['raw']:.2f} "
        f"| {statistics.median(figures.ratios):.2f} | {figures.share(workers * rtt_ms / 1000):.2f} "
        f"| {cost.round_trips:.2f} | {cost.written_bytes / 1000:.1f} | {crossed if cost.crossed_bytes else ''} | {reference} |"
    )


def _head(size: int) -> None:
    print(f"| {size / 1e6:.0f} MB | solo tok/s | raw tok/s | relayed tok/s | relayed / raw | in pairs, median ", end="")
    print(
        "| relayed x (1 / solo + workers x RTT) | round trips a token and worker | kB relayed a token and worker ",
        end="",
    )
    print("| kB crossed, raw / relayed | mesh-llm, 3 nodes, tok/s |")
    print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)


async def over_line(hosts: Hosts, line: DelayLine, setting: Setting, rtts_ms: Sequence[float]) -> None:
    """The rows with a delay."""
    for workers in (1, 2):
        line.shape()
        async with Pair(hosts, workers, setting, line) as pair:
            for rtt_ms in rtts_ms:
                line.shape(rtt_ms=rtt_ms)
                figures = await pair.measure()
                name = f"{workers + 1} nodes, {rtt_ms:g} ms"
                print(_row(name, rtt_ms, workers, figures), flush=True)


async def drafts(hosts: Hosts, line: DelayLine, setting: Setting, folder: Path) -> None:
    """The lines on drafts."""
    line.shape(rtt_ms=RTTS_MS[-1])
    plain = max(each.tokens_per_s for each in await with_draft(hosts, None, setting))
    print(f"\n2 nodes at {RTTS_MS[-1]:g} ms without a draft: {plain:.1f} tok/s")
    for share in WRONG_SHARES:
        draft = write_model(folder / f"draft-{share}.gguf", DRAFT, Table.cycle().spoiled(share))
        answers = await with_draft(hosts, draft, setting)
        speed = max(answer.tokens_per_s for answer in answers)
        accepted = sum(answer.accepted for answer in answers) / max(1, sum(answer.drafted for answer in answers))
        size = draft.stat().st_size / 1e6
        print(
            f"with a draft of {size:.0f} MB, {DRAFT_TOKENS} tokens ahead, {accepted:.0%} accepted: "
            f"{speed:.1f} tok/s, {speed / plain:.2f} x",
            flush=True,
        )
    print(f"mesh-llm, Qwen2.5-32B, two nodes at 20 ms: {REFERENCE_DRAFT}")


async def run(chosen: argparse.Namespace, line: DelayLine | None, folder: Path) -> None:
    shape = QUICK if chosen.quick else TARGET
    setting = Setting(shape.layers, 2 if chosen.quick else chosen.rounds, chosen.tokens)
    engine = await find_engine(chosen.bin_dir)
    model = write_model(folder / "model.gguf", shape, Table.cycle())
    if line is None:
        _head(model.stat().st_size)
        async with split_hosts(engine, model, 1) as hosts, Pair(hosts, 1, setting, None) as pair:
            print(_row("2 nodes, loopback", 0, 1, await pair.measure()), flush=True)
        return
    if chosen.direct:
        use_on_host()
        async with split_hosts(engine, model, 2, line, direct=True) as hosts, Pair(hosts, 2, setting, line) as pair:
            for rtt_ms in RTTS_MS[::3]:
                line.shape(rtt_ms=rtt_ms)
                print(_row(f"3 nodes, {rtt_ms:g} ms, direct", rtt_ms, 2, await pair.measure()), flush=True)
            print(f"{Activations.direct} activations went from worker to worker")
        return
    async with split_hosts(engine, model, 2, line) as hosts:
        await over_line(hosts, line, setting, RTTS_MS[:: 3 if chosen.quick else 1])
        await drafts(hosts, line, setting, folder)


def _run(chosen: argparse.Namespace, line: DelayLine | None, folder: Path) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(chosen, line, folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin-dir", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--direct", action="store_true", help="only the trial of split_direct.py, beside raw RPC")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=12)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="split-decode-") as name:
        if not chosen.direct:
            _run(chosen, None, Path(name))
        if not can_make_lines():
            print("The rows with a delay need root, iproute2 and /dev/net/tun.")
            return
        with DelayLine(3) as line, line.inside(0):
            _run(chosen, line, Path(name))


if __name__ == "__main__":
    main()
