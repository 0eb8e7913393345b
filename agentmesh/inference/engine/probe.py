"""Asks an engine what it is: `--version`, `--help`, `--list-devices`. Nothing about flags or devices is assumed.

Programs answer for as long as their file is the same; failures are not remembered. Choosing the engine for a node is here too.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Mapping
from typing import Final

from agentmesh.core.errors import InvalidInput
from agentmesh.inference.engine.engine import ORIGIN_EMBEDDED, Device, Engine, EngineSearch, FoundEngine
from agentmesh.inference.engine.errors import GET_EMBEDDED, TWO_WAYS, EngineFailed, EngineMissing, EngineTooOld
from agentmesh.inference.engine.limits import MAX_OUTPUT_BYTES, MAX_REMEMBERED, PROBE_TIMEOUT_S
from agentmesh.inference.engine.locate import find_engines, foreign_builds, named_folder
from agentmesh.inference.engine.pin import check_flavor
from agentmesh.inference.engine.run_program import Ran, ask
from agentmesh.inference.logic.engine_output import (
    flavor_of,
    read_devices,
    read_flags,
    read_unix_sockets,
    read_version,
)

SHOWN_LINES: Final = 4
# Options that server_arguments cannot do without; each line names what would do as well.
NEEDED: Final = (
    ("--model", "-m"),
    ("--ctx-size", "-c"),
    ("--parallel", "-np"),
    ("--host",),
    ("--port",),
)
NEEDED_WITHOUT_UNIX_SOCKETS: Final = (("--api-key",),)  # a loopback port is open to every user of the machine

_Stamp = tuple[FoundEngine, int, int]
_remembered: dict[_Stamp, Engine] = {}


def _stamp(found: FoundEngine) -> _Stamp:
    """What an answer is valid for: the command, and the size and time of its file."""
    try:
        status = found.program.stat()
    except OSError as error:
        raise EngineFailed(f"{found.program} cannot be read: {error.strerror}.") from error
    return (found, status.st_size, status.st_mtime_ns)


def question_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The user's environment without llama.cpp's own variables: they would change what it answers."""
    kept = {name: value for name, value in environ.items() if not name.startswith("LLAMA_ARG_")}
    return {**kept, "GGML_NO_BACKTRACE": "1"}


async def probe(found: FoundEngine, environ: Mapping[str, str] | None = None) -> Engine:
    """Ask one engine.

    Raises:
        EngineFailed: it does not run here, hangs, or is not llama.cpp's server; the message says which.
    """
    stamp = _stamp(found)
    if (known := _remembered.get(stamp)) is not None:
        return known
    asked = question_environment(os.environ if environ is None else environ)
    help_text = await _answer(found, "--help", asked)
    flags = read_flags(help_text)
    if not flags & {"--model", "-m", "--ctx-size"}:
        raise EngineFailed(
            f"{_name(found)} is not llama.cpp's server: its --help names no option for a model. It printed:{_shown(help_text)}"
        )
    build, commit = read_version(await _answer(found, "--version", asked))
    listed = await _answer(found, "--list-devices", asked) if "--list-devices" in flags else ""
    devices = tuple(Device(*device) for device in read_devices(listed))
    engine = Engine(
        command=found.command,
        rpc_server=found.rpc_server,
        gguf_split=found.gguf_split,
        imatrix=found.imatrix,
        flavor=found.flavor or flavor_of(tuple(device.name for device in devices)),
        origin=found.origin,
        build=build,
        commit=commit,
        flags=flags,
        devices=devices,
        unix_sockets=read_unix_sockets(help_text),
        tensor_hash=found.tensor_hash,
    )
    while len(_remembered) >= MAX_REMEMBERED:
        del _remembered[next(iter(_remembered))]
    _remembered[stamp] = engine
    return engine


async def devices_now(engine: Engine, environ: Mapping[str, str] | None = None) -> tuple[Device, ...]:
    """The devices with the memory that is free at this moment; `Engine.devices` has what was free when it was probed.

    Raises:
        EngineFailed: it does not answer.
    """
    if "--list-devices" not in engine.flags:
        return ()
    found = FoundEngine(engine.command, engine.origin, engine.flavor)
    asked = question_environment(os.environ if environ is None else environ)
    return tuple(Device(*device) for device in read_devices(await _answer(found, "--list-devices", asked)))


async def _answer(found: FoundEngine, option: str, environ: Mapping[str, str]) -> str:
    ran = await ask((*found.command, option), timeout_s=PROBE_TIMEOUT_S, environ=environ)
    if ran.code == 0:
        return ran.output
    raise EngineFailed(f"{_name(found)} {_why(ran, option)}")


def _name(found: FoundEngine) -> str:
    return "The embedded engine" if found.is_embedded else f"The engine {found.program} (from {found.origin})"


def _why(ran: Ran, option: str) -> str:
    if ran.error is not None:
        if ran.error.errno == errno.ENOEXEC:
            return "is not a program for this machine: it was built for another system or processor."
        if ran.error.errno == errno.EACCES:
            return "may not be executed; run chmod +x on it."
        return f"could not be started: {ran.error.strerror}."
    if ran.late:
        return f"did not answer {option} within {PROBE_TIMEOUT_S:.0f} s, and was ended."
    if ran.flooded:
        return f"printed over {MAX_OUTPUT_BYTES >> 20} MiB for {option}, and was ended; it is not llama.cpp's server."
    if ran.code == -signal.SIGILL:
        return "was built for another processor: it uses instructions that this one lacks. Build one with `agentmesh engine install`."
    if "error while loading shared libraries" in ran.output or "Library not loaded" in ran.output:
        return f"lacks a library:{_shown(ran.output)}"
    how = f"signal {-ran.code}" if ran.code is not None and ran.code < 0 else f"exit status {ran.code}"
    return f"failed when asked for {option} ({how}):{_shown(ran.output)}"


def _shown(text: str) -> str:
    lines = [line[:200] for line in text.strip().splitlines()[-SHOWN_LINES:]]
    return "\n" + "\n".join(lines) if lines else " (nothing)"


def missing_flags(engine: Engine) -> tuple[str, ...]:
    """The options that agentmesh needs and this engine does not have."""
    needed = NEEDED if engine.unix_sockets else NEEDED + NEEDED_WITHOUT_UNIX_SOCKETS
    return tuple(spellings[0] for spellings in needed if not engine.flags.intersection(spellings))


async def resolve_engine(search: EngineSearch) -> Engine:
    """The first engine that works and has the options we need, of the wanted flavour.

    A folder that the user named is not quietly passed over: what is wrong with its engine is the error.

    Raises:
        EngineMissing: there is none; says how to get one, and what was wrong with those that were found.
        EngineTooOld: the only ones that work lack options; the message names them.
        EngineFailed: the engine in the folder that the user named does not work.
        UnknownFlavor: there is no such flavour. InvalidInput: a folder was named, and the embedded engine.
    """
    if search.flavor == ORIGIN_EMBEDDED:
        if search.bin_dir is not None:
            raise InvalidInput(
                "--llama-flavor embedded and --bin-dir name two different engines; leave one of them out."
            )
    elif search.flavor is not None:
        check_flavor(search.flavor)
    named = named_folder(search)
    found = find_engines(search)
    if named is not None:
        found = [engine for engine in found if engine.origin == named[0]]
        if not found:
            raise EngineMissing(_not_in_folder(search, *named))
    problems: list[EngineFailed | EngineTooOld | EngineMissing] = []
    for candidate in found:
        try:
            engine = await probe(candidate, search.environ)
            _check(engine, candidate, search.flavor)
        except (EngineFailed, EngineTooOld, EngineMissing) as error:
            problems.append(error)
        else:
            return engine
    if problems and (named is not None or len(problems) == 1):
        raise problems[0]
    too_old = next((problem for problem in problems if isinstance(problem, EngineTooOld)), None)
    raise too_old or EngineMissing(_nothing(search, [problem.message for problem in problems]))


def _check(engine: Engine, found: FoundEngine, flavor: str | None) -> None:
    if missing := missing_flags(engine):
        known = f"build {engine.build}" if engine.build else engine.commit or "unknown version"
        raise EngineTooOld(
            f"{_name(found)}, {known}, has no {', '.join(missing)}, which agentmesh needs. Use a newer llama.cpp, or build "
            "one with `agentmesh engine install`."
        )
    if flavor not in (None, engine.flavor, engine.origin if engine.is_embedded else None):
        raise EngineMissing(
            f"{_name(found)} is of flavour {engine.flavor}, not {flavor}. Build one with `agentmesh engine install --flavor {flavor}`."
        )


def _not_in_folder(search: EngineSearch, origin: str, folder: os.PathLike[str]) -> str:
    name = f"llama-server-{search.flavor} or llama-server" if search.flavor else "llama-server"
    return f"There is no {name} in {os.fspath(folder)}, which {origin} names. Name the folder with llama.cpp's programs, or leave it out."


def _nothing(search: EngineSearch, problems: list[str]) -> str:
    problems = problems + [f"{folder}: {why}." for folder, why in foreign_builds(search)]
    if search.flavor == ORIGIN_EMBEDDED:
        text = f"The embedded engine is not installed here. {GET_EMBEDDED}"
    elif search.flavor is None:
        text = f"There is no llama.cpp engine on this machine{' that works' if problems else ''}. {TWO_WAYS}"
    else:
        text = (
            f"There is no llama.cpp engine of flavour {search.flavor} on this machine. "
            f"Build one with `agentmesh engine install --flavor {search.flavor}`."
        )
    return "\n".join([text, *problems])
