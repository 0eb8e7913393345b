"""A model's reason as others may read it: members of the mesh, and whoever reaches the API, which other users of the machine can. Pure.

What `agentmesh status` shows is this user's alone: there stay the log's lines and places, where files lie, what URLs carry beside their place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from agentmesh.inference.logic.engine_end import without_log
from agentmesh.inference.logic.presence import MAX_WAITS_CHARS

# A URL, or a path from the root or a home with at least two names: `/props` and `tokens/s` are neither.
_PLACES: Final = re.compile(
    r"""(?P<url>[a-zA-Z][\w+.-]*://[^\s'"<>]+)|(?<![\w~/.])(?:~\w*(?:/[^\s/'"`,;:()<>|]+)+|(?:/[^\s/'"`,;:()<>|]+){2,})/?"""
)
_CREDENTIALS: Final = re.compile(r"//[^/@\s]*@")


def for_others(reason: str, folders: Iterable[str] = ()) -> str:
    """One line of at most MAX_WAITS_CHARS, in which files have their names only.

    Args:
        folders: known to occur in it. Others are found by their form, in which a space ends a path.
    """
    text = without_log(reason)
    for folder in sorted({*folders}, key=len, reverse=True):
        if len(folder) > 1:
            text = text.replace(folder.rstrip("/") + "/", "~/")
    text = _PLACES.sub(_shown, text)
    return "".join(char if char.isprintable() else " " for char in text)[:MAX_WAITS_CHARS].strip()


def _shown(place: re.Match[str]) -> str:
    if place["url"]:
        address = place[0].partition("?")[0]
        end = "." if place[0].endswith(".") and not address.endswith(".") else ""
        return _CREDENTIALS.sub("//", address) + end
    return place[0].rstrip("/").rsplit("/", 1)[-1]
