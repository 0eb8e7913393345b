"""FNV values of a model's tensors, computed by our own program beside the engine before llama-server tells them.

    count = await hash_tensors(engine.tensor_hash, weights, hashes, wanted=is_on_a_worker)

Runs one child at a time, at a low priority; it ends with the caller, and when this process dies. What it says are facts of our own
file: a wrong one means that llama-server's value does not fit and the bytes are compared, as without it. docs/rpc-relay.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Sequence
from pathlib import Path

from agentmesh.inference.logic.rpc_limits import (
    HASH_MIN_BYTES,
    HASH_RUN_S,
    MAX_HASH_LINE_BYTES,
    MAX_HASH_RANGES,
)
from agentmesh.inference.models.errors import ModelFileUnusable
from agentmesh.inference.rpc.weights import Part, Place, WeightFiles, WeightHashes

_log = logging.getLogger(__name__)


async def hash_tensors(
    program: Path, weights: WeightFiles, hashes: WeightHashes, *, wanted: Callable[[str], bool]
) -> int:
    """Learn the values of the tensors with wanted names that llama-server will tell and that are not known. Returns how many were.

    Bounded in time. Never raises for what the program, the files or the disk do: what is not learned here is learned at the load.
    `weights` may be closed meanwhile.
    """
    missing: dict[Part, list[Place]] = {}
    for place in weights.places():
        if place.size > HASH_MIN_BYTES and wanted(place.name) and not hashes.knows(place):
            missing.setdefault(place.part, []).append(place)
    learned = 0
    try:
        async with asyncio.timeout(HASH_RUN_S):
            for places in missing.values():
                learned += await _hash_part(program, weights, hashes, places[:MAX_HASH_RANGES])
    except (OSError, ValueError, ModelFileUnusable) as error:  # TimeoutError is an OSError
        _log.info("hashing weights with %s: %r", program, error)
    if learned:
        await hashes.save()
    return learned


async def _hash_part(program: Path, weights: WeightFiles, hashes: WeightHashes, places: Sequence[Place]) -> int:
    """Raises: OSError, ValueError, ModelFileUnusable."""
    # In the file's order, which is that of a load: should llama-server have begun, the program stays ahead of it.
    by_range = {(place.offset, place.size): place for place in sorted(places, key=lambda place: place.offset)}
    weights.check(places[0])  # open still: nothing else has its descriptor's number
    descriptor = os.dup(places[0].part.descriptor)
    try:
        process = await asyncio.create_subprocess_exec(
            *(program, f"/dev/fd/{descriptor}"), stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env={}, pass_fds=(descriptor,)
        )
    finally:
        os.close(descriptor)
    try:
        return await _listen(process, weights, hashes, by_range)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _listen(
    process: Process, weights: WeightFiles, hashes: WeightHashes, by_range: dict[tuple[int, int], Place]
) -> int:
    """Raises: OSError, ValueError, ModelFileUnusable."""
    if process.stdin is None or process.stdout is None:
        raise OSError("it has no pipes")
    process.stdin.write("".join(f"{offset} {size}\n" for offset, size in by_range).encode() + b"\n")
    await process.stdin.drain()  # and kept open: its end would end the program
    learned = 0
    while by_range and (line := await process.stdout.readline()):
        place, fnv = _value(line, by_range)
        weights.check(place)
        hashes.learn(place, fnv)
        learned += 1
    return learned


def _value(line: bytes, by_range: dict[tuple[int, int], Place]) -> tuple[Place, int]:
    """Raises: ValueError: it is not what was asked for."""
    words = line.split()
    if len(words) != 3 or len(line) > MAX_HASH_LINE_BYTES or len(words[2]) != 16:
        raise ValueError(f"it printed {line[:MAX_HASH_LINE_BYTES]!r}")
    place = by_range.pop((int(words[0]), int(words[1])), None)
    if place is None:
        raise ValueError("it printed a range that it was not asked for")
    return place, int.from_bytes(bytes.fromhex(words[2].decode("ascii")))
