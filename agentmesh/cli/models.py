"""`agentmesh models …` and `agentmesh download`: models known, installed and on the hub. Needs no node.

Owns the words; what they do is in inference.models, imported only when a command runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agentmesh.cli.output import emit_json, note, safe_line
from agentmesh.core.errors import InvalidInput
from agentmesh.core.paths import Home

if TYPE_CHECKING:
    from agentmesh.inference.models.cache import CachedModel, HubCache
    from agentmesh.inference.models.catalog import CatalogEntry
    from agentmesh.inference.models.download import DownloadPlan
    from agentmesh.inference.models.hub import Hub
    from agentmesh.inference.models.local import Removed

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _hub_and_cache() -> tuple[Hub, HubCache]:
    from agentmesh.inference.models.cache import HubCache
    from agentmesh.inference.models.hub import Hub
    from agentmesh.inference.models.settings import HubSettings

    settings = HubSettings.from_environment()
    return Hub(settings), HubCache(settings.cache)


def _reference(text: str) -> Any:
    from agentmesh.inference.logic.reference import parse_reference
    from agentmesh.inference.models.settings import HubSettings

    return parse_reference(text, HubSettings.from_environment().endpoint)


@click.group("models")
def models() -> None:
    """Find, download and look after models.

    Models live in the Hugging Face cache ($HF_HOME, $HF_HUB_CACHE). MODEL is a catalog name, org/repo/file.gguf,
    org/repo[:QUANT], a Hugging Face URL, or a path.
    """


@models.command("recommended")
@json_option
def recommended_command(as_json: bool) -> None:
    """Catalog models that fit this machine's memory, the largest first."""
    from agentmesh.inference.models.catalog import WEIGHTS_SHARE, recommended
    from agentmesh.inference.models.download import size_text
    from agentmesh.inference.models.local import machine_memory_bytes

    memory = machine_memory_bytes()
    entries = recommended(memory)
    if as_json:
        emit_json(
            {"memory_bytes": memory, "weights_share": WEIGHTS_SHARE, "models": [_entry(entry) for entry in entries]}
        )
        return
    note(f"{size_text(memory)} of memory; weights may fill {WEIGHTS_SHARE:.0%} of it")
    _show_entries(entries)


@models.command("installed")
@json_option
def installed_command(as_json: bool) -> None:
    """Models in the cache."""
    from agentmesh.inference.models.download import size_text

    _, cache = _hub_and_cache()
    found = cache.models()
    if as_json:
        emit_json({"cache": str(cache.root), "models": [_installed(model) for model in found]})
        return
    if not found:
        note(f"no models in {cache.root}")
    for model in found:
        row = _installed(model)
        state = "" if not model.missing else f"  {len(model.missing)} parts missing"
        old = "" if model.current else "  superseded"
        click.echo(safe_line(f"{row['id']:<44} {size_text(model.size_bytes):>9}  {model.repo}{state}{old}"))


@models.command("search")
@click.argument("query", nargs=-1, required=True)
@click.option("--catalog", "in_catalog", is_flag=True, help="Search the catalog only; asks nobody.")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, metavar="N", help="How many.")
@json_option
def search_command(query: tuple[str, ...], in_catalog: bool, limit: int, as_json: bool) -> None:
    """Search the hub for repositories with GGUF files."""
    import msgspec

    from agentmesh.inference.models.catalog import search_catalog
    from agentmesh.inference.models.hub import check_query

    words = check_query(" ".join(query))
    if in_catalog:
        entries = search_catalog(words)[:limit]
        if as_json:
            emit_json({"models": [_entry(entry) for entry in entries]})
        else:
            _show_entries(entries)
        return
    hub, _ = _hub_and_cache()
    hits = hub.search(words, limit)
    if as_json:
        emit_json({"repos": msgspec.to_builtins(hits)})
        return
    if not hits:
        note("nothing found")
    for hit in hits:
        click.echo(safe_line(f"{hit.repo:<64} {hit.downloads:>9} downloads  {hit.updated[:10]}"))


@models.command("show")
@click.argument("model", metavar="MODEL")
@json_option
def show_command(model: str, as_json: bool) -> None:
    """What a model is: from its file when it is here, else from the catalog or the hub."""
    from agentmesh.inference.models.local import find_local

    hub, cache = _hub_and_cache()
    reference = _reference(model)
    path = find_local(reference, cache)
    if path is not None:
        _show_file(path, as_json=as_json)
        return
    from agentmesh.inference.models.download import plan, size_text

    what = plan(reference, hub)
    row = _plan(what)
    if as_json:
        emit_json({"installed": False, **row})
        return
    click.echo(safe_line(f"{what.id}  (not installed)"))
    for file in what.files:
        click.echo(safe_line(f"  {size_text(file.size_bytes):>9}  {file.repo}/{file.path}"))


def _show_file(path: Path, *, as_json: bool) -> None:
    import msgspec

    from agentmesh.inference.logic.model_files import model_id
    from agentmesh.inference.models.download import size_text
    from agentmesh.inference.models.gguf import read_model

    model = read_model(path)
    facts = model.facts
    per_token = facts.kv_bytes_per_token()
    if as_json:
        row = msgspec.to_builtins(facts)
        del row["caches"]
        files = [str(file) for file in model.files]
        kv = {kind: facts.kv_bytes_per_token(kind, kind) for kind in ("f16", "q8_0", "q4_0")}
        context = {"kv_bytes_per_token": kv, "kv_bytes_at_full_context": facts.kv_bytes(facts.context_length)}
        emit_json(
            {
                "installed": True,
                "id": model_id(path.name),
                "files": files,
                "size_bytes": model.size_bytes,
                **row,
                **context,
            }
        )
        return
    experts = f", {facts.expert_count} experts of which {facts.expert_used_count} used" if facts.expert_count else ""
    window = f", sliding window {facts.sliding_window}" if facts.sliding_window else ""
    full = size_text(facts.kv_bytes(facts.context_length))
    click.echo(safe_line(f"{model_id(path.name)}  {facts.architecture} {facts.quant}"))
    for key, value in (
        ("weights", f"{size_text(facts.weight_bytes)}, {facts.parameter_count / 1e9:.2f} billion parameters{experts}"),
        ("layers", f"{facts.layer_count}, embedding {facts.embedding_length}"),
        ("heads", f"{facts.head_count}, for keys and values {facts.head_count_kv}{window}"),
        ("context", f"{facts.context_length} tokens; {per_token} bytes a token, {full} when full (f16)"),
        ("vocabulary", f"{facts.vocabulary.size} ({facts.vocabulary.model} {facts.vocabulary.pre})".replace(" )", ")")),
        ("files", ", ".join(str(file) for file in model.files)),
    ):
        click.echo(safe_line(f"  {key:<11} {value}"))


@models.command("download")
@click.argument("model", metavar="MODEL")
@click.option("--draft", is_flag=True, help="Also the small model that drafts for it.")
@json_option
def models_download(model: str, draft: bool, as_json: bool) -> None:
    """Download a model into the cache: resumed, checked, all its parts."""
    fetch_models(model, draft=draft, as_json=as_json)


@click.command("download")
@click.argument("name", required=False, metavar="[NAME]")
@click.option("--draft", is_flag=True, help="Also the small model that drafts for it.")
@json_option
def download(name: str | None, draft: bool, as_json: bool) -> None:
    """Download a model by name; without a name, list the catalog.

    The same as 'agentmesh models download': NAME may also be org/repo/file.gguf, org/repo[:QUANT] or a Hugging Face URL.
    """
    if name is not None:
        fetch_models(name, draft=draft, as_json=as_json)
        return
    if draft:
        raise InvalidInput("--draft needs the name of a model.")
    from agentmesh.inference.models.catalog import catalog

    if as_json:
        emit_json({"models": [_entry(entry) for entry in catalog()]})
    else:
        _show_entries(catalog())


def fetch_models(model: str, *, draft: bool, as_json: bool) -> None:
    """Download one model, and its draft when it is asked for."""
    from agentmesh.cli.progress import DownloadProgress
    from agentmesh.inference.logic.reference import CatalogName, HubFile
    from agentmesh.inference.models import catalog
    from agentmesh.inference.models.download import download as fetch
    from agentmesh.inference.models.download import plan

    hub, cache = _hub_and_cache()
    reference = _reference(model)
    plans = [plan(reference, hub)]
    if draft:
        if isinstance(reference, CatalogName):
            entry = catalog.look_up(reference.name)
        else:
            entry = catalog.entry_of(plans[0].model[0].repo, plans[0].model[0].path)
        drafting = catalog.draft_of(entry) if entry else None
        if drafting is None:
            note(f"the catalog has no draft model for {plans[0].id}")
        else:
            plans.append(plan(HubFile(drafting.repo, drafting.file), hub))
    done: list[dict[str, Any]] = []
    for what in plans:
        with DownloadProgress(what) as progress:
            result = fetch(what, [hub], cache, progress)
        files, projector = [str(path) for path in result.files], str(result.projector) if result.projector else None
        done.append({"id": result.id, "files": files, "projector": projector, "size_bytes": result.size_bytes})
        if not as_json:
            click.echo(safe_line(result.files[0]))
    if as_json:
        emit_json({"models": done})


@models.command("delete")
@click.argument("name", metavar="NAME")
@json_option
def delete_command(name: str, as_json: bool) -> None:
    """Delete a model from the cache, in all its versions."""
    from agentmesh.inference.models.local import delete, installed_for_deletion

    _, cache = _hub_and_cache()
    _show_removed(delete(installed_for_deletion(_reference(name), cache), cache), as_json=as_json, done="deleted")


@models.command("prune")
@click.option("--dry-run", is_flag=True, help="Show what would go; remove nothing.")
@json_option
def prune_command(dry_run: bool, as_json: bool) -> None:
    """Remove broken-off downloads and superseded versions from the cache.

    Touches only repositories that hold GGUF files, and nothing that is being downloaded.
    """
    from agentmesh.inference.models.local import prune

    _, cache = _hub_and_cache()
    _show_removed(prune(cache, dry_run=dry_run), as_json=as_json, done="would be freed" if dry_run else "freed")


@models.command("updates")
@click.argument("repo", required=False, metavar="[REPO]")
@click.option("--all", "everything", is_flag=True, help="Download the new version of every model that has one.")
@click.option("--check", is_flag=True, help="Only say what has one. The default without REPO and --all.")
@json_option
def updates_command(repo: str | None, everything: bool, check: bool, as_json: bool) -> None:
    """See whether installed models have newer versions, and download them."""
    from agentmesh.inference.logic.reference import is_repo
    from agentmesh.inference.models.download import size_text
    from agentmesh.inference.models.upkeep import check_updates

    if repo is not None and (everything or not is_repo(repo)):
        raise InvalidInput("Name one repository, org/repo, or --all, not both.")
    hub, cache = _hub_and_cache()
    updates = check_updates([model for model in cache.models(repo) if model.current], cache, hub)
    if not as_json:
        for update in updates:
            size = f"  {size_text(update.size_bytes)} to fetch" if update.size_bytes else ""
            click.echo(safe_line(f"{update.state:<10} {update.repo}/{update.path}{size}"))
        if not updates:
            note("nothing is installed that could be checked")
    if (repo is not None or everything) and not check:
        from agentmesh.cli.progress import DownloadProgress
        from agentmesh.inference.models.download import download as fetch

        for what in [u.plan for u in updates if u.plan is not None and u.state == "outdated"]:
            with DownloadProgress(what) as progress:
                fetch(what, [hub], cache, progress)
    if as_json:
        keys = ("repo", "path", "state", "commit", "size_bytes")
        emit_json({"models": [{key: getattr(update, key) for key in keys} for update in updates]})


@models.command("migrate")
@click.option("--apply", "apply", is_flag=True, help="Move them; without it, only say what would be done.")
@click.option("--from", "folder", metavar="DIR", default="~/.models", show_default=True, help="Where they lie now.")
@json_option
def migrate_command(apply: bool, folder: str, as_json: bool) -> None:
    """Move models of the catalog from ~/.models into the Hugging Face cache.

    Only files whose content is what the hub publishes, by their SHA-256; everything else stays where it is.
    """
    from agentmesh.inference.models.identity import FileIdentities
    from agentmesh.inference.models.upkeep import migrate, plan_migration

    hub, cache = _hub_and_cache()
    place = Path(folder).expanduser()
    planned = plan_migration(place, cache, hub) if place.is_dir() else []
    if apply:
        identities = FileIdentities.of_home(Home.from_environment())
        planned = [migrate(item, cache, identities) for item in planned]
    if as_json:
        emit_json(
            {
                "files": [
                    {"source": str(i.source), "action": i.action, "target": str(i.target or "") or None}
                    for i in planned
                ]
            }
        )
        return
    if not planned:
        note(f"no models in {place}")
    for item in planned:
        click.echo(safe_line(f"{item.action:<9} {item.source}" + (f" -> {item.target}" if item.target else "")))
    if not apply and any(item.action == "move" for item in planned):
        note("nothing was changed; --apply moves them")


def _show_removed(removed: Removed, *, as_json: bool, done: str) -> None:
    from agentmesh.inference.models.download import size_text

    if as_json:
        emit_json({"paths": [str(path) for path in removed.paths], "size_bytes": removed.size_bytes})
    else:
        click.echo(f"{size_text(removed.size_bytes)} {done}, {len(removed.paths)} files")


def _show_entries(entries: Sequence[CatalogEntry]) -> None:
    from agentmesh.inference.models.download import size_text

    for entry in entries:
        also = f" ({', '.join(entry.aliases)})" if entry.aliases else ""
        can = ", ".join(entry.capabilities)
        click.echo(f"{entry.name + also:<44} {size_text(entry.size_bytes):>9} {entry.context_tokens:>7} tokens  {can}")


def _entry(entry: CatalogEntry) -> dict[str, Any]:
    import msgspec

    row: dict[str, Any] = msgspec.to_builtins(entry)
    return {"id": entry.id, **row}


def _installed(model: CachedModel) -> dict[str, Any]:
    from agentmesh.inference.logic.model_files import model_id, quant_of

    return {
        "id": model_id(model.path),
        "repo": model.repo,
        "path": model.path,
        "quant": quant_of(model.path),
        "commit": model.commit,
        "current": model.current,
        "size_bytes": model.size_bytes,
        "files": [str(file) for file in model.files],
        "missing": list(model.missing),
    }


def _plan(what: DownloadPlan) -> dict[str, Any]:
    return {
        "id": what.id,
        "repo": what.model[0].repo,
        "commit": what.model[0].commit,
        "size_bytes": what.size_bytes,
        "files": [{"path": f.path, "size_bytes": f.size_bytes, "sha256": f.sha256} for f in what.files],
    }
