"""What the fake engine says: llama-server's bodies and event streams for each endpoint, with words for tokens.

Owns the shapes only (taken from what llama-server b1-0c1e570 sends); when and how they are sent is fake_engine_http.py's.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

GENERATING = {
    "/v1/chat/completions": "chat",
    "/chat/completions": "chat",
    "/v1/completions": "completion",
    "/completions": "completion",
    "/v1/responses": "responses",
    "/responses": "responses",
    "/v1/messages": "messages",
}


def event(data: object, name: str = "") -> bytes:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return (f"event: {name}\n" if name else "").encode() + b"data: " + text.encode() + b"\n\n"


def error(status: int, message: str, kind: str) -> dict[str, Any]:
    return {"error": {"code": status, "message": message, "type": kind}}


def count_tokens(body: dict[str, Any]) -> int:
    """Words of whatever is the prompt, plus a few for the template."""
    texts = [body.get("prompt"), body.get("input"), body.get("system"), body.get("messages"), body.get("tools")]
    return 3 + sum(len(json.dumps(text).split()) for text in texts if text is not None)


def _continued(body: dict[str, Any]) -> int:
    """Words that an assistant's last message already has: the answer goes on after them."""
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages and isinstance(messages[-1], dict) else {}
    content = last.get("content") if last.get("role") == "assistant" else ""
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return len((content or "").split())


@dataclass
class Answer:
    """One answer, token by token."""

    kind: str
    model: str
    body: dict[str, Any]
    word: str
    limit: int
    id: str = field(default_factory=lambda: "chatcmpl-" + uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def is_stream(self) -> bool:
        return self.body.get("stream") is True

    @property
    def count(self) -> int:
        """Tokens of this answer."""
        names = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")
        wanted = [self.body[name] for name in names if isinstance(self.body.get(name), int) and self.body[name] >= 0]
        return min([*wanted, self.limit])

    def token(self, index: int) -> str:
        return f"{self.word}{_continued(self.body) + index} "

    def text(self, count: int | None = None) -> str:
        return "".join(self.token(i) for i in range(self.count if count is None else count))

    @property
    def _reason(self) -> str:
        return "stop" if self.count == self.limit else "length"

    def _usage(self) -> dict[str, Any]:
        prompt = count_tokens(self.body)
        usage = {"completion_tokens": self.count, "prompt_tokens": prompt, "total_tokens": prompt + self.count}
        return usage | {"prompt_tokens_details": {"cached_tokens": 0}}

    def _timings(self) -> dict[str, Any]:
        return {"cache_n": 0, "prompt_n": count_tokens(self.body), "predicted_n": self.count, "predicted_ms": 1.0}

    # ------------------------------------------------------------------ whole

    def whole(self) -> dict[str, Any]:
        """The body without a stream."""
        made: dict[str, Any] = getattr(self, f"_whole_{self.kind}")()
        return made

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "created": self.created,
            "id": self.id,
            "model": self.model,
            "system_fingerprint": "b1-fake",
            "object": kind,
        }

    def _whole_chat(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": self.text()}
        choices = [{"finish_reason": self._reason, "index": 0, "message": message}]
        return (
            {"choices": choices} | self._head("chat.completion") | {"usage": self._usage(), "timings": self._timings()}
        )

    def _whole_completion(self) -> dict[str, Any]:
        choices = [{"text": self.text(), "index": 0, "logprobs": None, "finish_reason": self._reason}]
        return (
            {"choices": choices} | self._head("text_completion") | {"usage": self._usage(), "timings": self._timings()}
        )

    def _output(self) -> dict[str, Any]:
        content = [{"type": "output_text", "annotations": [], "logprobs": [], "text": self.text()}]
        return {
            "type": "message",
            "status": "completed",
            "id": "msg_" + self.id,
            "content": content,
            "role": "assistant",
        }

    def _whole_responses(self) -> dict[str, Any]:
        prompt = count_tokens(self.body)
        usage = {"input_tokens": prompt, "output_tokens": self.count, "total_tokens": prompt + self.count}
        head = {"id": "resp_" + self.id, "object": "response", "created_at": self.created, "status": "completed"}
        usage_details = {"input_tokens_details": {"cached_tokens": 0}}
        return head | {"model": self.model, "output": [self._output()], "usage": usage | usage_details}

    def _message_head(self) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "model": self.model, "stop_sequence": None}

    def _message_usage(self, output: int) -> dict[str, int]:
        return {"cache_read_input_tokens": 0, "input_tokens": count_tokens(self.body), "output_tokens": output}

    @property
    def _stop_reason(self) -> str:
        return "end_turn" if self._reason == "stop" else "max_tokens"

    def _whole_messages(self) -> dict[str, Any]:
        content = [{"type": "text", "text": self.text()}]
        usage = self._message_usage(self.count)
        return self._message_head() | {"content": content, "stop_reason": self._stop_reason, "usage": usage}

    # ------------------------------------------------------------------ streams

    def opening(self) -> list[bytes]:
        """The events before the first token."""
        made: list[bytes] = getattr(self, f"_open_{self.kind}")()
        return made

    def token_event(self, index: int) -> bytes:
        text = self.token(index)
        if self.kind == "chat":
            return self._chunk({"finish_reason": None, "index": 0, "delta": {"content": text}})
        if self.kind == "completion":
            choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": None}
            return event({"choices": [choice]} | self._head("text_completion"))
        if self.kind == "responses":
            name = "response.output_text.delta"
            return event({"type": name, "item_id": "msg_" + self.id, "delta": text}, name)
        delta = {"type": "text_delta", "text": text}
        return event({"type": "content_block_delta", "index": 0, "delta": delta}, "content_block_delta")

    def closing(self) -> list[bytes]:
        """The events after the last token."""
        made: list[bytes] = getattr(self, f"_close_{self.kind}")()
        return made

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        return event({"choices": [choice]} | self._head("chat.completion.chunk"))

    def _open_chat(self) -> list[bytes]:
        return [self._chunk({"finish_reason": None, "index": 0, "delta": {"role": "assistant", "content": None}})]

    def _close_chat(self) -> list[bytes]:
        last = self._chunk({"finish_reason": self._reason, "index": 0, "delta": {}})
        options = self.body.get("stream_options")
        if not (isinstance(options, dict) and options.get("include_usage")):
            return [last, event("[DONE]")]
        usage = {"choices": []} | self._head("chat.completion.chunk")
        return [last, event(usage | {"usage": self._usage(), "timings": self._timings()}), event("[DONE]")]

    def _open_completion(self) -> list[bytes]:
        return []

    def _close_completion(self) -> list[bytes]:
        choice = {"text": "", "index": 0, "logprobs": None, "finish_reason": self._reason}
        return [
            event({"choices": [choice]} | self._head("text_completion") | {"usage": self._usage()}),
            event("[DONE]"),
        ]

    def _open_responses(self) -> list[bytes]:
        item_id = "msg_" + self.id
        started = {"id": "resp_" + self.id, "object": "response", "status": "in_progress"}
        item = {"content": [], "id": item_id, "role": "assistant", "status": "in_progress", "type": "message"}
        part = {"type": "output_text", "text": ""}
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": started},
            {"type": "response.in_progress", "response": started},
            {"type": "response.output_item.added", "item": item},
            {"type": "response.content_part.added", "item_id": item_id, "part": part},
        ]
        return [event(each, each["type"]) for each in events]

    def _close_responses(self) -> list[bytes]:
        item_id = "msg_" + self.id
        part = self._output()["content"][0]
        events: list[dict[str, Any]] = [
            {"type": "response.output_text.done", "item_id": item_id, "text": self.text()},
            {"type": "response.content_part.done", "item_id": item_id, "part": part},
            {"type": "response.output_item.done", "item": self._output()},
            {"type": "response.completed", "response": self._whole_responses()},
        ]
        return [event(each, each["type"]) for each in events]

    def _open_messages(self) -> list[bytes]:
        head = self._message_head() | {"content": [], "stop_reason": None, "usage": self._message_usage(0)}
        block = {"type": "text", "text": ""}
        return [
            event({"type": "message_start", "message": head}, "message_start"),
            event({"type": "content_block_start", "index": 0, "content_block": block}, "content_block_start"),
        ]

    def _close_messages(self) -> list[bytes]:
        delta = {"stop_reason": self._stop_reason, "stop_sequence": None}
        return [
            event({"type": "content_block_stop", "index": 0}, "content_block_stop"),
            event({"type": "message_delta", "delta": delta, "usage": {"output_tokens": self.count}}, "message_delta"),
            event({"type": "message_stop"}, "message_stop"),
        ]


def embeddings(body: dict[str, Any], model: str) -> dict[str, Any]:
    """Vectors of 8 numbers that depend on the text's length alone."""
    given = body.get("input")
    texts = given if isinstance(given, list) else [given]
    data = [
        {"embedding": [len(str(text)) / 100 + i / 10 for i in range(8)], "index": index, "object": "embedding"}
        for index, text in enumerate(texts)
    ]
    tokens = count_tokens(body)
    return {"model": model, "object": "list", "usage": {"prompt_tokens": tokens, "total_tokens": tokens}, "data": data}
