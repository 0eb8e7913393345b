"""Secrets in names: an author, a topic or a branch is written by hand or by a variable, and may be a token just as a text may.

Own names with a secret are refused (a masked name would be nobody's), those of peers are masked when shown. The user's and
the machine's name are no secrets here: people sign with them. State: the verdicts on the names used last.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from agentmesh.blackboard.logic.hidden import without_hidden
from agentmesh.blackboard.logic.limits import MAX_CHECKED_NAMES
from agentmesh.blackboard.logic.redaction import PLACEHOLDER
from agentmesh.blackboard.ports import ScrubbedText, TextScrubber
from agentmesh.core.errors import InvalidInput

_NAMES_OF_HERE: Final = frozenset({"USER", "HOST"})


def refuse_masked(what: str, name: str) -> None:
    """Let no name pass in which a client has masked a secret of its environment.

    Raises:
        InvalidInput: it has.
    """
    if PLACEHOLDER.search(name):
        raise InvalidInput(f"The {what} held a secret; choose another.")


class Names:
    """Checks names with the scrubber, and remembers what it said."""

    def __init__(self, scrubber: TextScrubber) -> None:
        self._scrubber = scrubber
        self._shown: OrderedDict[str, str] = OrderedDict()

    async def check_own(self, what: str, name: str) -> None:
        """Let a name pass that is about to be signed.

        Raises:
            InvalidInput: it holds a secret.
            ScrubberUnavailable: it could not be checked; nothing was posted.
        """
        if self._shown.get(name) == name:
            return
        try:
            masked = await self._scrubber.scrub(without_hidden(name))
        except InvalidInput as error:
            raise InvalidInput(f"The {what} looks like a secret; choose another.") from error
        kinds = _secret_kinds(masked)
        if kinds:
            raise InvalidInput(f"The {what} looks like a secret ({', '.join(kinds)}); choose another.")
        self._remember(name, name)

    async def masked(self, names: Iterable[str]) -> dict[str, str | None]:
        """Names of peers as they may be shown; None where one could not be checked."""
        wanted = list(dict.fromkeys(names))
        unknown = [name for name in wanted if name not in self._shown]
        shown: dict[str, str | None] = {name: self._shown[name] for name in wanted if name in self._shown}
        if unknown:
            answers = await self._scrubber.scrub_many([without_hidden(name) for name in unknown])
            for name, masked in zip(unknown, answers, strict=True):
                shown[name] = None if masked is None else masked.text if _secret_kinds(masked) else name
                if (text := shown[name]) is not None:
                    self._remember(name, text)
        return shown

    def _remember(self, name: str, shown: str) -> None:
        self._shown[name] = shown
        self._shown.move_to_end(name)
        while len(self._shown) > MAX_CHECKED_NAMES:
            self._shown.popitem(last=False)


def _secret_kinds(masked: ScrubbedText) -> Sequence[str]:
    return [item.kind for item in masked.redactions if item.kind not in _NAMES_OF_HERE]
