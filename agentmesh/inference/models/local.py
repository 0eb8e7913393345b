"""Models on this machine: finding the one that is meant, deleting, pruning, and how much memory there is for them.

Owns what may be removed from the cache: only links and blobs of repositories that hold GGUF files, only inside the cache.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from stat import S_ISREG

import msgspec

from agentmesh.core.errors import Ambiguous, HomeError, NotFound, StorageError
from agentmesh.inference.logic.model_files import choose_model, is_gguf, model_id, quant_of
from agentmesh.inference.logic.names import MAX_SUGGESTIONS, find
from agentmesh.inference.logic.reference import CatalogName, HubFile, HubRepo, LocalFile, Reference
from agentmesh.inference.models.cache import PARTIAL_SUFFIX, CachedModel, HubCache, walk
from agentmesh.inference.models.catalog import look_up
from agentmesh.inference.models.errors import ModelFileUnusable, UnknownModel


class Removed(msgspec.Struct, frozen=True):
    """What was, or would be, removed."""

    paths: tuple[Path, ...]
    size_bytes: int


def find_local(reference: Reference, cache: HubCache) -> Path | None:
    """The first file of a model that is on this machine, or None when it would have to be fetched.

    Raises:
        ModelFileUnusable: a path leads nowhere, or parts of the model are missing. UnknownModel: no such name.
    """
    if isinstance(reference, LocalFile):
        path = Path(reference.path).expanduser().absolute()
        if not path.exists():
            raise ModelFileUnusable(f"{path} does not exist.")
        return path
    model = find_cached(reference, cache)
    return model.file if model is not None and not model.missing else None


def find_cached(reference: Reference, cache: HubCache) -> CachedModel | None:
    """The cached model that is meant; of several commits the current one."""
    if isinstance(reference, CatalogName):
        return _by_name(reference.name, cache)
    if isinstance(reference, LocalFile):
        return None
    models = cache.models(reference.repo)
    if isinstance(reference, HubFile):
        fitting = [model for model in models if model.path == reference.path]
    else:
        chosen = choose_model([model.path for model in models], reference.quant)
        fitting = [model for model in models if model.path == chosen]
    return max(fitting, key=lambda model: (model.current, model.commit), default=None)


def _by_name(name: str, cache: HubCache) -> CachedModel | None:
    by_id = {model_id(model.path): model for model in cache.models() if not model.missing}
    if name in by_id:
        return by_id[name]
    try:
        entry = look_up(name)
    except UnknownModel:
        keys, sure = find(name, dict.fromkeys(by_id, ()))
        if sure:
            return by_id[keys[0]]
        raise
    return find_cached(HubFile(entry.repo, entry.file), cache)


def installed_for_deletion(reference: Reference, cache: HubCache) -> list[CachedModel]:
    """The models that a user means to delete: exactly one, in all its commits.

    Raises:
        NotFound: nothing here fits. Ambiguous: several do. InvalidInput: it is a path outside the cache.
    """
    if isinstance(reference, LocalFile):
        path = Path(os.path.abspath(Path(reference.path).expanduser()))  # noqa: PTH100 - resolve() would follow to the blob
        fitting = [model for model in cache.models() if path in model.files]
        if not fitting:
            raise NotFound(f"{path} is not in the cache; remove it yourself.")
        return fitting
    if isinstance(reference, CatalogName):
        models = _named(reference.name, cache.models())
    elif isinstance(reference, HubFile):
        models = [model for model in cache.models(reference.repo) if model.path == reference.path]
    else:
        models = [m for m in cache.models(reference.repo) if reference.quant in ("", quant_of(m.path))]
    which = sorted({f"{model.repo}/{model.path}" for model in models})
    if not which:
        raise NotFound(f"'{_written(reference)}' is not installed. 'agentmesh models installed' lists what is.")
    if len(which) > 1:
        raise Ambiguous(f"Several fit: {', '.join(which[:MAX_SUGGESTIONS])}. Name one file.")
    return models


def _named(name: str, models: Sequence[CachedModel]) -> list[CachedModel]:
    exact = [model for model in models if model_id(model.path).lower() == name.lower()]
    if exact:
        return exact
    try:
        entry = look_up(name)
    except UnknownModel:
        return []
    return [model for model in models if (model.repo, model.path) == (entry.repo, entry.file)]


def _written(reference: HubFile | HubRepo | CatalogName) -> str:
    if isinstance(reference, CatalogName):
        return reference.name
    if isinstance(reference, HubFile):
        return f"{reference.repo}/{reference.path}"
    return f"{reference.repo}:{reference.quant}" if reference.quant else reference.repo


def delete(models: Sequence[CachedModel], cache: HubCache) -> Removed:
    """Remove models: their names, the projectors that nothing else needs, and every blob that no name is left for."""
    links: list[Path] = []
    for model in models:
        links += model.files
        left = [m for m in cache.models(model.repo) if m.commit == model.commit and m.path != model.path]
        if not left:
            snapshot = cache.repo(model.repo) / "snapshots" / model.commit
            links += [snapshot / path for path in cache.projectors(model)]
    removed = _unlink(links)
    freed = [
        _prune_repo(cache, repo, dry_run=False, partials=False) for repo in sorted({model.repo for model in models})
    ]
    return _sum([removed, *freed])


def prune(cache: HubCache, *, dry_run: bool = False) -> Removed:
    """Remove broken-off downloads, models of commits that no revision points to any more, and blobs without a name."""
    results: list[Removed] = []
    for repo in cache.repos():
        files = list(walk(cache.repo(repo) / "snapshots"))
        if files and not any(is_gguf(path.name) for path in files):
            continue  # another tool's models
        current = set(cache.refs(repo).values())
        old = [
            path
            for path in files
            if current and path.relative_to(cache.repo(repo) / "snapshots").parts[0] not in current
        ]
        results.append(_unlink(old, dry_run=dry_run))
        results.append(_prune_repo(cache, repo, dry_run=dry_run, partials=True, gone=frozenset(old)))
    return _sum(results)


def _prune_repo(
    cache: HubCache, repo: str, *, dry_run: bool, partials: bool, gone: frozenset[Path] = frozenset()
) -> Removed:
    folder = cache.repo(repo)
    named = {os.path.realpath(path) for path in walk(folder / "snapshots") if path not in gone}
    blobs = [path for path in walk(folder / "blobs", depth=0) if not _in_use(cache, repo, path)]
    unused = [
        path
        for path in blobs
        if (partials if path.name.endswith(PARTIAL_SUFFIX) else os.path.realpath(path) not in named)
    ]
    removed = _unlink(unused, dry_run=dry_run)
    if not dry_run:
        _remove_empty(folder / "snapshots")
    return removed


def _in_use(cache: HubCache, repo: str, blob: Path) -> bool:
    """Whether somebody downloads it right now."""
    from agentmesh.control.lock import FileLock

    digest = blob.name.removesuffix(PARTIAL_SUFFIX).split(".")[0]  # huggingface_hub: <digest>.<random>.incomplete
    path = cache.root / ".locks" / cache.repo(repo).name / f"{digest}.lock"
    if not path.exists():
        return False
    try:
        lock = FileLock.acquire(path)
    except HomeError:  # some network file systems have no locks: nobody can say
        return True
    if lock is None:
        return True
    lock.release()
    return False


def _unlink(paths: Iterable[Path], *, dry_run: bool = False) -> Removed:
    done: list[Path] = []
    size = 0
    for path in dict.fromkeys(paths):
        with contextlib.suppress(FileNotFoundError):
            try:
                status = path.lstat()
                if not dry_run:
                    path.unlink()
            except PermissionError as error:
                raise StorageError(f"{path} could not be removed: {error.strerror}.") from error
            done.append(path)
            size += status.st_size if S_ISREG(status.st_mode) else 0
    return Removed(tuple(done), size)


def _remove_empty(folder: Path) -> None:
    for inner in sorted(folder.rglob("*"), reverse=True):
        if inner.is_dir() and not inner.is_symlink():
            with contextlib.suppress(OSError):
                inner.rmdir()


def _sum(results: Sequence[Removed]) -> Removed:
    return Removed(tuple(p for r in results for p in r.paths), sum(r.size_bytes for r in results))


def machine_memory_bytes() -> int:
    """The machine's memory: the whole of it, for a model takes the place of what can be swapped or closed."""
    import psutil

    total = int(psutil.virtual_memory().total)
    return min(total, _cgroup_limit() or total)


def _cgroup_limit() -> int | None:
    """A container's own limit (cgroup v2), which the kernel's total does not know."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text("ascii").strip()
        return int(text) if text.isdigit() else None
    except (OSError, UnicodeDecodeError):
        return None
