"""Ed25519 keys: making, loading, signing, verifying, and how a key is written for people.

The only place that touches `cryptography` for signatures and the only one that reads a private key from disk. It knows
nothing of meshes, certificates or connections: callers build the bytes to sign, each with its own prefix.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agentmesh.core.errors import IdentityKeyError, InvalidInput

KEY_BYTES: Final = 32
ID_CHARS: Final = 52  # 32 bytes in base32 without padding
MIN_SHORT_ID_CHARS: Final = 8
# A key file is one header line and one line of base64; a longer file is not one of ours.
KEY_FILE_HEADER: Final = "agentmesh ed25519 private key v1"
MAX_KEY_FILE_BYTES: Final = 256
_GROUP_AND_OTHERS: Final = 0o077


class NodeKey:
    """A private Ed25519 key. Its `repr` shows the public half only."""

    __slots__ = ("_private", "public")

    def __init__(self, seed: bytes) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public: bytes = self._private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> NodeKey:
        """A fresh key from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def load(cls, path: Path) -> NodeKey:
        """The key in `path`.

        Raises:
            IdentityKeyError: the file is missing, unreadable, open to other users, or damaged.
        """
        return cls(_parse_key_file(path, _read_private(path)))

    @classmethod
    def load_or_create(cls, path: Path) -> NodeKey:
        """The key in `path`; when there is no such file, a fresh one, durably written with mode 0600.

        Raises:
            IdentityKeyError: as `load`, or the file cannot be written.
        """
        try:
            path.lstat()
        except FileNotFoundError:
            return cls._create(path)
        except OSError as error:
            raise _unusable(path, error) from error
        return cls.load(path)

    @classmethod
    def _create(cls, path: Path) -> NodeKey:
        key = cls.generate()
        try:
            key.save(path)
        except FileExistsError:  # another process of this home was quicker: its key is the home's key
            return cls.load(path)
        return key

    def save(self, path: Path) -> None:
        """Write this key to a new file: complete and on disk, or not at all. Never replaces a file.

        Raises:
            FileExistsError: `path` exists.
            IdentityKeyError: it cannot be written.
        """
        text = f"{KEY_FILE_HEADER}\n{base64.b64encode(self.seed).decode()}\n"
        draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(draft, text.encode())
            # link() and not rename(): it fails when the name exists, so two starting processes end with one key.
            os.link(draft, path)
            sync_folder(path.parent)
        except FileExistsError:
            raise
        except OSError as error:
            raise IdentityKeyError(f"The key file {path} cannot be written: {error.strerror or error}.") from error
        finally:
            draft.unlink(missing_ok=True)

    @property
    def seed(self) -> bytes:
        """The 32 private bytes, for invite tokens, for the TLS certificate and for export. Never log them."""
        return self._private.private_bytes_raw()

    @property
    def private_key(self) -> Ed25519PrivateKey:
        """The key as `cryptography` holds it, for signing the QUIC certificate."""
        return self._private

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature over `message`, which begins with its purpose's prefix."""
        return self._private.sign(message)

    def __repr__(self) -> str:
        return f"NodeKey({encode_id(self.public)})"


def verify(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` over `message` was made by the holder of `public_key`. Never raises for bad input."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


# ------------------------------------------------------------------ ids for people


def encode_id(key: bytes) -> str:
    """A 32-byte key as 52 lowercase base32 characters."""
    return base64.b32encode(key).decode().rstrip("=").lower()


def decode_id(text: str) -> bytes:
    """The key of a full id; upper case is accepted.

    Raises:
        InvalidInput: the text is not 52 characters of base32.
    """
    compact = text.strip().upper()
    try:
        key = base64.b32decode(compact + "====") if len(compact) == ID_CHARS else b""
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES or encode_id(key) != compact.lower():
        raise InvalidInput(f"'{text[:64]}' is not an id: it takes {ID_CHARS} letters a-z and digits 2-7.")
    return key


def short_id(key: bytes, among: Iterable[bytes] = ()) -> str:
    """The shortest prefix of the id, 8 characters or more, that no other key of `among` shares."""
    own = encode_id(key)
    shared = max((_common_prefix(own, encode_id(other)) for other in among if other != key), default=0)
    return own[: max(MIN_SHORT_ID_CHARS, min(shared + 1, ID_CHARS))]


def _common_prefix(a: str, b: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


# ------------------------------------------------------------------ files that must not be lost or seen


def write_durably(path: Path, data: bytes) -> None:
    """Create `path` (it must not exist) with mode 0600 and return once its bytes are on disk. Raises: OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, data: bytes) -> None:
    """Replace `path` by `data` with mode 0600: after a crash it holds the old bytes or the new ones. Raises: OSError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        write_durably(draft, data)
        draft.replace(path)
        sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename or link in `folder` survive a power cut. Raises: OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_private(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        # The checks are on the open file, so that it cannot be exchanged between check and use.
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise IdentityKeyError(f"The key {path} is not a regular file; move it away or restore it from a backup.")
        if stat.S_IMODE(status.st_mode) & _GROUP_AND_OTHERS:
            raise IdentityKeyError(
                f"The key file {path} can be read by other users of this machine; run: chmod 600 {path}"
            )
        return os.read(descriptor, MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise _unusable(path, error) from error
    finally:
        os.close(descriptor)


def _parse_key_file(path: Path, data: bytes) -> bytes:
    try:
        header, encoded = data.decode("ascii").split("\n", 1)
        seed = base64.b64decode(encoded.strip(), validate=True)
    except ValueError:
        header, seed = "", b""
    if header != KEY_FILE_HEADER or len(seed) != KEY_BYTES or len(data) > MAX_KEY_FILE_BYTES:
        raise IdentityKeyError(
            f"The key file {path} is damaged. Restore it from a backup, or move it away: "
            "this node then gets a new identity and needs a new invite."
        )
    return seed


def _unusable(path: Path, error: OSError) -> IdentityKeyError:
    reason = error.strerror or str(error)
    return IdentityKeyError(
        f"The key file {path} cannot be read: {reason}. Check its owner and permissions (chmod 600), "
        "or set AGENTMESH_HOME to another home."
    )
