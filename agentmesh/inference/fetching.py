"""From what a user wrote to files on this machine: finding, downloading, and checking a model. Everything here blocks.

Owns the names under which a model may be asked for, and what belongs to it (parts, projector). Knows no engine and no memory.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from agentmesh.core.errors import InvalidInput
from agentmesh.inference.logic.model_files import choose_projector, is_model, is_projector, model_id, parts
from agentmesh.inference.logic.presence import MAX_ALIASES, MAX_NAME_CHARS
from agentmesh.inference.logic.reference import CatalogName, HubFile, HubRepo, LocalFile, Reference, parse_reference
from agentmesh.inference.models.cache import CachedModel, HubCache
from agentmesh.inference.models.catalog import CatalogEntry, entry_of, look_up
from agentmesh.inference.models.download import DownloadPlan, download, plan
from agentmesh.inference.models.errors import ModelFileUnusable, UnknownModel
from agentmesh.inference.models.gguf import ModelOnDisk, read_header, read_model
from agentmesh.inference.models.hub import Hub
from agentmesh.inference.models.local import find_cached
from agentmesh.inference.models.settings import HubSettings
from agentmesh.inference.models.source import FileSource, WantedFile
from agentmesh.inference.serving_types import LoadRequest

PROGRESS_EVERY_BYTES: Final = 4_000_000  # seldom enough that the loop does not notice
MAX_FOLDER_ENTRIES: Final = 10_000  # looked at for a projector


class DownloadStopped(Exception):
    """Nobody wants the model any more."""


class ModelSources(Protocol):
    """Who tells what a reference means, and who gives the bytes; blob_listing.MeshFiles puts members before the hub."""

    def plan(self, reference: Reference, hub: Hub) -> DownloadPlan: ...

    def sources(self, hub: Hub) -> Sequence[FileSource]: ...


class HubOnly:
    """The hub, and nobody else."""

    def plan(self, reference: Reference, hub: Hub) -> DownloadPlan:
        return plan(reference, hub)

    def sources(self, hub: Hub) -> Sequence[FileSource]:
        return [hub]


@dataclass(frozen=True, slots=True)
class Located:
    """What is meant: the model's first file when it is here, else what would have to be fetched."""

    id: str
    file: Path | None
    projector: Path | None
    plan: DownloadPlan | None
    aliases: tuple[str, ...]
    entry: CatalogEntry | None


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model that is here and whole, as far as its header tells."""

    model: ModelOnDisk
    projector: Path | None
    projector_bytes: int


class Fetcher:
    """Blocking work for one node, called in threads. Holds nothing that changes."""

    def __init__(
        self, sources: ModelSources | None = None, settings: Callable[[], HubSettings] = HubSettings.from_environment
    ) -> None:
        self._sources = sources or HubOnly()
        self._settings = settings

    def locate(self, request: LoadRequest, stop: threading.Event) -> Located:
        """Which model is meant, and whether it is here. Asks the hub only when it is not.

        Raises:
            DownloadStopped: `stop` was set.
            InvalidInput, UnknownModel, ModelFileUnusable, HubError and its kin: as their names say.
        """
        settings = self._settings()
        reference = LocalFile(request.model) if request.is_path else parse_reference(request.model, settings.endpoint)
        if isinstance(reference, LocalFile):
            return _local(reference)
        cache = HubCache(settings.cache)
        cached = find_cached(reference, cache)
        if cached is not None and not cached.missing:
            entry = entry_of(cached.repo, cached.path)
            names = _aliases(request.model, reference, entry, model_id(cached.path))
            return Located(model_id(cached.path), cached.file, _cached_projector(cached, cache), None, names, entry)
        what = self._sources.plan(reference, Hub(settings, pause=lambda seconds: _pause(seconds, stop)))
        entry = entry_of(what.model[0].repo, what.model[0].path)
        return Located(what.id, None, None, what, _aliases(request.model, reference, entry, what.id), entry)

    def fetch(
        self, what: DownloadPlan, progress: Callable[[int], None], stop: threading.Event
    ) -> tuple[Path, Path | None]:
        """Download; returns the first file and the projector. `progress` is told the bytes that are here, from this thread.

        Raises:
            DownloadStopped: `stop` was set. NoSpace, HubError and its kin, StorageError: see models.download.
        """
        settings = self._settings()
        hub = Hub(settings, pause=lambda seconds: _pause(seconds, stop))
        done: dict[str, int] = {}
        told = 0

        def seen(file: WantedFile, done_bytes: int) -> None:
            nonlocal told
            if stop.is_set():
                raise DownloadStopped
            done[file.path] = done_bytes
            whole = sum(done.values())
            if whole - told >= PROGRESS_EVERY_BYTES or whole == what.size_bytes:
                told = whole
                progress(whole)

        got = download(
            what, self._sources.sources(hub), HubCache(settings.cache), seen, lambda seconds: _pause(seconds, stop)
        )
        return got.files[0], got.projector


def check(file: Path, projector: Path | None) -> ModelFiles:
    """The model's header, and the certainty that all its parts are there and whole.

    Raises:
        ModelFileUnusable: with what is wrong.
    """
    if projector is not None:
        read_header(projector)
    return ModelFiles(read_model(file), projector, projector.stat().st_size if projector is not None else 0)


def _pause(seconds: float, stop: threading.Event) -> None:
    if stop.wait(seconds):
        raise DownloadStopped


def _local(reference: LocalFile) -> Located:
    try:
        path = Path(reference.path).expanduser().absolute()
        if path.is_dir():
            raise ModelFileUnusable(f"{path} is a folder; name the GGUF file in it.")
        if not path.exists():
            raise ModelFileUnusable(f"{path} does not exist.")
    except (OSError, RuntimeError) as error:  # RuntimeError: a ~ of nobody
        why = error.strerror if isinstance(error, OSError) else error
        raise ModelFileUnusable(f"{reference.path} cannot be looked at: {why}.") from error
    name = model_id(path.name)
    if not name.isprintable() or len(name) > MAX_NAME_CHARS or not _is_utf8(name):
        raise InvalidInput(f"A model cannot be served under the name of {path.parent / '…'}: rename the file.")
    if is_projector(path.name):
        raise ModelFileUnusable(f"{path} is the projector of a model; name the model, and the projector comes along.")
    first = path.with_name(parts(path.name)[0])
    return Located(name, first, _projector_beside(first), None, (), None)


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _projector_beside(file: Path) -> Path | None:
    """The projector in a model's folder, if that folder holds no other model that it could belong to."""
    try:
        with os.scandir(file.parent) as entries:
            names = [entry.name for entry, _ in zip(entries, range(MAX_FOLDER_ENTRIES), strict=False)]
    except OSError:
        return None
    if [name for name in names if is_model(name)] != [file.name]:
        return None
    chosen = choose_projector(names, file.name)
    return file.with_name(chosen) if chosen is not None else None


def _cached_projector(model: CachedModel, cache: HubCache) -> Path | None:
    chosen = choose_projector(cache.projectors(model), model.path)
    return cache.repo(model.repo) / "snapshots" / model.commit / chosen if chosen is not None else None


def _aliases(written: str, reference: Reference, entry: CatalogEntry | None, own_id: str) -> tuple[str, ...]:
    """Other names for requests: the catalog's, and the repository as the user wrote it. No URLs, no long ones."""
    names: list[str] = []
    if entry is not None:
        names += [entry.name, *entry.aliases]
    if isinstance(reference, HubRepo):
        names += [written.strip(), reference.repo]
    if isinstance(reference, HubFile):
        names += [f"{reference.repo}/{reference.path}"]
    if isinstance(reference, CatalogName) and entry is None:
        names += [written.strip()]
    usable = (name for name in names if name != own_id and "://" not in name and len(name) <= MAX_NAME_CHARS)
    return tuple(dict.fromkeys(usable))[:MAX_ALIASES]


def catalog_names(text: str) -> tuple[str, ...]:
    """The id of the catalog's entry that `text` means, so that `unload 7b` finds what `load 7b` brought."""
    try:
        return (look_up(text).id,)
    except UnknownModel:
        return ()
