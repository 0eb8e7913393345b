"""/docs: the API's description as one plain page. Written here because the usual pages load scripts from elsewhere, and
nothing leaves the mesh. Knows OpenAPI, no routes.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any, cast

_STYLE = (
    "body{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "code,pre{font-family:ui-monospace,monospace}h2{margin-top:2rem}dt{font-weight:600}pre{overflow:auto}"
)
_METHODS = ("get", "post", "put", "patch", "delete")


def render_docs(schema: dict[str, Any]) -> str:
    """An HTML page of every route and shape in an OpenAPI document."""
    info = _map(schema, "info")
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{_text(info.get('title'))} API</title>",
        f"<style>{_STYLE}</style><h1>{_text(info.get('title'))} {_text(info.get('version'))}</h1>",
        f"<p>{_text(info.get('summary'))} <a href=/openapi.json>openapi.json</a></p>",
    ]
    for path, item in _map(schema, "paths").items():
        operations = cast("dict[str, Any]", item)
        parts += [_operation(path, method, _map(operations, method)) for method in _METHODS if method in operations]
    shapes = _map(_map(schema, "components"), "schemas")
    parts.append("<h2>Shapes</h2>")
    parts += [_shape(name, cast("dict[str, Any]", shape)) for name, shape in shapes.items()]
    return "\n".join([*parts, "</html>"])


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    rows = [
        f"<dt><code>{_text(p.get('name'))}</code> ({_text(p.get('in'))})<dd><code>{_json(p.get('schema'))}</code>"
        for p in cast("list[dict[str, Any]]", operation.get("parameters") or [])
    ]
    rows += [
        f"<dt>body<dd><code>{_json(cast('dict[str, Any]', content).get('schema'))}</code>"
        for content in _map(_map(operation, "requestBody"), "content").values()
    ]
    description = _text(operation.get("description"))
    return f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{description}</p><dl>{''.join(rows)}</dl>"


def _shape(name: str, shape: dict[str, Any]) -> str:
    return f"<h3 id={escape(name, quote=True)}><code>{escape(name)}</code></h3><pre>{_json(shape, indent=2)}</pre>"


def _map(of: dict[str, Any], name: str) -> dict[str, Any]:
    value = of.get(name)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return escape(str(value)) if value is not None else ""


def _json(value: object, indent: int | None = None) -> str:
    return escape(json.dumps(value, indent=indent, ensure_ascii=False))
