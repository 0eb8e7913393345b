"""What the API proxy costs, beside nginx and beside no proxy at all, in one run on one machine.

    python benchmarks/proxy.py [--seconds 4] [--repeat 3] [--streams 256] [--without nginx] [--litellm]

The proxy under test is pinned to one core; the load generator and the backend share another. `ours` is the whole data path
with routing, queues and metrics; nginx has one worker and a pool of kept-alive connections to the backend; the bare relay
(proxy_relay.py) is the least that a proxy in this language costs: the same reads and writes, and nothing else. Every figure is
the middle one of `--repeat` rounds, in which the candidates take turns. On two cores load and backend are often the limit, so
beside requests/s stands what one request costs the proxy in CPU time (from the process's own counters): requests a CPU
second is what one core could do. `--litellm` adds LiteLLM's proxy with one worker, which it installs first (litellm_proxy.py).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import uvloop

ROOT = Path(__file__).resolve().parents[1]
START_S = 10.0
LITELLM_WARM_S = 3.0

NGINX = """\
{user}
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log crit;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 1000000000;
    upstream backend {{ server unix:{socket}; keepalive 512; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location / {{
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


@dataclass
class Running:
    """A candidate that listens. `process` is what is measured; None for the backend itself."""

    port: int
    process: psutil.Process | None

    def cpu_s(self) -> float:
        if self.process is None:
            return 0.0
        times = self.process.cpu_times()
        return times.user + times.system


def pin(process: subprocess.Popen[bytes] | subprocess.Popen[str], core: int) -> None:
    if (os.cpu_count() or 1) > 1:
        psutil.Process(process.pid).cpu_affinity([core])


@contextmanager
def child(command: list[str], core: int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        pin(process, core)
        yield process
    finally:
        process.kill()
        process.wait()


def port_of(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline().split()[1])


@contextmanager
def ours(path: Path) -> Iterator[Running]:
    with child([sys.executable, __file__, "--serve", str(path)], 0) as process:
        yield Running(port_of(process), psutil.Process(process.pid))


@contextmanager
def bare_relay(path: Path) -> Iterator[Running]:
    with child([sys.executable, str(ROOT / "benchmarks/proxy_relay.py"), "--socket", str(path)], 0) as process:
        yield Running(port_of(process), psutil.Process(process.pid))


@contextmanager
def nginx(path: Path) -> Iterator[Running]:
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
        probe.close()
        config = Path(folder) / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""  # the socket's folder is ours alone
        config.write_text(NGINX.format(user=user, folder=folder, socket=path, port=port))
        binary = shutil.which("nginx") or "/usr/sbin/nginx"
        master = subprocess.Popen([binary, "-c", str(config), "-e", f"{folder}/error.log"])
        try:
            pin(master, 0)
            worker = _first_child(psutil.Process(master.pid))
            if (os.cpu_count() or 1) > 1:
                worker.cpu_affinity([0])
            yield Running(port, worker)
        finally:
            master.terminate()
            master.wait()


def _first_child(master: psutil.Process) -> psutil.Process:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if children := master.children():
            return children[0]
        time.sleep(0.02)
    raise SystemExit("nginx did not start")


@contextmanager
def litellm(backend_port: int) -> Iterator[Running]:
    from litellm_proxy import running

    with running(backend_port, ["m"]) as proxy:
        pin(proxy.process, 0)
        target = Running(proxy.port, psutil.Process(proxy.process.pid))
        measure(target, 4, LITELLM_WARM_S)  # it imports much of itself at the first requests
        yield target


def candidates(without: set[str]) -> dict[str, Callable[[Path], object]]:
    """What is compared, by name; each yields a Running while it listens. Add others here."""
    known: dict[str, Callable[[Path], object]] = {"nginx": nginx, "bare relay": bare_relay, "ours": ours}
    return {name: start for name, start in known.items() if name not in without}


@dataclass
class Round:
    """One measurement."""

    requests_per_s: float
    cpu_us: float  # of the proxy, for one request or one chunk
    p50_ms: float
    p99_ms: float
    errors: int


def measure(target: Running, connections: int, seconds: float, *, stream: bool = False) -> Round:
    command = [sys.executable, str(ROOT / "benchmarks/proxy_load.py"), "--port", str(target.port)]
    command += ["--connections", str(connections), "--seconds", str(seconds), *(["--stream"] if stream else [])]
    cpu = target.cpu_s()
    with child(command, 1) as process:
        assert process.stdout is not None
        seen = json.loads(process.stdout.read())
    cpu = target.cpu_s() - cpu
    units = seen["chunks"] if stream else seen["requests"]
    return Round(units / seen["seconds"], cpu * 1e6 / max(units, 1), seen["p50_ms"], seen["p99_ms"], seen["errors"])


def middle(rounds: list[Round]) -> Round:
    def of(name: str) -> float:
        return statistics.median(getattr(one, name) for one in rounds)

    return Round(of("requests_per_s"), of("cpu_us"), of("p50_ms"), of("p99_ms"), sum(r.errors for r in rounds))


def compare(
    running: dict[str, Running], repeat: int, connections: int, seconds: float, stream: bool = False
) -> dict[str, Round]:
    rounds: dict[str, list[Round]] = {name: [] for name in running}
    for _ in range(repeat):
        for name, one in running.items():
            rounds[name].append(measure(one, connections, seconds, stream=stream))
    return {name: middle(found) for name, found in rounds.items()}


def table(title: str, unit: str, found: dict[str, Round]) -> None:
    base = found.get("nginx")
    print(f"\n{title}\n")
    print(f"| | {unit}s/s | x nginx | CPU us per {unit} | x nginx | first byte p50 ms | p99 ms | errors |")
    print("|---|---|---|---|---|---|---|---|")
    for name, one in found.items():
        has_cpu = one.cpu_us > 0
        rate = f"{one.requests_per_s / base.requests_per_s:.2f}" if base and base.requests_per_s else ""
        cost = f"{one.cpu_us / base.cpu_us:.2f}" if base and has_cpu and base.cpu_us else ""
        cpu = f"{one.cpu_us:.1f}" if has_cpu else ""
        print(
            f"| {name} | {one.requests_per_s:,.0f} | {rate} | {cpu} | {cost} | {one.p50_ms:.2f} | {one.p99_ms:.2f} | {one.errors} |"
        )


def compare_all(options: argparse.Namespace) -> None:
    without = set(options.without)
    with tempfile.TemporaryDirectory() as folder:
        fast, slow = Path(folder) / "fast.sock", Path(folder) / "slow.sock"
        script = str(ROOT / "benchmarks/proxy_backend.py")
        rate = ["--chunks", "40", "--rate", str(options.rate)]
        with ExitStack() as stack:
            direct = stack.enter_context(child([sys.executable, script, "--socket", str(fast)], 1))
            paced = stack.enter_context(child([sys.executable, script, "--socket", str(slow), *rate], 1))
            ports = {fast: port_of(direct), slow: port_of(paced)}
            for path, jobs in ((fast, ((64, False), (1, False))), (slow, ((options.streams, True),))):
                with ExitStack() as inner:
                    running = {"direct": Running(ports[path], None)}
                    for name, start in candidates(without).items():
                        running[name] = inner.enter_context(start(path))  # type: ignore[arg-type]
                    if options.litellm:
                        running["LiteLLM"] = inner.enter_context(litellm(ports[path]))
                    for connections, stream in jobs:
                        kind = f"streams, {options.rate:g} chunks/s each" if stream else "connections, not streamed"
                        found = compare(running, options.repeat, connections, options.seconds, stream)
                        table(f"{connections} {kind}", "chunk" if stream else "request", found)


async def serve(path: str) -> None:
    """Our proxy, whole, before one engine; it has room for every request."""
    from agentmesh.inference.logic.proxy_limits import GC_THRESHOLDS
    from agentmesh.inference.logic.target import EngineAddress, ServedModel, Target
    from agentmesh.inference.proxy.answers import LocalAnswers
    from agentmesh.inference.proxy.directory import Directory
    from agentmesh.inference.proxy.dispatch import Dispatcher
    from agentmesh.inference.proxy.metrics import Metrics
    from agentmesh.inference.proxy.server import ApiServer
    from agentmesh.inference.proxy.settings import ApiSettings
    from agentmesh.mesh.streams import StreamKind
    from agentmesh.mesh.transport import Stream

    async def no_peer(node: bytes, kind: StreamKind) -> Stream:
        raise AssertionError("there are no peers here")

    loop = asyncio.get_running_loop()
    me = bytes(32)
    directory = Directory(me, dict, loop.time)
    metrics = Metrics()
    dispatcher = Dispatcher(directory, metrics, loop.time, loop.call_later)
    model = ServedModel(id="m", ready=True, slots=1024, context_tokens=8192, capabilities=("chat",))
    directory.set_own([Target(me, model, EngineAddress(socket=path))])
    own = LocalAnswers(dispatcher.models, metrics.render, created_s=int(time.time()))
    server = ApiServer(dispatcher, own, ApiSettings(), no_peer, metrics)
    sock = socket.create_server(("127.0.0.1", 0))
    await server.listen(sock)
    gc.set_threshold(*GC_THRESHOLDS)  # as in a node
    print(f"port {sock.getsockname()[1]}", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--rate", type=float, default=20.0, help="chunks a second of each stream")
    parser.add_argument("--without", action="append", default=[], help="a candidate to leave out")
    parser.add_argument("--litellm", action="store_true", help="also LiteLLM's proxy, installed into the user's cache")
    parser.add_argument("--serve", metavar="SOCKET", help="be the proxy under test (used by this script itself)")
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve(options.serve))
    else:
        compare_all(options)


if __name__ == "__main__":
    main()
