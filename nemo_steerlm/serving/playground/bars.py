"""Conversations, readings and short notes as HTML. Everything that a person or a model wrote is escaped."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_steerlm.core.attributes import AttributeSchema
from nemo_steerlm.core.labels import LANGUAGE_KEY

_SIGNS = str.maketrans({"$": "&#36;", "{": "&#123;", "}": "&#125;", "`": "&#96;"})
"""Gradio reads HTML as a template; in text these mean themselves."""

_MOST = 12
"""Values shown of a field: a language has dozens, nearly all of them with nothing."""


def conversation(turns: Sequence[Mapping[str, Any]], hint: str = "") -> str:
    """Chat messages as a log that stays at its end while it grows; ``hint`` where there are none."""
    said = "".join(f'<p class="turn {turn["role"]}">{_escaped(turn["content"])}</p>' for turn in turns)
    return f'<div class="log" role="log" aria-label="Conversation" tabindex="0"><div>{said or _remark(hint)}</div></div>'


def answer_box(name: str, text: str = "") -> str:
    """One answer under its name."""
    return f'<section class="answer" aria-label="{_escaped(name)}"><h3>{_escaped(name)}</h3><p class="turn">{_escaped(text)}</p></section>'


def reading(turn: Mapping[str, Any], schema: AttributeSchema) -> str:
    """One card an attribute: the value read, what to expect, and a bar with its probability for every value there is.

    ``turn`` is one of the ``turns`` of ``POST /v1/attributes``; ``schema`` gives descriptions, where it knows the attribute.
    """
    described = {a.name: a.description for a in schema.attributes}
    cards = [
        _card(name, str(found["value"]), described.get(name, ""), found["probabilities"], f"{found['expected']:.1f} expected")
        for name, found in turn["attributes"].items()
    ]
    language = turn.get(LANGUAGE_KEY)
    if language:
        likely = sorted(language["probabilities"].items(), key=lambda pair: -pair[1])[:5]
        cards.append(_card("language", language["value"], "", dict(likely), ""))
    return f'<div class="reading">{"".join(cards)}</div>'


def _card(name: str, value: str, description: str, probabilities: Mapping[str, float], beside: str) -> str:
    shown = dict(sorted(probabilities.items(), key=lambda pair: -pair[1])[:_MOST])
    bars = "".join(_bar(v, p, chosen=v == value) for v, p in probabilities.items() if v in shown)
    about = f"<p>{_escaped(description)}</p>" if description else ""
    head = f"<h3>{_escaped(name)} <strong>{_escaped(value)}</strong> <small>{_escaped(beside)}</small></h3>"
    return f'<section class="card" data-attribute="{_escaped(name)}">{head}{about}<ul>{bars}</ul></section>'


def _bar(value: str, probability: float, *, chosen: bool) -> str:
    percent = f"{100 * probability:.0f} %" if probability >= 0.01 else "&lt; 1 %"
    mark = ' class="chosen"' if chosen else ""
    return (
        f'<li{mark} data-value="{_escaped(value)}"><span class="value">{_escaped(value)}</span>'
        f'<span class="track"><span class="fill" style="width: {100 * probability:.1f}%"></span></span>'
        f'<span class="percent">{percent}</span></li>'
    )


def note(asked: str, turn: Mapping[str, Any] | None = None) -> str:
    """The label an answer was asked for, and the one it reads as."""
    read = f" · reads as <code>{_escaped(turn['label'])}</code>" if turn else ""
    return f'<p class="note">asked for <code>{_escaped(asked)}</code>{read}</p>'


def alert(message: str) -> str:
    """A problem, announced by screen readers. Empty for none."""
    return f'<p class="problem" role="alert">{_escaped(message)}</p>' if message else ""


def _remark(text: str) -> str:
    return f'<p class="note">{_escaped(text)}</p>'


def _escaped(text: str) -> str:
    return html.escape(text).translate(_SIGNS)
