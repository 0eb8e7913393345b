"""Reading models from disk: headers of one file or of a whole set, checked against what is there.

Owns the files; what a header means is said in inference.logic. Every failure is one sentence that names the file.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from agentmesh.inference.logic.gguf_facts import ModelFacts, SplitFacts, model_facts, split_facts
from agentmesh.inference.logic.gguf_header import BadHeader, Header, parse_header
from agentmesh.inference.logic.model_files import part_of, parts
from agentmesh.inference.models.errors import ModelFileUnusable


class ModelOnDisk(msgspec.Struct, frozen=True):
    """A model whose parts are all there and whole, as far as their headers tell."""

    files: tuple[Path, ...]
    size_bytes: int
    facts: ModelFacts


def read_header(path: Path) -> Header:
    """The header of one file, and the certainty that the file is as long as the header says.

    Raises:
        ModelFileUnusable: it is missing, not a GGUF file, damaged or cut short.
    """
    try:
        if path.exists() and not path.is_file():  # opening a FIFO or a device could wait for ever
            raise ModelFileUnusable(f"{path} is not a file.")
        with path.open("rb") as file:
            header = parse_header(file.read)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise ModelFileUnusable(f"{path} does not exist.") from None
    except OSError as error:
        raise ModelFileUnusable(f"{path} cannot be read: {error.strerror}.") from error
    except BadHeader as error:
        raise ModelFileUnusable(f"{path} is not a usable GGUF file: {error}.") from error
    if size < header.file_end:
        raise ModelFileUnusable(
            f"{path} is cut short: its header tells of {header.file_end} bytes, it has {size}. Download it again."
        )
    return header


def read_model(path: Path) -> ModelOnDisk:
    """The model that `path` is, or is a part of.

    Raises:
        ModelFileUnusable: a part is missing, of another set, or unusable.
    """
    files = part_files(path)
    headers = tuple(read_header(file) for file in files)
    try:
        _check_set(files, headers)
        facts = model_facts(headers)
    except BadHeader as error:
        raise ModelFileUnusable(f"{files[0]} is not a usable GGUF file: {error}.") from error
    return ModelOnDisk(files, sum(file.stat().st_size for file in files), facts)


def part_files(path: Path) -> tuple[Path, ...]:
    """All files of the set that `path` belongs to, by their names.

    Raises:
        ModelFileUnusable: some are missing.
    """
    files = tuple(path.with_name(name) for name in parts(path.name))
    missing = [file.name for file in files if not file.exists()]
    if missing and len(files) > 1:
        raise ModelFileUnusable(f"{path} is one of {len(files)} parts; missing: {', '.join(missing[:8])}.")
    return files


def _check_set(files: tuple[Path, ...], headers: tuple[Header, ...]) -> None:
    places = [split_facts(header) for header in headers]
    if part_of(files[0].name) is None:
        if places[0] is not None:
            raise BadHeader(f"it is part {places[0].number + 1} of {places[0].count}, but its name does not say so")
        return
    for number, (file, place) in enumerate(zip(files, places, strict=True)):
        if place is None or (place.number, place.count) != (number, len(files)):
            raise ModelFileUnusable(f"{file} is not part {number + 1} of {len(files)}: {_said(place)}.")
    tensors = sum(len(header.tensors) for header in headers)
    claimed = places[0].tensor_count if places[0] else 0
    if claimed and claimed != tensors:
        raise BadHeader(f"the set should have {claimed} tensors and has {tensors}; its parts are of different models")


def _said(place: SplitFacts | None) -> str:
    return "its header tells of no set" if place is None else f"its header says {place.number + 1} of {place.count}"
