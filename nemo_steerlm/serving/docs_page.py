"""``/docs``: the OpenAPI description as one plain page. FastAPI's own page loads its script from the internet."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
h2 { font-size: 1.1rem; margin: 2rem 0 .3rem } code, pre { font: .85rem/1.5 ui-monospace, monospace }
pre { background: #f4f4f4; padding: .8rem; overflow: auto } .method { color: #06c; font-weight: 600 }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818 } pre { background: #242424 } .method { color: #7bf } }
"""

_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS = {
    # Nothing but the page's own style: what a description says is shown, whatever it is.
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_DIGEST}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def docs_page(schema: dict[str, Any]) -> str:
    """The page for an OpenAPI schema."""
    parts = []
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            parts.append(f'<h2><span class="method">{method.upper()}</span> <code>{html.escape(path)}</code></h2>')
            parts.append(f"<p>{html.escape(operation.get('summary', ''))}</p>")
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            name = body.get("$ref", "").rsplit("/", 1)[-1]
            if name:
                found = json.dumps(schema["components"]["schemas"][name].get("properties", {}), indent=2)
                parts.append(f"<details><summary>{html.escape(name)}</summary><pre>{html.escape(found)}</pre></details>")
    title = html.escape(schema["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
        f'<style>{_STYLE}</style><h1>{title}</h1><p>Machine readable: <a href="openapi.json">openapi.json</a></p>{"".join(parts)}</html>'
    )
