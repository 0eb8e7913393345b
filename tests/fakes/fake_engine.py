"""A controllable program that looks like llama-server: the same options, endpoints and event streams, and any misbehaviour.

    python tests/fakes/fake_engine.py --model m.gguf --port 0 --word alpha --tokens 20 --tokens-per-second 50

What it answers is `alpha0 alpha1 alpha2 …` (see fake_engine_answers.py); a last message of the assistant is continued. Options
beyond llama-server's own are listed by --help under "fake engine"; `$FAKE_ENGINE` holds more of them. In tests:

    engine = write_fake_engine(folder, "--ready-after", "0.5")     # an executable `llama-server`, e.g. for --bin-dir
    engine = fake_engine("--word", "beta")                         # a probed Engine

Unknown options end it with an error, as with the real server. Standard library only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentmesh.inference.engine.engine import Device, Engine

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

HELP = """\
----- common params -----

-h,    --help, --usage                  print usage and exit
--version                               show version and build info
-t,    --threads N                      number of CPU threads to use during generation (default: -1)
-c,    --ctx-size N                     size of the prompt context (default: 0, 0 = loaded from model)
-b,    --batch-size N                   logical maximum batch size (default: 2048)
-ub,   --ubatch-size N                  physical maximum batch size (default: 512)
--rpc SERVERS                           comma-separated list of RPC servers (host:port)
-lm,   --load-mode MODE                 model loading mode (default: auto)
-dev,  --device <dev1,dev2,..>          comma-separated list of devices to use for offloading (none = don't
                                        offload)
--list-devices                          print list of available devices and exit
-ngl,  --gpu-layers, --n-gpu-layers N   max. number of layers to store in VRAM, either an exact number,
                                        'auto', or 'all' (default: auto)
-fit,  --fit [on|off]                   whether to adjust unset arguments to fit in device memory ('on' or
                                        'off', default: 'on')
-m,    --model FNAME                    model path to load
                                        (env: LLAMA_ARG_MODEL)
--log-colors [on|off|auto]              Set colored logging ('on', 'off', or 'auto', default: 'auto')
--offline                               Offline mode: forces use of cache, prevents network access
--pooling {none,mean,cls,last,rank}     pooling type for embeddings, use model default if unspecified
-np,   --parallel N                     number of server slots (default: -1, -1 = auto)
-kvu,  --kv-unified, -no-kvu, --no-kv-unified
                                        use single unified KV buffer shared across all sequences (default:
                                        enabled if number of slots is auto)
-mm,   --mmproj FILE                    path to a multimodal projector file. see tools/mtmd/README.md
-a,    --alias STRING                   set model name aliases, comma-separated (to be used by API)
--host HOST                             IP addresses to listen on, comma-separated, or UNIX socket paths
                                        ending in .sock (default: 127.0.0.1)
--port PORT                             port to listen (default: 8080)
--ui,  --webui, --no-ui, --no-webui     whether to enable the Web UI (default: enabled)
--embedding, --embeddings               restrict to only support embedding use case; use only with dedicated
                                        embedding models (default: disabled)
--api-key KEY                           API key to use for authentication, multiple keys can be provided as a
                                        comma-separated list (default: none)
                                        (env: LLAMA_API_KEY)
--metrics                               enable prometheus compatible metrics endpoint (default: disabled)
--slots, --no-slots                     expose slots monitoring endpoint (default: enabled)
--cache-reuse N                         min chunk size to attempt reusing from the cache via KV shifting
--jinja, --no-jinja                     whether to use jinja template engine for chat (default: enabled)
"""

FAKE_HELP = """
----- fake engine -----

--ready-after S                         seconds until the model is loaded; until then 503 on all endpoints
--never-ready                           stays at 503 for good
--ready-when FILE                       loads until this file is there, which a test makes when it has seen what it waited for
--load-noise                            logs a line every 50 ms while it loads
--load-work                             uses CPU time while it loads
--crash-at-start                        ends before it listens, with llama-server's words
--crash-out-of-memory                   the same, with the words for memory that cannot be had
--crash-after-tokens N                  ends in the middle of the first answer that has as many tokens
--crash-with exit|kill|abort            how it ends then, and at SIGUSR1, which a test sends (default: exit)
--crash-first N                         only the first N starts crash (counted in --state)
--state FILE                            one line for each start
--drop-after-tokens N                   closes the connection there, at each answer
--close-after-stream                    closes the connection after each stream without a word, as llama-server does
--stall-after-tokens N                  sends nothing any more from there, at each answer
--ignore-sigterm                        goes on after SIGTERM
--fork                                  leaves a double-forked process in a session of its own, and one in the group
--hold-pipes                            those processes keep stdout and stderr open
--tokens N                              of an answer if the request names none, and at most (default: 8)
--tokens-per-second N                   (default: 0, as fast as it can)
--first-token-after S                   the time that the prompt takes
--word WORD                             what the answers consist of (default: word)
--status CODE                           the answer to every request for the model
--retry-after S                         its Retry-After
--fail-times N                          only that many requests get --status (default status: 500)
--garbage                               answers are no HTTP
--request-log FILE                      JSON lines: began, ended, cancelled, each with id and path; headers and body
--device-list LINES                     what --list-devices prints, e.g. "CUDA0: NVIDIA H200 (143771 MiB, 140000 MiB free)"
--without OPTION                        an older engine: neither in --help nor accepted
--noise-lines N                         lines to log at the start
"""


def fake_command(*options: str) -> tuple[str, ...]:
    """The start of a command line that runs this program."""
    return (sys.executable, str(Path(__file__).resolve()), *options)


def write_fake_engine(folder: Path, *options: str, name: str = "llama-server") -> Path:
    """Write an executable of this name into `folder`."""
    path = folder / name
    path.write_text(f'#!/bin/sh\nexec {shlex.join(fake_command(*options))} "$@"\n')
    path.chmod(0o755)
    return path


def fake_engine(*options: str, unix_sockets: bool = True, devices: Sequence[Device] = ()) -> Engine:
    """This program as a probed engine."""
    from agentmesh.inference.engine.engine import Engine

    flags = re.findall(r"(?:^|, +)(--?[a-z][a-z-]*)", HELP, re.MULTILINE)
    return Engine(
        command=fake_command(*options),
        rpc_server=None,
        gguf_split=None,
        imatrix=None,
        flavor="cpu",
        origin="--bin-dir",
        build=1,
        commit="0c1e570",
        flags=frozenset(flags),
        devices=tuple(devices),
        unix_sockets=unix_sockets,
    )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="fake_engine", add_help=False, allow_abbrev=False)
    add = made.add_argument
    for flags in (("-t", "--threads"), ("-b", "--batch-size"), ("-ub", "--ubatch-size"), ("--cache-reuse",)):
        add(*flags, type=int)
    for flags in (
        *(("--rpc",), ("-lm", "--load-mode"), ("-dev", "--device"), ("-ngl", "--gpu-layers", "--n-gpu-layers")),
        *(("-fit", "--fit"), ("-m", "--model"), ("--log-colors",), ("--pooling",), ("-mm", "--mmproj")),
        *(("-a", "--alias"), ("--state",), ("--request-log",), ("--device-list",), ("--retry-after",)),
        ("--ready-when",),
    ):
        add(*flags, default="")
    for flags in (
        *(("-h", "--help", "--usage"), ("--version",), ("--list-devices",), ("--offline",), ("-kvu", "--kv-unified")),
        *(("-no-kvu", "--no-kv-unified"), ("--ui", "--webui"), ("--no-ui", "--no-webui"), ("--metrics",)),
        *(("--embedding", "--embeddings"), ("--slots",), ("--no-slots",), ("--jinja",), ("--no-jinja",)),
        *(("--never-ready",), ("--load-noise",), ("--load-work",), ("--crash-at-start",), ("--crash-out-of-memory",)),
        *(("--ignore-sigterm",), ("--fork",), ("--hold-pipes",), ("--garbage",), ("--close-after-stream",)),
    ):
        add(*flags, action="store_true")
    for flag in ("--ready-after", "--tokens-per-second", "--first-token-after"):
        add(flag, type=float, default=0.0)
    for flag in ("--crash-after-tokens", "--drop-after-tokens", "--stall-after-tokens", "--status", "--noise-lines"):
        add(flag, type=int, default=0)
    add("--crash-first", type=int, default=1_000_000)
    add("--fail-times", type=int, default=0)
    add("--crash-with", choices=("exit", "kill", "abort"), default="exit")
    add("--word", default="word")
    add("--tokens", type=int, default=8)
    add("--without", action="append", default=[])
    add("-c", "--ctx-size", type=int, default=4096)
    add("-np", "--parallel", type=int, default=1)
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8080)
    add("--api-key", default=os.environ.get("LLAMA_API_KEY", ""))
    return made


def log(text: str) -> None:
    os.write(2, text.encode() + b"\n")  # one write: others write to the same pipe


def help_text(without: Sequence[str]) -> str:
    lines = HELP.splitlines(keepends=True)
    kept = [line for line in lines if not any(option in line.replace(",", " ").split() for option in without)]
    return "".join(kept) + FAKE_HELP


def die(how: str) -> None:
    """End at once, as crashes do."""
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "abort":
        log("GGML_ASSERT(false) failed")
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGABRT)
    log("terminate called after throwing an instance of 'std::runtime_error'")
    os._exit(1)


def leave_processes(hold_pipes: bool) -> None:
    """A child in the same process group, and a grandchild in a session of its own, double-forked; both ignore SIGTERM."""
    if os.fork() == 0:
        linger(hold_pipes)
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            linger(hold_pipes)
        os._exit(0)
    os.waitpid(child, 0)


def linger(hold_pipes: bool) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    log(f"lingering process {os.getpid()}")
    if not hold_pipes:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
    time.sleep(60)  # the bound of what a failed test leaves behind
    os._exit(0)


def count_start(options: argparse.Namespace) -> int:
    """How many starts there have been, this one included; 1 without --state."""
    if not options.state:
        return 1
    with Path(options.state).open("a+", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
        file.seek(0)
        return len(file.readlines())


def crash_at_start(options: argparse.Namespace) -> None:
    if options.crash_out_of_memory:
        log(
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 20480.00 MiB on device 0: cudaMalloc failed: out of memory"
        )
        log("alloc_tensor_range: failed to allocate CUDA0 buffer of size 21474836480")
    log(f"llama_model_load: error loading model: {options.model} is not a model")
    log("srv    load_model: failed to load model")
    sys.exit(1)


class RequestLog:
    """JSON lines in a file, one for each event of a request."""

    def __init__(self, path: str) -> None:
        self._path = path

    def write(self, **entry: object) -> None:
        if self._path:
            line = json.dumps({"time": time.time(), "pid": os.getpid()} | entry) + "\n"
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.write(descriptor, line.encode())
            os.close(descriptor)


def main(arguments: Sequence[str]) -> int:
    given = [*shlex.split(os.environ.get("FAKE_ENGINE", "")), *arguments]
    options, unknown = parser().parse_known_args(given)
    unknown += [word for word in given if word in options.without and given[given.index(word) - 1] != "--without"]
    if options.help:
        print(help_text(options.without))
        return 0
    if options.version:
        print("version: 0.5.0-fake (build 1, commit 0c1e570)\nbuilt with nothing for tests", file=sys.stderr)
        return 0
    if options.list_devices:
        print("Available devices:\n  " + (options.device_list.replace("\\n", "\n  ") or "(none)"))
        return 0
    if unknown:
        log(f"error: invalid argument: {unknown[0]}")
        return 1
    start = count_start(options)
    if start > options.crash_first:
        options.crash_at_start = options.crash_out_of_memory = False
        options.crash_after_tokens = 0
    for number in range(options.noise_lines):
        log(f"noise {number} " + "." * 80)
    if options.crash_at_start or options.crash_out_of_memory:
        crash_at_start(options)
    if options.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.fork:
        leave_processes(options.hold_pipes)
    from tests.fakes.fake_engine_http import FakeServer

    asyncio.run(FakeServer(options, RequestLog(options.request_log), log, die).run())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
