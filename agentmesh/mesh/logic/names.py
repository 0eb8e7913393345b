"""Names of nodes and meshes: labels that people choose and peers send. Never an identity."""

from __future__ import annotations

import unicodedata

from agentmesh.core.errors import InvalidInput
from agentmesh.mesh.logic.limits import MAX_NAME_BYTES

# Control, format (bidirectional overrides), surrogate, private and unassigned characters: what can forge a terminal line.
_FORBIDDEN_CATEGORIES = ("C", "Zl", "Zp")


def check_name(text: str, what: str) -> str:
    """A name that the user gave, without surrounding space.

    Raises:
        InvalidInput: it is empty, too long or holds characters that do not print.
    """
    name = text.strip()
    if not name or len(name.encode(errors="surrogatepass")) > MAX_NAME_BYTES or safe_name(name) != name:
        raise InvalidInput(f"A {what} takes 1 to {MAX_NAME_BYTES} bytes of printable characters.")
    return name


def safe_name(text: str) -> str:
    """A name from a peer, made fit to be shown: printable, one line, within the limit. May be empty."""
    printable = "".join(c for c in text if not unicodedata.category(c).startswith(_FORBIDDEN_CATEGORIES)).strip()
    return printable.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
