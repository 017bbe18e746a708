"""SteerLM: read attributes from rated conversations, then write under them.

The public interface, stable between minor versions; ``docs/architecture.md`` shows the rooms behind it:

* ``Attribute``, ``AttributeSchema``, ``preset``: which attributes there are, and their labels;
* ``Conversation``, ``Turn``: what is rated, labelled and learned;
* ``Template``, ``ChatTokens``: the one prompt template;
* ``get_answer``, ``Chat``: ask a served model under attributes;
* ``SteerLMError``: the base of every error that this package raises on purpose.

Importing this package imports none of it: each name is looked up when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Attribute": "core.attributes",
    "AttributeSchema": "core.attributes",
    "Chat": "client.chat",
    "ChatTokens": "core.template",
    "Conversation": "core.conversation",
    "SteerLMError": "core.errors",
    "Template": "core.template",
    "Turn": "core.conversation",
    "get_answer": "client.chat",
    "preset": "core.attributes",
}

__all__ = [
    "Attribute", "AttributeSchema", "Chat", "ChatTokens", "Conversation", "SteerLMError", "Template", "Turn", "__version__", "get_answer",
    "preset",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
