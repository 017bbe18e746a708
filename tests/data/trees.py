"""OASST trees made for tests."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.core.records_for_tests import ordinary
from tests.data.oasst_model import KEYS

TEXTS = st.text(st.characters(codec="utf-8"), max_size=12).filter(ordinary)
RATINGS = st.sampled_from([0, 0.0, 0.124, 0.125, 0.126, 0.25, 0.374, 0.375, 0.5, 0.625, 0.626, 0.874, 0.875, 1, 1.0]) | st.floats(0, 1)


def message(text: str, role: str = "prompter", replies: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    labels = {"spam": {"value": 0.0, "count": 3}, "quality": {"value": 0.75, "count": 3}, "toxicity": {"value": 0.0, "count": 3}}
    return {"text": text, "role": role, "lang": "en", "labels": labels, "replies": replies or [], **more}


def tree(name: str = "t1", prompt: dict[str, Any] | None = None) -> dict[str, Any]:
    question = prompt or message("Hi?", replies=[message("Hello.", "assistant"), message("Yes?", "assistant", [message("Bye.")])])
    return {"message_tree_id": name, "tree_state": "ready_for_export", "prompt": question}


@st.composite
def messages(draw: st.DrawFn, depth: int = 0) -> dict[str, Any]:
    made: dict[str, Any] = {"text": draw(TEXTS), "role": ("prompter", "assistant")[depth % 2]}
    if draw(st.integers(0, 4)):
        names = draw(st.lists(st.sampled_from([*KEYS, "spam", "pii"]), unique=True, max_size=5))
        made["labels"] = {name: {"value": draw(RATINGS), "count": 1} for name in names}
        if draw(st.booleans()):
            made["lang"] = draw(st.sampled_from(["en", "pt-BR", "zh"]))
    made["replies"] = draw(st.lists(messages(depth + 1), max_size=0 if depth > 3 else 2))
    return made


@st.composite
def forests(draw: st.DrawFn) -> list[dict[str, Any]]:
    return [tree(f"t{i}", draw(messages())) for i in range(draw(st.integers(1, 6)))]
