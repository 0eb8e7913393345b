"""Keeping what is installed current, and taking over models that lie elsewhere.

Owns `updates` (the hub has a newer commit of a file) and `migrate` (`~/.models` into the cache, only what the hub's own hash proves).
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from agentmesh.core.errors import StorageError
from agentmesh.inference.logic.model_files import base_name, is_gguf, parts
from agentmesh.inference.models import catalog
from agentmesh.inference.models.cache import CachedModel, HubCache, make_folder, walk
from agentmesh.inference.models.download import DownloadPlan, plan_file
from agentmesh.inference.models.errors import HubNotFound
from agentmesh.inference.models.hub import Hub
from agentmesh.inference.models.identity import FileIdentities
from agentmesh.inference.models.source import WantedFile


class Update(msgspec.Struct, frozen=True):
    """An installed model and what the hub has now."""

    repo: str
    path: str
    state: Literal["current", "outdated", "withdrawn"]
    commit: str
    size_bytes: int
    plan: DownloadPlan | None = None


def check_updates(models: Sequence[CachedModel], cache: HubCache, hub: Hub) -> list[Update]:
    """One answer for each model of a current commit that was fetched by a revision's name."""
    updates: list[Update] = []
    for repo in sorted({model.repo for model in models}):
        for revision, commit in sorted(cache.refs(repo).items()):
            listing = hub.listing(repo, revision)
            for model in (m for m in models if m.repo == repo and m.commit == commit):
                try:
                    what = plan_file(listing, model.path)
                except HubNotFound:
                    updates.append(Update(repo, model.path, "withdrawn", commit, 0))
                    continue
                missing = sum(file.size_bytes for file in what.files if not cache.has(file))
                state = "outdated" if missing else "current"
                updates.append(Update(repo, model.path, state, listing.commit, missing, what))
    return updates


class Migration(msgspec.Struct, frozen=True):
    """One file of the old folder, and what is done about it."""

    source: Path
    action: Literal["move", "moved", "unknown", "different", "present"]
    file: WantedFile | None = None
    target: Path | None = None


def plan_migration(folder: Path, cache: HubCache, hub: Hub) -> list[Migration]:
    """What could be moved: files that have the name and the size of a file of the catalog."""
    known = {base_name(part): (entry.repo, part) for entry in catalog.catalog() for part in parts(entry.file)}
    listings: dict[str, dict[str, WantedFile]] = {}
    result: list[Migration] = []
    for source in walk(folder):
        if not is_gguf(source.name) or source.is_symlink():
            continue
        repo, path = known.get(source.name, ("", ""))
        if not repo:
            result.append(Migration(source, "unknown"))
            continue
        if repo not in listings:
            listings[repo] = hub.listing(repo).files
        file = listings[repo].get(path)
        if file is None or file.sha256 is None or file.size_bytes != source.stat().st_size:
            result.append(Migration(source, "different"))
        else:
            result.append(Migration(source, "present" if cache.has(file) else "move", file, cache.pointer(file)))
    return result


def migrate(planned: Migration, cache: HubCache, identities: FileIdentities) -> Migration:
    """Move one file into the cache if its content is what the hub says; a name and a size prove nothing.

    Raises:
        StorageError: the disk does not take it. ModelFileUnusable: it cannot be read.
    """
    file = planned.file
    if planned.action != "move" or file is None or file.sha256 is None:
        return planned
    if identities.identify_now(planned.source).sha256 != file.sha256:
        return Migration(planned.source, "different")
    blob = cache.blob(file)
    make_folder(blob.parent)
    try:
        moved = _move(planned.source, blob, cache.partial(file), file.sha256)
    except OSError as error:
        raise StorageError(f"{planned.source} could not be moved to {blob}: {error.strerror}.") from error
    return (
        Migration(planned.source, "moved", file, cache.link(file)) if moved else Migration(planned.source, "different")
    )


def _move(source: Path, blob: Path, beside: Path, sha256: str) -> bool:
    try:
        os.rename(source, blob)  # noqa: PTH104 - the errno is looked at
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # Another disk: the copy gets its name only when it is whole and right, and the original goes last.
        shutil.copyfile(source, beside)
        with beside.open("rb+") as copy:
            os.fsync(copy.fileno())
            copied = hashlib.file_digest(copy, "sha256").hexdigest()
        if copied != sha256:
            beside.unlink()
            return False
        beside.replace(blob)
        source.unlink()
    return True
