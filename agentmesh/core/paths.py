"""Where a node keeps its things: the home directory, its layout and its permissions.

Owns the layout only; who may write which file is said by the owner of that file.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from agentmesh.core.errors import HomeError

# A Unix socket address holds 108 bytes on Linux and 104 on macOS, with the closing NUL (sys/un.h).
MAX_SOCKET_PATH_BYTES = 103


class Home:
    """One node's directory. Two homes on one machine are two nodes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def from_environment(cls) -> Home:
        """`$AGENTMESH_HOME`, else `~/.agentmesh`.

        Raises:
            HomeError: the path leads nowhere, or no JSON and no log could name it.
        """
        try:
            root = Path(os.environ.get("AGENTMESH_HOME") or "~/.agentmesh").expanduser().absolute()
        except (RuntimeError, OSError) as error:  # an unknown ~user; the working directory was removed
            raise HomeError(
                f"The home directory cannot be found: {error}. Set AGENTMESH_HOME to a full path."
            ) from error
        try:
            str(root).encode("utf-8")
        except UnicodeEncodeError as error:
            shown = os.fsencode(root).decode("utf-8", "replace")
            raise HomeError(f"The path of the home directory, {shown}, is not UTF-8. Set AGENTMESH_HOME.") from error
        return cls(root)

    def prepare(self) -> None:
        """Create the home and its folders with mode 0700.

        Raises:
            HomeError: the home cannot be created or written, or other users may write into it.
        """
        try:
            for folder in (self.root, self.run, self.logs, self.meshes):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if stat.S_IMODE(self.root.stat().st_mode) & 0o022:
                raise HomeError(f"{self.root} can be written by other users; run: chmod 700 {self.root}")
            if not os.access(self.root, os.W_OK | os.X_OK):
                raise PermissionError(13, "not writable")
        except OSError as error:
            reason = "it is not a directory" if isinstance(error, FileExistsError) else error.strerror or str(error)
            if error.filename is not None and Path(error.filename) != self.root:
                reason = f"{error.filename}: {reason}"
            raise HomeError(f"The home directory {self.root} cannot be used: {reason}. Set AGENTMESH_HOME.") from error

    @property
    def identity_key(self) -> Path:
        return self.root / "identity.key"

    @property
    def config(self) -> Path:
        return self.root / "config.toml"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def meshes(self) -> Path:
        return self.root / "meshes"

    @property
    def lock(self) -> Path:
        return self.run / "lock"

    @property
    def start_lock(self) -> Path:
        return self.run / "start.lock"

    @property
    def node_json(self) -> Path:
        return self.run / "node.json"

    @property
    def current_mesh(self) -> Path:
        """Names the mesh that this home is on."""
        return self.meshes / "current"

    def mesh(self, mesh_id: str) -> Path:
        """The folder of one mesh: its membership, known peers and board."""
        return self.meshes / mesh_id

    @property
    def socket(self) -> Path:
        """The management socket; in the runtime directory when the home is too deep for a socket address."""
        path = self.run / "node.sock"
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
            return path
        digest = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/agentmesh-{os.getuid()}"  # noqa: S108 - the folder is created 0700 and its owner checked
        return Path(runtime) / f"agentmesh-{digest}" / "node.sock"
