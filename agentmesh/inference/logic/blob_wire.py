"""What is said on a `blob` stream: who has the file with this SHA-256, give it from there on, what do you have of this repository.

After the stream's header the asking side sends frames, one request at a time; each is answered by one frame, and `Get` by the
bytes behind it, exactly `size - offset` of them, and the stream's end. Hashes name files; no path of the giving side exists here.
Additive: fields are only ever appended, and a request of a later version ends the stream, which says that the file is not here.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final, TypeAlias, TypeVar

import msgspec

from agentmesh.core.errors import ProtocolError
from agentmesh.inference.logic.blob_limits import MAX_BLOB_ANSWER_BYTES, MAX_BLOB_REQUEST_BYTES, MAX_LISTED_FILES
from agentmesh.inference.logic.model_files import MAX_PATH_CHARS, is_gguf, is_safe_path

BLOB_VERSION: Final = 1
LENGTH_BYTES: Final = 4
MAX_FILE_BYTES: Final = 1 << 43
_COMMIT_CHARS: Final = 40
_HEX: Final = frozenset("0123456789abcdef")

Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
FileSize = Annotated[int, msgspec.Meta(ge=0, le=MAX_FILE_BYTES)]


class Probe(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Is the file with this SHA-256 here, and could it be had now? Answered by an `Answer`."""

    sha256: Digest
    version: int = BLOB_VERSION


class Get(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Give the file from `offset` on. Answered by an `Answer`, and by the bytes if it says HAVE."""

    sha256: Digest
    offset: FileSize = 0
    version: int = BLOB_VERSION


class Find(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Which model files of a repository at a revision are here? Answered by a `Found`."""

    repo: Annotated[str, msgspec.Meta(min_length=3, max_length=200)]
    revision: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    version: int = BLOB_VERSION


Request: TypeAlias = Probe | Get | Find


class Status(IntEnum):
    """What a peer says of a file."""

    NONE = 0
    HAVE = 1
    BUSY = 2  # it has the file and gives as many as it may


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """`size` is the whole file's, in bytes, also with BUSY."""

    status: Status
    size: FileSize = 0
    version: int = BLOB_VERSION


class FoundFile(msgspec.Struct, frozen=True, array_like=True):
    """One file of a snapshot."""

    path: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_PATH_CHARS)]
    size: FileSize
    sha256: Digest


class Found(msgspec.Struct, frozen=True, array_like=True):
    """A snapshot, as far as it is here: its commit and model files. No commit: nothing of it."""

    commit: str
    files: Annotated[tuple[FoundFile, ...], msgspec.Meta(max_length=MAX_LISTED_FILES)] = ()
    version: int = BLOB_VERSION


T = TypeVar("T")

request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
answer_decoder = msgspec.msgpack.Decoder(Answer)
found_decoder = msgspec.msgpack.Decoder(Found)
_encoder = msgspec.msgpack.Encoder()


def frame_of(message: Request | Answer | Found) -> bytes:
    """A message as it goes out: its length, big-endian, and itself. A listing that is too long loses files from its end."""
    limit = MAX_BLOB_REQUEST_BYTES if isinstance(message, Probe | Get | Find) else MAX_BLOB_ANSWER_BYTES
    body = _encoder.encode(message)
    while len(body) > limit and isinstance(message, Found):
        message = msgspec.structs.replace(message, files=message.files[: len(message.files) * 3 // 4])
        body = _encoder.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def usable(found: Found) -> Found:
    """What may be believed enough to be asked for: real commits, model files with names that stay inside their folder.

    Raises:
        ProtocolError: the commit is none.
    """
    if found.commit == "":
        return Found("")
    if len(found.commit) != _COMMIT_CHARS or not _HEX.issuperset(found.commit):
        raise ProtocolError("A peer named a commit that is none.")
    return Found(found.commit, tuple(file for file in found.files if is_gguf(file.path) and is_safe_path(file.path)))
