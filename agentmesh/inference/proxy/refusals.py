"""The sentences with which requests are refused, and when to try again.

Owns status, code and text of every refusal of the dispatcher. Decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from agentmesh.inference.logic.auto import AUTO
from agentmesh.inference.logic.route import Choice
from agentmesh.inference.logic.route_limits import (
    MAX_LISTED_NAMES,
    RETRY_AFTER_MAX_S,
    RETRY_AWAY_S,
    RETRY_LOADING_S,
    RETRY_WAITING_S,
)
from agentmesh.inference.logic.target import ServedModel
from agentmesh.inference.proxy.dialects import MODEL_FAILED
from agentmesh.inference.proxy.ports import Refused, Wanted
from agentmesh.inference.serving_types import ModelState, Unready

_MAX_NAME_CHARS = 200  # of what the client wrote, repeated to it


def unknown_model(name: str, models: Sequence[ServedModel]) -> Refused:
    """404: nobody offers it."""
    if not models:
        text = "No node of this mesh serves a model yet. Start one with: agentmesh load MODEL"
    else:
        text = f"No node of this mesh serves a model named '{name[:_MAX_NAME_CHARS]}'. {_there_is(models)}"
    return Refused(404, "model_not_found", text)


def unsuitable(wanted: Wanted, models: Sequence[ServedModel]) -> Refused:
    """404: `auto`, and no model is made for such a request."""
    needs = ", ".join(sorted(wanted.needs)) or "this endpoint"
    text = f"No model of this mesh suits a request to {wanted.path} that needs {needs}. {_there_is(models)}"
    return Refused(404, "model_not_found", text)


def not_ready_here(name: str, here: Unready) -> Refused:
    """It was asked for on this node, and does not answer. 503 while that may change by itself, 500 when it will not."""
    model = f"'{here.id if name.lower() == AUTO else name[:_MAX_NAME_CHARS]}'"
    reason = _sentence(here.reason)
    if here.state is ModelState.FAILED:
        again = f"agentmesh load {here.again}" if here.again else "load its file with agentmesh load"
        text = f"{model} could not be served by this node. {reason}agentmesh status says more. To try again: {again}"
        return Refused(500, MODEL_FAILED, text)
    if here.state is ModelState.WAITING:
        return Refused(503, "model_waiting", f"{model} cannot be loaded yet. {reason}".rstrip(), RETRY_WAITING_S)
    wait_s = RETRY_WAITING_S if here.state is ModelState.DOWNLOADING else RETRY_LOADING_S
    state = "in standby" if here.state is ModelState.STANDBY else str(here.state)
    text = f"{model} does not answer yet: on this node it is {state}. {reason}Try again in {wait_s} s."
    return Refused(503, "model_loading", text, wait_s)


def nobody_can(name: str, choice: Choice, now_s: float, waits: str = "", here: Unready | None = None) -> Refused:
    """503: known, but no host can answer now.

    Args:
        waits: what one of those that do not answer yet waits for.
        here: what this node has of it, if somebody asked for it here.
    """
    refused = _nobody_can(name, choice, now_s, waits, here)
    if here is None or here.state is not ModelState.FAILED:
        return refused
    message = f"{refused.message} This node could not serve it: {_sentence(here.reason)}".rstrip()
    return Refused(refused.status, refused.error_code, message, refused.retry_after_s)


def _nobody_can(name: str, choice: Choice, now_s: float, waits: str, here: Unready | None) -> Refused:
    model = "Any suitable model" if name.lower() == AUTO else f"'{name[:_MAX_NAME_CHARS]}'"
    if choice.tried:
        return Refused(503, "all_hosts_failed", f"{model} was asked for at every node that serves it; all failed.", 2)
    if choice.broken:
        wait_s = max(1, min(math.ceil(choice.soonest_s - now_s), RETRY_AFTER_MAX_S))
        text = f"{model} is served, but its nodes failed a moment ago. Try again in {wait_s} s."
        return Refused(503, "hosts_failing", text, wait_s)
    if choice.away:
        text = f"{model} is served, but its nodes cannot be reached now. Try again in {RETRY_AWAY_S} s."
        return Refused(503, "hosts_away", text, RETRY_AWAY_S)
    if waits:
        return Refused(503, "model_waiting", f"{model} cannot be loaded yet. {waits}", RETRY_WAITING_S)
    if here is not None and here.state not in (ModelState.WAITING, ModelState.FAILED):
        return not_ready_here(name, here)
    text = f"{model} is being loaded and does not answer yet. Try again in {RETRY_LOADING_S} s."
    return Refused(503, "model_loading", text, RETRY_LOADING_S)


def queue_full(name: str, waiting: int, mean_s: float, slots: int) -> Refused:
    """429: as many wait as may."""
    wait_s = max(1, min(math.ceil(waiting * mean_s / slots), RETRY_AFTER_MAX_S))
    text = f"{waiting} requests wait for '{name[:_MAX_NAME_CHARS]}' already. Try again in {wait_s} s."
    return Refused(429, "queue_full", text, wait_s)


def waited_too_long(name: str, waited_s: float) -> Refused:
    """503: its turn did not come."""
    text = f"'{name[:_MAX_NAME_CHARS]}' was busy for {waited_s:.0f} s. Try again later."
    return Refused(503, "waited_too_long", text, RETRY_AFTER_MAX_S)


def busy_here(name: str) -> Refused:
    """429 to a peer: this node's engines are full; the peer asks elsewhere or keeps the request in its own queue."""
    return Refused(429, "busy", f"This node has no room for '{name[:_MAX_NAME_CHARS]}' now.", 1)


def not_served_here(name: str) -> Refused:
    """503 to a peer: it has not heard yet that the model is gone from here."""
    text = f"This node does not serve '{name[:_MAX_NAME_CHARS]}' any more."
    return Refused(503, "not_served_here", text, RETRY_AWAY_S)


def _sentence(reason: str) -> str:
    """With its end, and room for another; nothing of nothing."""
    if not reason:
        return ""
    return f"{reason} " if reason.endswith((".", "!", "?", "…")) else f"{reason}. "


def _there_is(models: Sequence[ServedModel]) -> str:
    names = ", ".join(model.id for model in models[:MAX_LISTED_NAMES])
    more = len(models) - MAX_LISTED_NAMES
    return f"There is: {names}{f' and {more} more' if more > 0 else ''}."
