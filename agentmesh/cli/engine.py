"""`agentmesh engine …` and `agentmesh gpus`: getting an engine, and what this machine has. Needs no node.

Owns the words; what they do is in inference.engine, imported only when a command runs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from agentmesh.cli.output import emit_json, note, safe_line
from agentmesh.core.errors import EXIT_DONE, EXIT_FAILED
from agentmesh.core.paths import Home

if TYPE_CHECKING:
    from agentmesh.inference.engine.doctor import Diagnosis, Finding
    from agentmesh.inference.engine.engine import Device, Engine, EngineSearch
    from agentmesh.inference.engine.hardware import Hardware

FLAVOR_NAMES: Final = ("cpu", "cuda", "rocm", "vulkan", "metal")
MAX_JOBS: Final = 256

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
bin_dir_option = click.option(
    "--bin-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Look for llama.cpp's programs only here. Also $AGENTMESH_BIN_DIR.",
)
flavor_option = click.option(
    "--llama-flavor",
    "flavor",
    type=click.Choice((*FLAVOR_NAMES, "embedded")),
    metavar="FLAVOR",
    help="Only engines of this flavour.",
)


@click.group("engine")
def engine() -> None:
    """Get llama.cpp, and see which one is used.

    Looked for in this order: --bin-dir, $AGENTMESH_BIN_DIR, what 'agentmesh engine install' built, $PATH, the embedded extra.
    """


@engine.command("install")
@click.option("--flavor", type=click.Choice(FLAVOR_NAMES), help="What to build for; else what suits this machine.")
@click.option(
    "--jobs", type=click.IntRange(1, MAX_JOBS), metavar="N", help="Compilers at once; else by CPUs and memory."
)
@click.option("--force", is_flag=True, help="Build again what is there already.")
@click.option(
    "--sdist",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The source, downloaded before: the pinned sdist of llama-cpp-python.",
)
@json_option
def install_command(flavor: str | None, jobs: int | None, force: bool, sdist: Path | None, as_json: bool) -> None:
    """Build llama.cpp for this machine: 5 to 10 minutes on two cores; needs CMake and a C++ compiler.

    Prints the folder of the programs. Quick when the same build is there. $AGENTMESH_ENGINE_CACHE names a folder for builds
    that several homes share.
    """
    from agentmesh.inference.engine.build import InstallRequest, install

    home = Home.from_environment()
    home.prepare()
    with _BuildProgress() as progress:
        done = install(InstallRequest(home, dict(os.environ), flavor, jobs, force, sdist), progress.say, progress)
    record = done.build.record
    if as_json:
        emit_json(
            {
                "bin": str(done.build.bin),
                "flavor": record.flavor,
                "commit": record.commit,
                "build_s": record.build_s,
                "was_there": done.was_there,
            }
        )
        return
    note("already built" if done.was_there else f"built in {record.build_s:.0f} s")
    click.echo(safe_line(done.build.bin))


class _BuildProgress:
    """A step and its percentage on stderr: one line that moves in a terminal, a line every tenth elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._shown = ""
        self._open = False

    def __enter__(self) -> _BuildProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_line()

    def say(self, sentence: str) -> None:
        self._close_line()
        note(sentence)

    def _close_line(self) -> None:
        if self._open:
            self._open = False
            print(file=sys.stderr, flush=True)

    def __call__(self, step: str, percent: int) -> None:
        shown = percent if self._terminal else percent // 10 * 10
        line = f"{step}: {shown} %" if percent else step
        if line == self._shown:
            return
        self._shown = line
        if self._terminal:
            self._open = True
            print(f"\r\x1b[K{safe_line(line)}", end="", file=sys.stderr, flush=True)
        else:
            note(line)


def _search(bin_dir: Path | None, flavor: str | None) -> EngineSearch:
    from agentmesh.inference.engine.engine import EngineSearch

    return EngineSearch(bin_dir, Home.from_environment(), flavor, dict(os.environ))


@engine.command("list")
@bin_dir_option
@flavor_option
@json_option
def list_command(bin_dir: Path | None, flavor: str | None, as_json: bool) -> None:
    """Engines on this machine, in the order in which they are used."""
    import asyncio

    from agentmesh.inference.engine.doctor import look

    diagnosis = asyncio.run(look(_search(bin_dir, flavor)))
    if as_json:
        emit_json({"engines": [_row(finding, diagnosis) for finding in diagnosis.findings]})
        return
    if not diagnosis.findings:
        note(f"there is no {f'{flavor} ' if flavor else ''}engine here: agentmesh engine install builds one")
    for finding in diagnosis.findings:
        click.echo(_line(finding, diagnosis))


@engine.command("doctor")
@bin_dir_option
@flavor_option
@json_option
def doctor_command(bin_dir: Path | None, flavor: str | None, as_json: bool) -> int:
    """Check every engine: what it is, whether its server starts, what is wrong and what to do.

    The exit code is 1 when none can be used.
    """
    import asyncio

    from agentmesh.inference.engine.doctor import look

    diagnosis = asyncio.run(look(_search(bin_dir, flavor), start=True))
    if as_json:
        foreign = [{"folder": str(folder), "reason": why} for folder, why in diagnosis.foreign]
        rows = [_row(finding, diagnosis) for finding in diagnosis.findings]
        emit_json({"engines": rows, "foreign_builds": foreign, "hints": diagnosis.hints})
    else:
        _show_diagnosis(diagnosis)
    return EXIT_DONE if diagnosis.chosen is not None else EXIT_FAILED


def _show_diagnosis(diagnosis: Diagnosis) -> None:
    for finding in diagnosis.findings:
        click.echo(_line(finding, diagnosis))
        if finding.problem:
            click.echo(safe_line(f"    does not work: {finding.problem}"))
        if finding.engine is None:
            continue
        if finding.starts:
            click.echo(f"    starts and is healthy after {finding.start_s:.1f} s")
        click.echo(f"    split over nodes: {'yes' if finding.engine.has_rpc else 'no'}{_hashing_note(finding.engine)}")
        for device in finding.engine.devices:
            click.echo(f"    {_device_line(device)}")
    for folder, why in diagnosis.foreign:
        click.echo(safe_line(f"  {folder}  not for this machine: {why}"))
    for hint in diagnosis.hints:
        note(hint)


def _hashing_note(engine: Engine) -> str:
    return (
        ""
        if engine.tensor_hash or not engine.has_rpc
        else " (no program to hash weights beside it: first loads take longer)"
    )


def _line(finding: Finding, diagnosis: Diagnosis) -> str:
    found, probed = finding.found, finding.engine
    mark = "*" if finding is diagnosis.chosen else " "
    flavor = probed.flavor if probed else found.flavor or "?"
    version = "does not work" if probed is None else _version(probed.build, probed.commit)
    where = "in this Python" if found.is_embedded else str(found.program)
    return safe_line(f"{mark} {flavor:<7} {version:<16} {found.origin:<17} {where}")


def _version(build: int | None, commit: str) -> str:
    return f"{build} {commit}".strip() if build else commit or "version unknown"


def _row(finding: Finding, diagnosis: Diagnosis) -> dict[str, Any]:
    found, probed = finding.found, finding.engine
    return {
        "used": finding is diagnosis.chosen,
        "origin": found.origin,
        "command": list(found.command),
        "rpc_server": str(found.rpc_server) if found.rpc_server else None,
        "tensor_hash": str(found.tensor_hash) if found.tensor_hash else None,
        "flavor": probed.flavor if probed else found.flavor or None,
        "build": probed.build if probed else None,
        "commit": (probed.commit or None) if probed else None,
        "devices": [_device_row(device) for device in probed.devices] if probed else [],
        "unix_sockets": probed.unix_sockets if probed else None,
        "split": probed.has_rpc if probed else None,
        "missing_flags": list(finding.missing),
        "starts": finding.starts,
        "start_s": finding.start_s if finding.starts else None,
        "problem": finding.problem or None,
    }


@click.command("gpus")
@bin_dir_option
@flavor_option
@json_option
def gpus(bin_dir: Path | None, flavor: str | None, as_json: bool) -> None:
    """Processor, memory and accelerators of this machine, as the engine sees them."""
    import asyncio

    from agentmesh.inference.models.download import size_text

    report = asyncio.run(_hardware(_search(bin_dir, flavor)))
    if as_json:
        emit_json(
            {
                "cpu": {"model": report.cpu, "cores": report.cores, "threads": report.threads},
                "memory": {
                    "total_bytes": report.memory_total_bytes,
                    "available_bytes": report.memory_available_bytes,
                },
                "devices": [_device_row(device) for device in report.devices],
                "devices_from": report.devices_from,
                "devices_usable": report.usable_devices,
                "note": report.note or None,
            }
        )
        return
    click.echo(safe_line(f"{report.cpu}, {report.cores} cores, {report.threads} threads"))
    click.echo(
        f"{size_text(report.memory_total_bytes)} of memory, {size_text(report.memory_available_bytes)} available"
    )
    for device in report.devices:
        click.echo(_device_line(device))
    if not report.devices:
        click.echo("no accelerator")
    if report.note:
        note(report.note)


async def _hardware(search: EngineSearch) -> Hardware:
    """The report with the engine that a node would use; one that is missing or broken is said in the report."""
    from dataclasses import replace

    from agentmesh.inference.engine.errors import EngineFailed, EngineMissing, EngineTooOld
    from agentmesh.inference.engine.hardware import hardware
    from agentmesh.inference.engine.probe import resolve_engine

    try:
        chosen = await resolve_engine(search)
    except (EngineMissing, EngineFailed, EngineTooOld) as error:
        if search.bin_dir is not None:
            raise
        return replace(await hardware(None, search.environ), note=error.message)
    return await hardware(chosen, search.environ)


def _device_row(device: Device) -> dict[str, Any]:
    return {
        "name": device.name,
        "description": device.description,
        "total_bytes": device.total_bytes,
        "free_bytes": device.free_bytes,
    }


def _device_line(device: Device) -> str:
    from agentmesh.inference.models.download import size_text

    memory = f", {size_text(device.free_bytes)} of {size_text(device.total_bytes)} free" if device.total_bytes else ""
    return safe_line(f"{device.name}: {device.description}{memory}")
