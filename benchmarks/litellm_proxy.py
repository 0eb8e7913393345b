"""LiteLLM's proxy in front of a benchmark's backend, for rows that stand beside ours: installed, configured, started, ended.

    python benchmarks/litellm_proxy.py [--install] [--backend PORT] [--model NAME] [--workers 1]

Owns a virtual environment of its own below the user's cache folder, made once for each version of LiteLLM and Python (some 700 MB), so that
nothing of it is a dependency of agentmesh. `running` is for other benchmarks; the command line tries it out and waits for Enter.
LiteLLM makes no connection but to the backend: its price lists come from the package, and this version has no telemetry any more.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agentmesh.control.lock import FileLock

VERSION = "1.106.0"  # the newest on the day whose own dependencies could be had
INSTALL_TIMEOUT_S = 900.0
START_TIMEOUT_S = 120.0  # it imports for some 10 s
STOP_TIMEOUT_S = 10.0

OFFLINE = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
    "LITELLM_MODE": "PRODUCTION",  # reads no .env file
    "LITELLM_LOG": "ERROR",
    "NO_DOCS": "True",
    "DISABLE_ADMIN_UI": "True",
    "DO_NOT_TRACK": "1",
}


class CannotRun(Exception):
    """LiteLLM cannot be had or does not start here; the sentence says why."""


@dataclass(frozen=True)
class Running:
    """A proxy that answers on a loopback port."""

    port: int
    process: subprocess.Popen[bytes]


def folder() -> Path:
    """Where this version's virtual environment is or will be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    python = f"py{sys.version_info.major}.{sys.version_info.minor}"
    return cache / "agentmesh" / "benchmarks" / f"litellm-{VERSION}-{python}"


def installed() -> Path | None:
    """The program, if it is there and was installed to the end."""
    program = folder() / "bin" / "litellm"
    return program if (folder() / ".complete").exists() and program.exists() else None


def install() -> Path:
    """The program, installed if need be.

    Raises:
        CannotRun: there is no network, no space, or another process takes too long to install it.
    """
    place = folder()
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock.acquire(place.with_suffix(".lock"), INSTALL_TIMEOUT_S)
    if lock is None:
        raise CannotRun("Another process is installing LiteLLM.")
    with lock:
        if program := installed():
            return program
        shutil.rmtree(place, ignore_errors=True)
        print(f"installing LiteLLM {VERSION} into {place}", file=sys.stderr)
        wheels = [f"litellm[proxy]=={VERSION}"]
        for command in (
            [sys.executable, "-m", "venv", str(place)],
            [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wheels],
        ):
            try:
                done = subprocess.run(command, capture_output=True, timeout=INSTALL_TIMEOUT_S, check=False)
            except subprocess.TimeoutExpired:
                raise CannotRun(f"LiteLLM could not be installed within {INSTALL_TIMEOUT_S:g} s.") from None
            if done.returncode:
                last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
                raise CannotRun(f"LiteLLM could not be installed: {' '.join(last)}")
        (place / ".complete").touch()
    program = installed()
    assert program is not None
    return program


def configuration(backend_port: int, models: Sequence[str]) -> str:
    """LiteLLM's config file (JSON is YAML): each model at one OpenAI-compatible upstream, no retries, nothing counted elsewhere."""
    upstream = {"api_base": f"http://127.0.0.1:{backend_port}/v1", "api_key": "none"}
    whole = {
        "model_list": [
            {"model_name": model, "litellm_params": {"model": f"openai/{model}", **upstream}} for model in models
        ],
        "litellm_settings": {"num_retries": 0, "set_verbose": False},
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        # On loopback without a key, as the others in the comparison.
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},
    }
    return json.dumps(whole, indent=1)


@contextlib.contextmanager
def running(backend_port: int, models: Sequence[str], *, workers: int = 1) -> Iterator[Running]:
    """A proxy that answers, until the block ends. The caller may pin it to a core by `process.pid`.

    Raises:
        CannotRun: it cannot be installed, or did not answer in time; with the last lines of its log.
    """
    program = install()
    with tempfile.TemporaryDirectory(prefix="litellm-") as place:
        config, log = Path(place) / "config.yaml", Path(place) / "log"
        config.write_text(configuration(backend_port, models))
        port = free_port()
        command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--num_workers", str(workers)]
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        with log.open("wb") as output:
            # Its home is the temporary folder, so that no setting of the user's decides anything.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=place,
                env={**kept, **OFFLINE, "HOME": place},
            )
        try:
            wait_ready(port, process, log)
            yield Running(port, process)
        finally:
            stop(process)


def wait_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it says that it is alive. Raises: CannotRun."""
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health/liveliness")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.2)
    last = " | ".join(log.read_text(errors="replace").strip().splitlines()[-5:])
    why = f"ended with {process.returncode}" if process.returncode is not None else "did not answer in time"
    raise CannotRun(f"LiteLLM {why}: {last}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End it and its workers: the group that it was started as."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
            if number == signal.SIGKILL:
                return


def free_port() -> int:
    """A loopback port that was free a moment ago: LiteLLM cannot be given a socket."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description="LiteLLM's proxy for benchmarks.")
    parser.add_argument("--install", action="store_true", help="only install it")
    parser.add_argument("--backend", type=int, default=8080, metavar="PORT", help="an OpenAI-compatible server")
    parser.add_argument("--model", default="model", metavar="NAME")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    try:
        if arguments.install:
            print(install())
            return
        with running(arguments.backend, [arguments.model], workers=arguments.workers) as proxy:
            print(f"http://127.0.0.1:{proxy.port}/v1 for model {arguments.model}; Enter ends it")
            input()
    except CannotRun as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
