"""What a home keeps of its membership in one mesh, in the folder `meshes/<mesh id>/`.

    membership.json   mesh, its name, this node's chain        written when it changes
    invites.json      invites made here, and who used them     written before a counted join is answered
    peers.json        members worth dialling                   a cache: lost or damaged, it is begun anew
    timestamp         no record of ours is later than this     reserved ahead, so that few writes are needed
    root.key          the mesh's root key, if founded here
    ../current        the mesh that this home is on

State: the files, and their content in memory. Owner: the node that holds the home's lock. Every file is replaced as a
whole and synced, with mode 0600: after a crash it holds the old content or the new. Methods block on the disk; callers on the
event loop use a thread where it matters. Which chain is good is not judged here.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from agentmesh.core.errors import AgentMeshError, HomeError, InvalidInput, StorageError
from agentmesh.core.paths import Home
from agentmesh.core.units import SECOND_MS
from agentmesh.mesh.identity import NodeKey, decode_id, encode_id, replace_durably
from agentmesh.mesh.logic.certificate import Certificate, Chain, decode_chain, encode_chain, leaf_of
from agentmesh.mesh.logic.handshake_messages import InviteRefused, RefusalCode
from agentmesh.mesh.logic.limits import KNOWN_PEERS, MAX_CLOCK_SKEW_MS

_log = logging.getLogger(__name__)

FILE_VERSION: Final = 1
RESERVED_MS: Final = 5 * SECOND_MS  # one write in five seconds while posting; a restart stamps at most this far ahead
MAX_FILE_BYTES: Final = 16 * 1024 * 1024
MAX_KEPT_INVITES: Final = 1_000  # made here and not yet expired


class KnownPeer(msgspec.Struct, frozen=True):
    """A member that this node was connected to."""

    node: bytes
    name: str
    addresses: tuple[str, ...]
    dialable: bool
    seen_ms: int


class IssuedInvite(msgspec.Struct, frozen=True):
    """An invite made here. `admitted` are the keys that a counted one let in."""

    chain: bytes
    expires_ms: int
    uses: int | None = None
    admitted: tuple[bytes, ...] = ()


class _Membership(msgspec.Struct, frozen=True):
    version: int
    mesh: str
    name: str
    chain: bytes
    policy: bytes = b""


class _Invites(msgspec.Struct, frozen=True):
    version: int
    invites: dict[str, IssuedInvite]


class _Peers(msgspec.Struct, frozen=True):
    version: int
    peers: tuple[KnownPeer, ...]


T = TypeVar("T")


class MembershipFile:
    """This home's membership of one mesh. `chain` is empty until it joined."""

    def __init__(self, home: Home, mesh: bytes) -> None:
        self._home = home
        self.mesh = mesh
        self.folder = home.mesh(encode_id(mesh))
        self.name = ""
        self.chain: Chain = ()
        self.founding_policy = b""
        self._invites: dict[str, IssuedInvite] | None = None
        self._last_ms = 0
        self._reserved_ms: int | None = None

    @classmethod
    def current(cls, home: Home) -> MembershipFile | None:
        """The membership that this home last joined, or None.

        Raises:
            HomeError: what is there cannot be read.
        """
        text = _read_text(home.current_mesh)
        if text is None:
            return None
        try:
            mesh = decode_id(text)
        except InvalidInput as error:
            raise _damaged(home.current_mesh) from error
        opened = cls.open(home, mesh)
        return opened if opened.chain else None

    @classmethod
    def open(cls, home: Home, mesh: bytes) -> MembershipFile:
        """What this home knows of a mesh; with an empty chain if it never joined it. Raises: HomeError."""
        opened = cls(home, mesh)
        stored = _read(opened.folder / "membership.json", _Membership)
        if stored is not None:
            try:
                opened.chain = decode_chain(stored.chain)
                leaf = leaf_of(opened.chain)
            except AgentMeshError as error:
                raise _damaged(opened.folder / "membership.json") from error
            if leaf.mesh != mesh or stored.mesh != encode_id(mesh):
                raise _damaged(opened.folder / "membership.json")
            opened.name, opened.founding_policy = stored.name, stored.policy
        return opened

    @property
    def mesh_id(self) -> str:
        return encode_id(self.mesh)

    @property
    def pin(self) -> str:
        """`name@id`: the mesh's name is a label, pinned to the id that it first had here."""
        return f"{self.name}@{self.mesh_id}"

    @property
    def certificate(self) -> Certificate:
        """This node's own certificate. Raises: HomeError: there is none."""
        if not self.chain:
            raise HomeError("This home has not joined that mesh.")
        return leaf_of(self.chain)

    def adopt(self, chain: Chain, name: str = "", *, founding_policy: bytes = b"") -> None:
        """Keep a chain of our own, and make this the mesh that the home is on. The name stays as it was first learned.

        Args:
            founding_policy: the encoded policy of a mesh founded here, in case its record is lost before it is stored.

        Raises:
            StorageError
        """
        name, policy = self.name or name, self.founding_policy or founding_policy
        stored = _Membership(FILE_VERSION, self.mesh_id, name, encode_chain(chain), policy)
        self._write("membership.json", msgspec.json.encode(stored))
        self.chain, self.name, self.founding_policy = chain, name, policy
        self.make_current()

    def make_current(self) -> None:
        """Make this the mesh that the home is on. Raises: StorageError."""
        if _read_text(self._home.current_mesh) != self.mesh_id:
            _replace(self._home.current_mesh, f"{self.mesh_id}\n".encode())

    # -------------------------------------------------------------- the root key

    @property
    def root_key_path(self) -> Path:
        return self.folder / "root.key"

    def root_key(self) -> NodeKey | None:
        """The mesh's root key if it is kept here. Raises: IdentityKeyError: it cannot be used."""
        return NodeKey.load(self.root_key_path) if self.root_key_path.exists() else None

    # -------------------------------------------------------------- invites

    def invites(self) -> dict[bytes, IssuedInvite]:
        """Invites made here and not expired when last written, by serial. Raises: HomeError."""
        return {bytes.fromhex(serial): invite for serial, invite in self._load_invites().items()}

    def add_invite(self, serial: bytes, invite: IssuedInvite, now_ms: int) -> None:
        """Keep an invite, and forget expired ones.

        Raises:
            InvalidInput: there are too many that have not expired.
            StorageError
        """
        kept = {s: i for s, i in self._load_invites().items() if i.expires_ms > now_ms}
        if len(kept) >= MAX_KEPT_INVITES:
            raise InvalidInput(f"This node has made {MAX_KEPT_INVITES} invites that have not expired; use one of them.")
        self._save_invites(kept | {serial.hex(): invite})

    def count_use(self, serial: bytes, joiner: bytes) -> None:
        """Use up one use of a counted invite for `joiner`; the same joiner again costs none. On disk when it returns.

        Raises:
            InviteRefused: all uses are used up, or the invite was not made here (its record is lost).
            StorageError
        """
        invites = self._load_invites()
        invite = invites.get(serial.hex())
        if invite is None or invite.uses is None:
            raise InviteRefused(RefusalCode.INVITE_INVALID, "The member that made this invite no longer knows it.")
        if joiner in invite.admitted:
            return
        if len(invite.admitted) >= invite.uses:
            raise InviteRefused(
                RefusalCode.INVITE_USED_UP, f"This invite was for {invite.uses} and is used up; ask for a new one."
            )
        used = msgspec.structs.replace(invite, admitted=(*invite.admitted, joiner))
        self._save_invites(invites | {serial.hex(): used})

    def _load_invites(self) -> dict[str, IssuedInvite]:
        if self._invites is None:
            stored = _read(self.folder / "invites.json", _Invites)
            self._invites = stored.invites if stored else {}
        return self._invites

    def _save_invites(self, invites: dict[str, IssuedInvite]) -> None:
        self._write("invites.json", msgspec.json.encode(_Invites(FILE_VERSION, invites)))
        self._invites = invites

    # -------------------------------------------------------------- known peers

    def peers(self) -> tuple[KnownPeer, ...]:
        """Members seen before, latest first. Never fails: without them the mesh is found through tokens."""
        try:
            stored = _read(self.folder / "peers.json", _Peers)
        except HomeError as error:
            _log.warning("%s Starting with none.", error)
            return ()
        return stored.peers if stored else ()

    def save_peers(self, peers: tuple[KnownPeer, ...]) -> None:
        """Keep the KNOWN_PEERS seen last. Raises: StorageError."""
        latest = tuple(sorted(peers, key=lambda peer: (-peer.seen_ms, peer.node))[:KNOWN_PEERS])
        self._write("peers.json", msgspec.json.encode(_Peers(FILE_VERSION, latest)))

    # -------------------------------------------------------------- timestamps

    def next_timestamp(self, now_ms: int) -> int:
        """max(now, last + 1), across restarts too: what this node signs is never dated twice or backwards (while its clock
        is not set back by more than admission tolerates anyway).

        Raises:
            StorageError: the reservation could not be written; nothing may be signed.
        """
        if self._reserved_ms is None:
            text = _read_text(self.folder / "timestamp") or "0"
            if not text.isdecimal() or len(text) > 16:
                raise _damaged(self.folder / "timestamp")
            self._reserved_ms = self._last_ms = int(text)
        if self._last_ms >= now_ms + MAX_CLOCK_SKEW_MS:
            # The clock ran ahead and was set right. Going on from there, all that this node writes would be "not yet"
            # everywhere, for hours or years.
            self._last_ms = self._reserved_ms = 0
        timestamp_ms = max(now_ms, self._last_ms + 1)
        if timestamp_ms > self._reserved_ms:
            self._write("timestamp", str(timestamp_ms + RESERVED_MS).encode())
            self._reserved_ms = timestamp_ms + RESERVED_MS
        self._last_ms = timestamp_ms
        return timestamp_ms

    def note_timestamp(self, timestamp_ms: int) -> None:
        """A record of ours came back from the mesh (the home was restored from a backup): go on after it."""
        self._last_ms = max(self._last_ms, timestamp_ms)

    def _write(self, name: str, data: bytes) -> None:
        if len(data) > MAX_FILE_BYTES:  # it could not be read again
            raise StorageError(f"{self.folder / name} would become too large. Nothing was changed.")
        _replace(self.folder / name, data)


def forget_membership(home: Home) -> bool:
    """Leave the mesh that the home is on: its chain, invites and peers are deleted, its board and a root key stay.

    Returns whether the home was on one. Raises: HomeError, StorageError.
    """
    text = _read_text(home.current_mesh)
    if text is None:
        return False
    try:
        folder = home.mesh(encode_id(decode_id(text)))
    except InvalidInput as error:
        raise _damaged(home.current_mesh) from error
    try:
        # The pointer goes last: killed in between, the next `leave` finds the rest.
        for path in (folder / "membership.json", folder / "invites.json", folder / "peers.json", home.current_mesh):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{folder} cannot be changed: {error.strerror or error}.") from error
    return True


def _read_text(path: Path) -> str | None:
    data = _read_bytes(path)
    try:
        return None if data is None else data.decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise _damaged(path) from error


def _read(path: Path, type_: type[T]) -> T | None:
    data = _read_bytes(path)
    try:
        return None if data is None else msgspec.json.decode(data, type=type_)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(path) from error


def _read_bytes(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HomeError(f"{path} cannot be read: {error.strerror or error}.") from error
    if len(data) > MAX_FILE_BYTES:
        raise _damaged(path)
    return data


def _replace(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_durably(path, data)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}. Nothing was changed.") from error


def _damaged(path: Path) -> HomeError:
    return HomeError(f"{path} is damaged. Restore it from a backup, or move it away and join again with an invite.")
