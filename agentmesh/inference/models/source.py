"""Where the bytes of a file come from. Sources are asked in order; a mesh member that has the file may come before the hub.

Owns the seam between what is wanted and who gives it. Whatever a source gives is checked against the wanted file's hash.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Final, Protocol

import msgspec

from agentmesh.inference.models.errors import HubUnavailable

MAX_FAILURES: Final = 5  # in a row, without a single byte in between
MAX_BREAKS: Final = 1000  # of one file: a source that gives a few bytes an attempt would never end otherwise
FIRST_DELAY_S: Final = 1.0
MAX_DELAY_S: Final = 16.0
MAX_RETRY_AFTER_S: Final = 120.0  # a server that asks for more is believed, and the user told, instead of waited for

Pause = Callable[[float], None]


class WantedFile(msgspec.Struct, frozen=True):
    """One file of one commit of a repository. Its content is fixed by `sha256`, or by git's own hash for small files."""

    repo: str
    revision: str
    commit: str
    path: str
    size_bytes: int
    sha256: str | None
    git_sha1: str | None

    @property
    def digest(self) -> str:
        """The name of its blob in the cache: what the hub sends as its ETag."""
        return self.sha256 or self.git_sha1 or ""


class Body(Protocol):
    """Bytes of a file from `start` on: 0 when the source could not begin where it was asked to."""

    start: int

    def chunks(self) -> Iterator[bytes]:
        """The bytes.

        Raises:
            HubUnavailable: the source went away before the end.
        """
        ...


class FileSource(Protocol):
    """Somebody who has files."""

    name: str

    def open(self, file: WantedFile, offset: int) -> AbstractContextManager[Body]:
        """The file's bytes from `offset` on.

        Raises:
            HubUnavailable: not now; asking again may help.
            NotFound, HubError: this source has not got it or does not give it.
        """
        ...

    def distrust(self, file: WantedFile) -> bool:
        """Be told that what was given for `file` is something else. True if this source can give it from elsewhere."""
        ...


class Backoff:
    """Waits longer after each failure in a row, as long as a server asks for, and gives up in the end."""

    def __init__(self, pause: Pause = time.sleep) -> None:
        self._pause = pause
        self._failures = 0
        self._breaks = 0

    def progress(self) -> None:
        """Something arrived: failures are counted anew."""
        self._failures = 0

    def wait(self, error: HubUnavailable) -> None:
        """Wait before the next attempt, or raise `error` when there should be none."""
        self._failures += 1
        self._breaks += 1
        asked = error.retry_after_s
        if max(self._failures - MAX_FAILURES, self._breaks - MAX_BREAKS) >= 0 or (
            asked is not None and asked > MAX_RETRY_AFTER_S
        ):
            raise error
        own = min(FIRST_DELAY_S * 2 ** (self._failures - 1), MAX_DELAY_S)
        self._pause(max(own, asked or 0.0))
