"""The fields of the page that say how to write: one slider an attribute, the language, and how tokens are drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from nemo_steerlm.core.labels import Label
from nemo_steerlm.serving.playground.presets import CUSTOM, SAMPLING, attribute_presets
from nemo_steerlm.serving.prompts import Prompts

_MOST_TOKENS = 256
"""To begin with: an answer that does not end would fill the context otherwise."""


class AttributeControls:
    """A slider for every attribute, with presets, and the language where the schema has some."""

    def __init__(self, prompts: Prompts, *, start: str = "defaults", name: str = "") -> None:
        """``start`` is the preset to begin with; ``name`` tells two sets of controls apart."""
        schema = prompts.info.attributes
        presets = attribute_presets(schema, prompts.default_attributes)
        start = start if start in presets else "defaults"
        suffix = f" ({name})" if name else ""
        self._names = schema.names
        choices = [*presets, CUSTOM]
        self.preset = gr.Dropdown(choices, value=start, label=f"Preset{suffix}", interactive=True, elem_classes="preset")
        self.language: gr.Dropdown | None = None
        with gr.Group():
            self.sliders = [
                gr.Slider(
                    attribute.low,
                    attribute.high,
                    value=int(presets[start][attribute.name]),
                    step=1,
                    label=f"{attribute.name}{suffix}",
                    info=attribute.description or None,
                    buttons=[],
                    interactive=True,
                    elem_classes="attribute",
                )
                for attribute in schema.attributes
            ]
            if schema.languages:
                default = prompts.defaults.language or schema.default_language
                languages = [("not said", ""), *((language, language) for language in schema.languages)]
                self.language = gr.Dropdown(languages, value=str(default), label=f"language{suffix}", interactive=True)
        _follow(self.preset, self.sliders, {name: [chosen[a] for a in self._names] for name, chosen in presets.items()})

    @property
    def inputs(self) -> list[Any]:
        """The fields that ``attributes`` takes the values of."""
        return [*self.sliders, *([self.language] if self.language else [])]

    def attributes(self, values: Sequence[Any]) -> dict[str, int | str]:
        """What the API calls ``attributes``."""
        levels = {name: int(value) for name, value in zip(self._names, values, strict=False)}
        return Label(values=levels, language=str(values[-1]) if self.language and values[-1] else None).to_mapping()


class SamplingControls:
    """How tokens are drawn, and how many."""

    _FIELDS = ("temperature", "top_p", "top_k", "repetition_penalty")

    def __init__(self, prompts: Prompts) -> None:
        start = next(iter(SAMPLING.values()))
        self.preset = gr.Dropdown([*SAMPLING, CUSTOM], value=next(iter(SAMPLING)), label="Sampling", interactive=True)
        with gr.Accordion("Sampling in detail", open=False):
            self._drawn = [
                gr.Slider(
                    0, 2, value=start.temperature, step=0.05, label="temperature", info="0: always the most likely token", buttons=[]
                ),
                gr.Slider(0.05, 1, value=start.top_p, step=0.05, label="top-p", info="of the most likely tokens, this much", buttons=[]),
                gr.Slider(0, 200, value=start.top_k, step=1, label="top-k", info="so many of the most likely tokens; 0: all", buttons=[]),
                gr.Slider(1, 2, value=start.repetition_penalty, step=0.05, label="repetition penalty", info="1: none", buttons=[]),
            ]
            most = min(_MOST_TOKENS, prompts.max_length // 2)
            self._limit = gr.Slider(1, prompts.max_length, value=most, step=1, label="length", info="tokens at most", buttons=[])
            self._seed = gr.Number(None, label="seed", info="the same seed gives the same text; empty: another each time", precision=0)
        _follow(self.preset, self._drawn, {name: [getattr(p, field) for field in self._FIELDS] for name, p in SAMPLING.items()})

    @property
    def inputs(self) -> list[Any]:
        """The fields that ``body`` takes the values of."""
        return [*self._drawn, self._limit, self._seed]

    def body(self, values: Sequence[Any]) -> dict[str, Any]:
        """What the chat endpoint's body says of it."""
        *drawn, limit, seed = values
        return {**dict(zip(self._FIELDS, drawn, strict=True)), "max_tokens": limit, "seed": seed}


def _follow(preset: gr.Dropdown, sliders: Sequence[gr.Slider], values: Mapping[str, Sequence[Any]]) -> None:
    """A chosen preset moves the sliders; a moved slider makes the preset ``CUSTOM``. Both happen in the browser."""
    move = f"(name, ...now) => ({json.dumps(values)})[name] ?? now"
    preset.input(None, [preset, *sliders], list(sliders), js=move, api_visibility="private")
    for slider in sliders:
        slider.input(None, None, preset, js=f"() => {json.dumps(CUSTOM)}", api_visibility="private")
