"""The OpenAPI document as a page for people: no scripts, nothing from other hosts."""

from __future__ import annotations

from html import escape
from typing import Any


def reference_page(schema: dict[str, Any]) -> str:
    """The routes and the fields of their bodies, as HTML.

    Args:
        schema: an OpenAPI document.
    """
    info = schema["info"]
    parts = [f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>", f"<p>{escape(info['description'])}</p>"]
    parts.append('<p>The same for programs: <a href="openapi.json">openapi.json</a></p>')
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(operation.get('description') or operation.get('summary', ''))}</p>")
            rows = [(one["name"], one["schema"], one.get("description", "")) for one in operation.get("parameters", ())]
            if rows:
                parts.append(_table("parameter", rows))
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                name = escape(content["schema"].get("$ref", "").rpartition("/")[2])
                parts.append(f"<p>Body: {escape(kind)}" + (f', <a href="#{name}">{name}</a>' if name else ""))
    parts.append("<h1>Bodies</h1>")
    for name, body in schema.get("components", {}).get("schemas", {}).items():
        words = escape(body.get("description", ""))
        parts.append(f'<h2 id="{escape(name)}"><code>{escape(name)}</code></h2><p>{words}</p>')
        fields = body.get("properties", {})
        parts.append(_table("field", [(field, of, of.get("description", "")) for field, of in fields.items()]))
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>API of vdit serve</title>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body><main>{"".join(parts)}</main></body></html>'


def _table(name: str, rows: list[tuple[str, dict[str, Any], str]]) -> str:
    lines = [f"<tr><th>{name}<th>type<th>default<th>words"]
    for field, of, words in rows:
        usual = "" if of.get("default") is None else repr(of["default"])
        cells = (f"<code>{escape(field)}</code>", escape(_type(of)), escape(usual), escape(words))
        lines.append("<tr>" + "".join(f"<td>{cell}" for cell in cells))
    return f"<table>{''.join(lines)}</table>"


def _type(of: dict[str, Any]) -> str:
    """A type in few words."""
    if "anyOf" in of:
        return " or ".join(dict.fromkeys(_type(one) for one in of["anyOf"]))
    if "enum" in of:
        return ", ".join(map(str, of["enum"]))
    if "const" in of:
        return str(of["const"])
    if of.get("type") == "array":
        return f"list of {_type(of.get('items', {}))}"
    kind = of.get("type", of.get("$ref", "any").rpartition("/")[2])
    bounds = [f"{word} {of[key]}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in of]
    return " ".join([str(kind), *bounds])
