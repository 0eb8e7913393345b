"""What is written behind --split, --tensor-split, --host-node, --rpc-peers and --draft, as values, or a sentence on what is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from agentmesh.core.errors import InvalidInput

MAX_SPLIT_NODES: Final = 16  # llama.cpp takes fifteen workers and itself
MAX_LENT_TO: Final = 64
ID_HELP: Final = "a node's id, as 'agentmesh status --json' shows it"


def split_body(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a load that are about splits and drafts; only those that were given.

    Raises:
        InvalidInput: an option is no list of numbers or no id, or belongs to another that is missing.
    """
    way = options["split"]
    needs_split = [name for name in ("tensor_split", "host_node", "min_peers") if options[name] is not None]
    if way is None and needs_split:
        raise InvalidInput(f"--{needs_split[0].replace('_', '-')} belongs to --split. Add it, or leave it out.")
    body: dict[str, Any] = {}
    if way is not None:
        body["split"] = {
            "way": way,
            "tensor_split": parse_tensor_split(options["tensor_split"]),
            "host": checked_id(options["host_node"], "--host-node") if options["host_node"] is not None else "",
            "min_peers": options["min_peers"] or 0,
        }
    if options["no_draft"] and (options["draft"] is not None or options["draft_max"] is not None):
        raise InvalidInput("--no-draft cannot be given together with --draft or --draft-max. Leave one out.")
    if options["no_draft"] or options["draft"] is not None or options["draft_max"] is not None:
        body["draft"] = {
            "draft": _whole_path(options["draft"]) if options["draft"] is not None else None,
            "draft_max": options["draft_max"],
            "no_draft": bool(options["no_draft"]),
        }
    return body


def _whole_path(text: str) -> str:
    """A file's path made whole: the node's working directory is another one. Names of models stay."""
    is_file = text.lower().endswith(".gguf") and text.count("/") < 2 and "://" not in text
    if is_file or text.startswith(("/", "./", "../", "~")):
        return str(Path(text).expanduser().absolute())
    return text


def parse_tensor_split(text: str | None) -> tuple[float, ...]:
    """`3,1` as numbers. Raises: InvalidInput."""
    if text is None:
        return ()
    try:
        numbers = tuple(float(one) for one in text[: 32 * MAX_SPLIT_NODES].split(","))
    except ValueError:
        numbers = ()
    if not 2 <= len(numbers) <= MAX_SPLIT_NODES or not all(math.isfinite(one) and one >= 0 for one in numbers):
        raise InvalidInput(
            f"--tensor-split takes 2 to {MAX_SPLIT_NODES} numbers, one a node, such as 3,1: workers first, the host last. "
            f"'{text[:80]}' is none of that."
        )
    return numbers


def checked_id(text: str, option: str) -> str:
    """Raises: InvalidInput: it is no node's id."""
    try:
        _decoded(text)
    except InvalidInput:
        raise InvalidInput(f"{option} takes {ID_HELP}, not '{text[:80]}'.") from None
    return text.strip().lower()


def parse_rpc_peers(text: str | None) -> tuple[bool, frozenset[bytes]]:
    """(everyone, these). Raises: InvalidInput."""
    if text is None:
        return False, frozenset()
    words = [word.strip() for word in text.split(",") if word.strip()]
    if words == ["all"]:
        return True, frozenset()
    if not 1 <= len(words) <= MAX_LENT_TO:
        raise InvalidInput(f"--rpc-peers takes 'all', or the ids of 1 to {MAX_LENT_TO} nodes with commas between them.")
    return False, frozenset(_decoded(checked_id(word, "--rpc-peers")) for word in words)


def _decoded(text: str) -> bytes:
    from agentmesh.mesh.identity import decode_id  # loads cryptography, which no other command of the thin half needs

    return decode_id(text)
