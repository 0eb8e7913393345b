"""Official MCP programs from npm, at pinned versions, in the user's cache; installed when they are not there yet.

They bring their own Node.js (the package `node`), so that the machine's may be older. A folder is named by the pins and
appears whole or not at all; two test runs at once install once.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

PINS = {
    "node": "26.10.0",
    "@modelcontextprotocol/inspector": "2.12.0",
    "@modelcontextprotocol/conformance": "0.2.0-alpha.12",  # the first line that knows 2026-07-28
}
INSTALL_TIMEOUT_S = 540.0
RUN_TIMEOUT_S = 400.0  # 20 s alone on two cores


@dataclass(frozen=True)
class NpmTools:
    """An installed set of programs."""

    folder: Path

    def environment(self, **more: str) -> dict[str, str]:
        """This process's environment with the programs (and their Node.js) first on the PATH."""
        path = os.pathsep.join([str(self.folder / "node_modules" / ".bin"), os.environ["PATH"]])
        return {**os.environ, "PATH": path, **more}

    def program(self, name: str) -> str:
        return str(self.folder / "node_modules" / ".bin" / name)

    async def run(self, name: str, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of one program, which is ended when it takes too long."""
        process = await asyncio.create_subprocess_exec(
            self.program(name),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.environment(**environment),
        )
        try:
            async with asyncio.timeout(RUN_TIMEOUT_S):
                output, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, output.decode(), errors.decode()


def npm_tools() -> NpmTools:
    """The programs, installed if need be. Skips the test on a machine without npm."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm (Node.js) to install the official MCP programs")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentmesh" / "npm"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / hashlib.sha256(json.dumps(PINS, sort_keys=True).encode()).hexdigest()[:16]
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _install(npm, cache, folder)
    return NpmTools(folder)


def _install(npm: str, cache: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache, prefix="installing-") as name:
        new = Path(name) / "tools"
        new.mkdir()
        (new / "package.json").write_text(json.dumps({"private": True, "dependencies": PINS}))
        command = [npm, "install", "--no-audit", "--no-fund", "--no-progress", "--loglevel=error"]
        done = subprocess.run(command, cwd=new, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
        assert done.returncode == 0, f"npm could not install {PINS}: {done.stderr}"
        node = new / "node_modules" / ".bin" / "node"
        version = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=120, check=True).stdout
        assert version.strip() == f"v{PINS['node']}", f"npm brought another Node.js: {version}"
        new.rename(folder)


@asynccontextmanager
async def with_token(port: int, token: str) -> AsyncIterator[int]:
    """A port on loopback that passes requests on to `port` and adds the token, for programs that cannot send one.

    Everything else of a request, Host and Origin too, goes through as it is. One request a connection.
    """

    async def pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        sink.close()

    async def serve(client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            lines = (await client_in.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
            kept = [line for line in lines if not line.lower().startswith((b"connection:", b"authorization:"))]
            kept += [b"Connection: close", b"Authorization: Bearer " + token.encode()]
            server_in, server_out = await asyncio.open_connection("127.0.0.1", port)
            server_out.write(b"\r\n".join(kept) + b"\r\n\r\n")
            await asyncio.gather(pipe(client_in, server_out), pipe(server_in, client_out))
        client_out.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
