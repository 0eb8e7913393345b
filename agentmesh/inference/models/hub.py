"""The Hugging Face hub over its HTTP API: what a repository holds, what there is, and the bytes of a file.

Owns requests, their limits and the translation of what the hub answers. huggingface_hub gives the client (proxies, user agent);
its own download is not used: version 2.4 throws partial files away, checks no hash, and waits as long as a server likes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote

import msgspec

from agentmesh.core.errors import InvalidInput
from agentmesh.inference.logic.model_files import is_safe_path
from agentmesh.inference.logic.reference import DEFAULT_REVISION
from agentmesh.inference.models.errors import HubBusy, HubError, HubNotFound, HubRefused, HubUnavailable, WrongContent
from agentmesh.inference.models.settings import HubSettings
from agentmesh.inference.models.source import Backoff, Pause, WantedFile

if TYPE_CHECKING:
    import httpx2

CONNECT_TIMEOUT_S: Final = 10.0
READ_TIMEOUT_S: Final = 30.0  # between two pieces of an answer
MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024  # listings of the largest repositories have about 1 MB
MAX_FILES: Final = 20_000
MAX_FILE_BYTES: Final = 1 << 43
MAX_SEARCH_RESULTS: Final = 100
CHUNK_BYTES: Final = 1024 * 1024
_HEX: Final = frozenset("0123456789abcdef")

T = TypeVar("T")


class RepoListing(msgspec.Struct, frozen=True):
    """A repository at one commit. Files whose names would leave their folder are left out."""

    repo: str
    revision: str
    commit: str
    files: dict[str, WantedFile]


class SearchHit(msgspec.Struct, frozen=True):
    """A repository that fits a search."""

    repo: str
    downloads: int
    likes: int
    updated: str


class _Lfs(msgspec.Struct):
    sha256: str
    size: int


class _Sibling(msgspec.Struct, rename={"path": "rfilename", "blob_id": "blobId"}):
    path: str
    size: int | None = None
    blob_id: str | None = None
    lfs: _Lfs | None = None


class _Repo(msgspec.Struct):
    sha: str
    siblings: list[_Sibling]


class _Hit(msgspec.Struct, rename={"updated": "lastModified"}):
    id: str
    downloads: int = 0
    likes: int = 0
    updated: str = ""


class _HubBody:
    def __init__(self, response: httpx2.Response, start: int) -> None:
        self._response = response
        self.start = start

    def chunks(self) -> Iterator[bytes]:
        import httpx2

        try:
            # No chunk size: with one, httpx2 keeps what arrived in a buffer that a break would lose.
            yield from self._response.iter_raw()
        except httpx2.TransportError as error:
            raise HubUnavailable(f"The download broke off ({_reason(error)}).") from error


class Hub:
    """One hub. Every call blocks; each wait is bounded."""

    def __init__(self, settings: HubSettings, pause: Pause = time.sleep) -> None:
        self.settings = settings
        self.name = settings.endpoint
        self._pause = pause

    def listing(self, repo: str, revision: str = DEFAULT_REVISION) -> RepoListing:
        """The files of a repository.

        Raises:
            HubNotFound, HubRefused, HubUnavailable, HubError: as their names say.
        """
        address = f"{self.name}/api/models/{quote(repo)}/revision/{quote(revision, safe='')}"
        answer = self._json(address, {"blobs": "true"}, _Repo, repo)
        if len(answer.sha) != 40 or not _HEX.issuperset(answer.sha):
            raise HubError(f"The hub at {self.name} gave no commit for {repo}.")
        files: dict[str, WantedFile] = {}
        for sibling in answer.siblings[:MAX_FILES]:
            file = _wanted(repo, revision, answer.sha, sibling)
            if file is not None:
                files[file.path] = file
        return RepoListing(repo, revision, answer.sha, files)

    def search(self, query: str, limit: int = 20) -> list[SearchHit]:
        """Repositories with GGUF files that fit `query`, most downloaded first."""
        parameters = {
            "search": query,
            "filter": "gguf",
            "sort": "downloads",
            "direction": "-1",
            "limit": str(min(limit, MAX_SEARCH_RESULTS)),
        }
        hits = self._json(f"{self.name}/api/models", parameters, list[_Hit], query)
        return [SearchHit(hit.id, hit.downloads, hit.likes, hit.updated) for hit in hits[:limit]]

    @contextlib.contextmanager
    def open(self, file: WantedFile, offset: int, length: int | None = None) -> Generator[_HubBody]:
        """The bytes of a file from `offset` on, of exactly the commit that was listed; with `length`, no more is asked for."""
        address = f"{self.name}/{quote(file.repo)}/resolve/{file.commit}/{quote(file.path)}"
        headers = {"Accept-Encoding": "identity"}  # a compressed body has other offsets
        if offset or length is not None:
            headers["Range"] = f"bytes={offset}-{'' if length is None else offset + length - 1}"
        with self._request(address, {}, headers, file.repo) as response:
            yield _HubBody(response, _start(response, offset, file))

    def distrust(self, file: WantedFile) -> bool:
        """See FileSource. There is one hub."""
        return False

    def _json(self, address: str, parameters: Mapping[str, str], shape: type[T], what: str) -> T:
        backoff = Backoff(self._pause)
        while True:
            try:
                with self._request(address, parameters, {}, what) as response:
                    return msgspec.json.decode(_whole(response), type=shape)
            except HubUnavailable as error:
                backoff.wait(error)
            except msgspec.MsgspecError as error:
                raise HubError(
                    f"The hub at {self.name} answered something that is no model listing ({error})."
                ) from error

    @contextlib.contextmanager
    def _request(
        self, address: str, parameters: Mapping[str, str], headers: Mapping[str, str], what: str
    ) -> Generator[httpx2.Response]:
        if self.settings.offline:
            raise HubUnavailable("HF_HUB_OFFLINE is set, so the hub is not asked.", retry_after_s=float("inf"))
        import httpx2
        from huggingface_hub import get_session

        from agentmesh import __version__

        own = {"User-Agent": f"agentmesh/{__version__}"}
        if self.settings.token:
            own["Authorization"] = f"Bearer {self.settings.token}"
        timeout = httpx2.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        try:
            with get_session().stream(
                "GET", address, params=dict(parameters) or None, headers={**own, **headers}, timeout=timeout
            ) as response:
                self._check(response, what)
                yield response
        except httpx2.TransportError as error:
            raise HubUnavailable(f"The hub at {self.name} could not be reached ({_reason(error)}).") from error
        except (httpx2.TooManyRedirects, httpx2.InvalidURL) as error:
            raise HubError(f"The hub at {self.name} sent us in circles ({error}).") from error

    def _check(self, response: httpx2.Response, what: str) -> None:
        status = response.status_code
        if status in (200, 206, 416):
            return
        if status in (401, 403):
            token = (
                "the token in HF_TOKEN may not read it"
                if self.settings.token
                else "set HF_TOKEN to one that may read it"
            )
            # The hub answers 401 for repositories that do not exist, too, so as not to say which are private.
            raise HubRefused(f"The hub does not give out '{what}': it does not exist, or is private or gated; {token}.")
        if status == 404:
            raise HubNotFound(f"The hub at {self.name} has no '{what}'.")
        if status == 429:
            after = _retry_after_s(response.headers.get("Retry-After"))
            raise HubBusy(f"The hub at {self.name} asks to come back {_later(after)}.", after)
        if status >= 500 or status == 408:
            after = _retry_after_s(response.headers.get("Retry-After"))
            raise HubUnavailable(
                f"The hub at {self.name} is out of order (status {status}); try again {_later(after)}.", after
            )
        raise HubError(f"The hub at {self.name} answered with status {status} for '{what}'.")


def _wanted(repo: str, revision: str, commit: str, sibling: _Sibling) -> WantedFile | None:
    size = sibling.lfs.size if sibling.lfs else sibling.size
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    digest, length = (sha256, 64) if sha256 else (sibling.blob_id or "", 40)
    # The digest names a file in the cache: anything but hexadecimal could name another place.
    if not is_safe_path(sibling.path) or len(digest) != length or not _HEX.issuperset(digest):
        return None
    if size is None or not 0 <= size <= MAX_FILE_BYTES:
        return None
    return WantedFile(repo, revision, commit, sibling.path, size, sha256, sibling.blob_id)


def _start(response: httpx2.Response, offset: int, file: WantedFile) -> int:
    """Where the body begins. RFC 9110, 14.2: a server may ignore Range and send everything with 200."""
    if response.status_code == 200:
        return 0
    content_range = response.headers.get("Content-Range", "")
    if response.status_code == 206 and content_range.startswith(f"bytes {offset}-"):
        total = content_range.rpartition("/")[2]
        if total in ("*", str(file.size_bytes)):
            return offset
    raise WrongContent(f"The hub sent another part of '{file.path}' than was asked for.")


def _whole(response: httpx2.Response) -> bytes:
    body = bytearray()
    for chunk in response.iter_bytes(CHUNK_BYTES):
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise HubError(f"The hub's answer is longer than {MAX_ANSWER_BYTES} bytes.")
    return bytes(body)


def _retry_after_s(value: str | None) -> float | None:
    """RFC 9110, 10.2.3: seconds or a date."""
    if not value:
        return None
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _later(after_s: float | None) -> str:
    return "later" if after_s is None else f"in {int(after_s) + 1} seconds"


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def check_query(query: str) -> str:
    """A search that may be sent.

    Raises:
        InvalidInput: it is empty or very long.
    """
    query = " ".join(query.split())
    if not 0 < len(query) <= 200:
        raise InvalidInput("Search for something of 1 to 200 characters.")
    return query
