"""One wish out of several: nodes may ask for the same model with different flags, and all must plan the same.

Owns that rule: field by field, the smallest node id that set a field decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from agentmesh.inference.logic.split_values import Wish, short_id_text

_UNSET = Wish()
_FLAGS = {
    "way": "--split",
    "context_tokens": "--ctx-size",
    "slots": "--slots",
    "host": "--host-node",
    "host_extra_bytes": "--draft",
    "alone_extra_bytes": "--draft",
}


def agreed_wish(
    wishes: Mapping[bytes, Wish], name_of: Callable[[bytes], str] = short_id_text
) -> tuple[Wish, tuple[str, ...]]:
    """The wish that counts, by node id of who wished; and a sentence for each flag about which nodes differ."""
    chosen: dict[str, object] = {}
    sentences: list[str] = []
    for field in Wish.__struct_fields__:
        unset: object = getattr(_UNSET, field)
        said: list[tuple[bytes, object]] = []
        for node in sorted(wishes):
            value: object = getattr(wishes[node], field)
            if value != unset:
                said.append((node, value))
        if not said:
            continue
        chosen[field] = said[0][1]
        if any(value != said[0][1] for _, value in said):
            flag = _FLAGS.get(field) or "--" + field.replace("_", "-")
            sentences.append(f"Nodes differ about {flag}; what {name_of(said[0][0])} says counts.")
    return msgspec.structs.replace(_UNSET, **chosen), tuple(sentences)
