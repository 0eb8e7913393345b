"""What becomes of a request once its head is read: answered at once, or admitted to have its body read; and what that asks for.

Owns nothing; puts in order the checks of gate.py, the answers of this node itself, and the endpoints that are relayed.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentmesh.inference.logic.classify import endpoint_of, read_body
from agentmesh.inference.logic.http_head import RequestHead
from agentmesh.inference.logic.origin import preflight_fields
from agentmesh.inference.logic.session_key import session_key
from agentmesh.inference.proxy.body import Body
from agentmesh.inference.proxy.dialects import Answer, error_answer
from agentmesh.inference.proxy.gate import Gate, Refusal, check_form
from agentmesh.inference.proxy.parts import Parts
from agentmesh.inference.proxy.ports import Dispatch, Wanted


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request whose body is to be read.

    Attributes:
        endpoint: as engines know it.
        caller: see ports.Wanted.
    """

    endpoint: str
    caller: str


@dataclass(frozen=True, slots=True)
class Reply:
    """A request that is answered at once. `fields` are further header lines."""

    answer: Answer
    fields: bytes = b""


def receive(parts: Parts, gate: Gate, head: RequestHead) -> Admitted | Reply:
    """See the module."""
    if (refusal := gate.check_source(head)) is not None:
        return refuse(head.path, refusal)
    if head.method == "OPTIONS":
        return Reply(Answer(204, "", b""), _preflight(head))
    caller = gate.caller(head)
    refusal = caller if isinstance(caller, Refusal) else check_form(head)
    if refusal is not None:
        return refuse(head.path, refusal)
    endpoint = endpoint_of(head.path)
    if endpoint is None:
        return Reply(_answer_locally(parts, head))
    if head.method != "POST":
        allow = (("Allow", "POST, OPTIONS"),)
        return refuse(head.path, Refusal(405, "method_not_allowed", "This endpoint takes POST.", allow))
    if head.length is not None and head.length > parts.settings.max_body_bytes:
        largest = f"The request's body is larger than {parts.settings.max_body_bytes:,} bytes."
        return refuse(head.path, Refusal(413, "body_too_large", largest))
    return Admitted(endpoint, str(caller))


def wanted_of(dispatch: Dispatch, endpoint: str, body: Body, caller: str) -> Wanted:
    """What a request asks for. Its body is looked into once, and for its conversation only where hosts are chosen by that.

    Raises:
        NotJson, NoModel: see read_body.
    """
    asked = read_body(endpoint, body.data) if body.data else body.read(lambda view: read_body(endpoint, view))
    session = body.read(session_key) if dispatch.by_session(asked.model) else b""
    return Wanted(asked.model, endpoint, asked.needs, body.size, caller, False, session)


def refuse(path: str, refusal: Refusal) -> Reply:
    """A refusal in the form that the path's clients expect."""
    answer = error_answer(path, refusal.status, refusal.code, refusal.message)
    return Reply(Answer(answer.status, answer.content_type, answer.body, answer.headers + refusal.headers))


def _answer_locally(parts: Parts, head: RequestHead) -> Answer:
    headers = head.headers
    accept = headers.get(b"accept", b"").decode("latin-1")
    is_anthropic = b"anthropic-version" in headers
    answer = parts.own.answer(head.method, head.path, head.query, accept, anthropic=is_anthropic)
    if answer is None:
        message = f"There is nothing at {head.path[:200]}; GET / says what there is."
        answer = error_answer(head.path, 404, "not_found", message)
    return answer


def _preflight(head: RequestHead) -> bytes:
    allow = b"Allow: GET, HEAD, POST, OPTIONS\r\n"
    origin = head.headers.get(b"origin")
    if origin is None:
        return allow
    return allow + preflight_fields(origin, head.headers.get(b"access-control-request-headers", b""))
