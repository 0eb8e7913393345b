"""Downloading a model: which files of a repository belong to it, whether they fit the disk, then one after the other.

Owns the plan and its order. Bytes are the matter of transfer, names of reference and catalog.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec

from agentmesh.core.errors import InvalidInput
from agentmesh.inference.logic.model_files import (
    choose_model,
    choose_projector,
    model_id,
    models_in,
    parts,
    quant_of,
)
from agentmesh.inference.logic.reference import CatalogName, HubFile, HubRepo, Reference
from agentmesh.inference.models.cache import HubCache
from agentmesh.inference.models.catalog import look_up
from agentmesh.inference.models.errors import HubNotFound, NoSpace
from agentmesh.inference.models.hub import RepoListing
from agentmesh.inference.models.source import FileSource, Pause, WantedFile
from agentmesh.inference.models.transfer import Progress, fetch

SPACE_MARGIN_BYTES: Final = 256 * 1024 * 1024  # what the system and a log need while a disk is nearly full
_SHOWN: Final = 12

FreeBytes = Callable[[Path], int]


class DownloadPlan(msgspec.Struct, frozen=True):
    """The files of one model, first part first, and the projector that goes with it."""

    id: str
    model: tuple[WantedFile, ...]
    projector: WantedFile | None

    @property
    def files(self) -> tuple[WantedFile, ...]:
        """All of them."""
        return self.model if self.projector is None else (*self.model, self.projector)

    @property
    def size_bytes(self) -> int:
        """All of them together."""
        return sum(file.size_bytes for file in self.files)


class Downloaded(msgspec.Struct, frozen=True):
    """Where a model is."""

    id: str
    files: tuple[Path, ...]
    projector: Path | None
    size_bytes: int


class Listings(Protocol):
    """Whoever can tell what a repository holds: the hub, or members of the mesh in its absence."""

    def listing(self, repo: str, revision: str = ...) -> RepoListing:
        """The files of a repository. Raises: HubNotFound, HubError and its kin."""
        ...


def plan(reference: Reference, hub: Listings) -> DownloadPlan:
    """What downloading `reference` would fetch.

    Raises:
        InvalidInput: the reference is a path. UnknownModel, HubError and its kin: as their names say.
    """
    if isinstance(reference, CatalogName):
        entry = look_up(reference.name)
        reference = HubFile(entry.repo, entry.file)
    if not isinstance(reference, HubFile | HubRepo):
        raise InvalidInput(f"'{reference.path}' is a file on this machine; there is nothing to download.")
    listing = hub.listing(reference.repo, reference.revision)
    if isinstance(reference, HubFile):
        return plan_file(listing, reference.path)
    path = choose_model(list(listing.files), reference.quant)
    if path is None:
        raise HubNotFound(_no_such_quant(listing, reference.quant))
    return plan_file(listing, path)


def plan_file(listing: RepoListing, path: str) -> DownloadPlan:
    """All files that go with one file of a repository.

    Raises:
        HubNotFound: the repository has not got it, or not all parts of it.
    """
    wanted = parts(path)
    missing = [part for part in wanted if part not in listing.files]
    if missing:
        if path in listing.files:
            raise HubNotFound(f"{listing.repo} lacks parts of this model: {', '.join(missing[:_SHOWN])}.")
        raise HubNotFound(f"{listing.repo} has no file '{path}'. {_what_there_is(listing)}")
    projector = choose_projector(list(listing.files), wanted[0])
    files = tuple(listing.files[part] for part in wanted)
    return DownloadPlan(model_id(wanted[0]), files, listing.files[projector] if projector else None)


def download(
    what: DownloadPlan,
    sources: Sequence[FileSource],
    cache: HubCache,
    progress: Progress = lambda _file, _done: None,
    pause: Pause = time.sleep,
    free_bytes: FreeBytes = lambda path: shutil.disk_usage(path).free,
) -> Downloaded:
    """Fetch all that is missing.

    Raises:
        NoSpace: it would not fit; nothing was fetched. HubError and its kin, StorageError: see transfer.fetch.
    """
    check_space(what, cache, free_bytes)
    places = {file.path: fetch(file, sources, cache, progress, pause) for file in what.files}
    projector = places[what.projector.path] if what.projector else None
    return Downloaded(what.id, tuple(places[file.path] for file in what.model), projector, what.size_bytes)


def check_space(what: DownloadPlan, cache: HubCache, free_bytes: FreeBytes) -> None:
    """Refuse what cannot fit, before the first byte.

    Raises:
        NoSpace: with what is needed and what there is.
    """
    missing = sum(file.size_bytes - _arrived(file, cache) for file in what.files)
    place = next(folder for folder in (cache.root, *cache.root.parents) if folder.exists())
    free = free_bytes(place)
    if missing and missing + SPACE_MARGIN_BYTES > free:
        raise NoSpace(
            f"{what.id} needs {size_text(missing)} more and {size_text(SPACE_MARGIN_BYTES)} to spare; {place} has "
            f"{size_text(free)} free. 'agentmesh models delete' and 'agentmesh models prune' free space."
        )


def _arrived(file: WantedFile, cache: HubCache) -> int:
    if cache.has(file):
        return file.size_bytes
    try:
        return min(cache.partial(file).stat().st_size, file.size_bytes)
    except OSError:
        return 0


def size_text(size_bytes: float) -> str:
    """A size in the decimal units that hubs and disks use."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return (
                f"{size_bytes / factor:.1f} {unit}"
                if size_bytes < 100 * factor
                else f"{size_bytes / factor:.0f} {unit}"
            )
    return f"{int(size_bytes)} B"


def _no_such_quant(listing: RepoListing, quant: str) -> str:
    if not models_in(list(listing.files)):
        return (
            f"{listing.repo} has no GGUF files. Its name with -GGUF at the end may have them: agentmesh models search."
        )
    return f"{listing.repo} has no {quant} file. {_what_there_is(listing)}"


def _what_there_is(listing: RepoListing) -> str:
    models = models_in(list(listing.files))
    names = [quant_of(path) or path for path in models]
    return f"It has: {', '.join(dict.fromkeys(names[:_SHOWN]))}." if models else "It has no GGUF files."
