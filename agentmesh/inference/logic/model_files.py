"""Names of model files: which belong together, which quantisation they are, which of a repository is meant, and which are safe.

Owns the naming habits of GGUF repositories. Reads nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Final

GGUF_SUFFIX: Final = ".gguf"
MAX_PATH_CHARS: Final = 512  # paths inside a repository; the longest seen have some 120
MAX_DEPTH: Final = 8
MAX_SET_PARTS: Final = 1024

_PART: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_QUANT: Final = re.compile(
    r"(?:^|[-._])(?P<quant>(?:UD-)?(?:I?Q[1-8](?:_[0-9A-Z]+)*|TQ[12]_0|BF16|F16|FP16|F32|MXFP4(?:_MOE)?|NVFP4))$",
    re.IGNORECASE,
)
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f\\\\:]")

# What is taken when no quantisation is named: the best that most machines hold, then the nearest to it.
PREFERRED_QUANTS: Final = (
    "Q4_K_M",
    "UD-Q4_K_XL",
    "Q4_K_S",
    "MXFP4",
    "MXFP4_MOE",
    "Q4_0",
    "Q5_K_M",
    "Q6_K",
    "Q8_0",
    "BF16",
    "F16",
)
_PREFERRED_PROJECTORS: Final = ("f16", "bf16", "q8_0", "f32")


def is_safe_path(path: str) -> bool:
    """Whether a path from the network stays inside the folder it is put into, on every system."""
    pieces = path.split("/")
    return (
        0 < len(path) <= MAX_PATH_CHARS
        and len(pieces) <= MAX_DEPTH
        and not _UNSAFE.search(path)
        and all(piece not in ("", ".", "..") and not piece.startswith("~") for piece in pieces)
        and all(len(piece.encode("utf-8", "replace")) <= 255 for piece in pieces)
    )


def is_gguf(path: str) -> bool:
    """Whether the name says that this is a model or a projector."""
    return path.lower().endswith(GGUF_SUFFIX)


def base_name(path: str) -> str:
    """The last piece of a path."""
    return path.rsplit("/", 1)[-1]


def part_of(path: str) -> tuple[int, int] | None:
    """(number from 1, count) of a file in a set of parts, or None."""
    match = _PART.fullmatch(base_name(path))
    if match is None:
        return None
    number, count = int(match["number"]), int(match["count"])
    return (number, count) if 1 <= number <= count <= MAX_SET_PARTS else None


def parts(path: str) -> tuple[str, ...]:
    """The paths of all parts of the set that `path` belongs to, in order; only itself when it is whole."""
    place = part_of(path)
    if place is None:
        return (path,)
    head, count = path[: -len("-00001-of-00001.gguf")], place[1]
    return tuple(f"{head}-{number:05d}-of-{count:05d}{path[-len(GGUF_SUFFIX) :]}" for number in range(1, count + 1))


def model_id(path: str) -> str:
    """The id under which a file is served: its stem, without the place in a set."""
    name = base_name(path)
    match = _PART.fullmatch(name)
    if match is not None and part_of(name) is not None:
        return match["stem"]
    return name[: -len(GGUF_SUFFIX)] if is_gguf(name) else name


def quant_of(path: str) -> str:
    """The quantisation that a file's name ends in, upper case, or nothing."""
    match = _QUANT.search(model_id(path))
    return match["quant"].upper() if match else ""


def is_projector(path: str) -> bool:
    """Whether this file is a vision or audio projector, which comes along with a model."""
    return is_gguf(path) and "mmproj" in base_name(path).lower()


def is_model(path: str) -> bool:
    """Whether this file is a model, or the first part of one."""
    place = part_of(path)
    name = base_name(path).lower()
    return is_gguf(path) and not is_projector(path) and "imatrix" not in name and (place is None or place[0] == 1)


def models_in(paths: Sequence[str]) -> list[str]:
    """The models among the files of a repository, one path each."""
    return sorted(path for path in paths if is_model(path))


def choose_model(paths: Sequence[str], quant: str = "") -> str | None:
    """The model that is meant by a repository and a quantisation (none: the preferred one), or None."""
    models = models_in(paths)
    if quant:
        fitting = [path for path in models if quant_of(path) == quant.upper()]
        return min(fitting, key=_whole_and_short) if fitting else None
    for preferred in PREFERRED_QUANTS:
        fitting = [path for path in models if quant_of(path) == preferred]
        if fitting:
            return min(fitting, key=_whole_and_short)
    return models[0] if models else None


def _whole_and_short(path: str) -> tuple[bool, int, str]:
    return part_of(path) is not None, len(path), path


def choose_projector(paths: Sequence[str], model: str) -> str | None:
    """The projector that belongs to a model: of its folder, else of the repository's top; f16 before others."""
    folder = model.rpartition("/")[0]
    for place in dict.fromkeys((folder, "")):
        fitting = sorted(path for path in paths if is_projector(path) and path.rpartition("/")[0] == place)
        for preferred in _PREFERRED_PROJECTORS:
            for path in fitting:
                if re.search(rf"(?:^|[-._]){preferred}\.gguf$", base_name(path).lower()):
                    return path
        if fitting:
            return fitting[0]
    return None


def log_name(name: str) -> str:
    """A model's id as a file name."""
    whole = model_id(name)
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in whole)[:100].lstrip(".")
    # Two models must not write one file: each would show the other's last words for its own.
    return (
        plain
        if plain == whole
        else f"{plain or 'model'}-{hashlib.sha256(whole.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"
    )
