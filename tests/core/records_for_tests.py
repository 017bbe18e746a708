"""Strategies for ordinary records: what people write, without control strings."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from nemo_steerlm.core.attributes import preset
from nemo_steerlm.core.template import ChatTokens, first_marker


def ordinary(text: str) -> bool:
    """Without a control string. Hypothesis tries the strings it finds in this project's code, and those are in it."""
    return first_marker(text, ChatTokens()) is None


# Control characters are no text; their pictures are escaped where a control character is a control token.
CHARACTERS = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="".join(map(chr, range(0x2400, 0x2420))))
WORDS = st.sampled_from(
    ["hello", "wor", "ld", " ", "\n", "\n\n", "quality:4", "User", "Assistant\n", "<", ">", "extra", "_id", "\\", "…", "🙂", "\t"]
)
TEXTS = st.one_of(st.text(CHARACTERS | st.just("\n"), max_size=30), st.lists(WORDS, max_size=8).map("".join)).filter(ordinary)


@st.composite
def labels(draw: st.DrawFn, name: str = "oasst") -> str:
    schema = preset(name)
    values = draw(st.dictionaries(st.sampled_from(schema.names), st.integers(0, 4), min_size=1))
    return schema.encode(values, draw(st.sampled_from([None, "en", "pt"])))


@st.composite
def ordinary_records(draw: st.DrawFn) -> dict[str, Any]:
    """Alternating turns from the user on; the value model's records have a label on every turn, the others on some."""
    kind = draw(st.sampled_from(["TEXT_TO_VALUE", "VALUE_TO_TEXT", None]))
    turns = []
    for i in range(draw(st.integers(2, 6))):
        turn = {"from": ("User", "Assistant")[i % 2], "value": draw(TEXTS)}
        if kind == "TEXT_TO_VALUE" or draw(st.booleans()):
            turn["label"] = draw(labels())
        turns.append(turn)
    return {"conversations": turns, "system": draw(TEXTS), "mask": draw(st.sampled_from(["User", "Assistant"])), "type": kind}
