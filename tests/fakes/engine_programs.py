"""Small scripts that stand in for llama.cpp's programs and for build tools, each misbehaving in one way."""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

HELP = """----- common params -----

-h,    --help, --usage                  print usage and exit
--version                               show version and build info
-c,    --ctx-size N                     size of the prompt context (default: 0, 0 = loaded from model)
--rpc SERVERS                           comma-separated list of RPC servers (host:port)
--list-devices                          print list of available devices and exit
-m,    --model FNAME                    model path to load
-kvo,  --kv-offload, -nkvo, --no-kv-offload
                                        whether to enable KV cache offloading, see --not-an-option
--draft, --draft-n, --draft-max N       the argument has been removed. use --spec-draft-n-max or
                                        --spec-ngram-mod-n-max
--draft-min, --draft-n-min N            the argument has
                                        been removed. use --spec-draft-n-min
-np,   --parallel N                     number of server slots (default: -1, -1 = auto)
--host HOST                             IP addresses to listen on, comma-separated, or UNIX socket paths
                                        ending in .sock; with multiple TCP addresses, :: binds IPv6 only;
--port PORT                             port to listen (default: 8080)
--api-key KEY                           API key to use for authentication
-fa,   --flash-attn [on|off|auto]       set Flash Attention use ('on', 'off', or 'auto', default: 'auto')
"""
VERSION = "version: 0.5.0-dev (build 12, commit 0c1e570)\nbuilt with GNU 12.2.0 for Linux x86_64\n"
NO_DEVICES = "Available devices:\n  (none)\n"


def program(path: Path, body: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def asleep(folder: Path) -> Path:
    """An engine that hangs: it neither listens nor uses the processor."""
    return program(folder / "asleep", "exec sleep 60")


def server(path: Path, *, help_text: str = HELP, version: str = VERSION, devices: str = NO_DEVICES) -> Path:
    """A llama-server that answers questions and counts them in `<path>.asked`."""
    return program(
        path,
        f"""echo "$1" >> "$0.asked"
case "$1" in
--help) cat <<'END'
{help_text}
END
;;
--version) cat >&2 <<'END'
{version}
END
;;
--list-devices) cat <<'END'
{devices}
END
;;
*) exit 9 ;;
esac""",
    )


def asked(path: Path) -> list[str]:
    """What a fake server was asked, in order."""
    log = path.with_name(f"{path.name}.asked")
    return log.read_text().split() if log.exists() else []


def late_when_written(monkeypatch: pytest.MonkeyPatch, module: ModuleType, *files: Path) -> None:
    """Days pass for `module` once all these files are written: its program is late when it has done its part, however slowly."""
    passed_s = 0

    def monotonic() -> float:
        nonlocal passed_s
        if all(file.exists() and file.read_text().endswith("\n") for file in files):
            passed_s += 86_400  # each time it looks: it may first look when they are written already
        return time.monotonic() + passed_s

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=monotonic, sleep=time.sleep))
