"""The card says what the model takes, its metadata can be read, and its example is code."""

from __future__ import annotations

import ast
import re

import pytest
import yaml

from nemo_steerlm.core.attributes import preset
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.formats.hf_config import load_config
from nemo_steerlm.formats.model_card import model_card
from tests import inputs


@pytest.mark.parametrize("kind", ["steer", "value"])
@pytest.mark.parametrize("name", ["oasst", "helpsteer"])
def test_a_card_lists_every_attribute(name: str, kind: str) -> None:
    info = ModelInfo(kind=kind, attributes=preset(name), chat_template=1)
    card = model_card(info, load_config(inputs.STORIES))
    _, metadata, body = card.split("---\n", 2)
    assert yaml.safe_load(metadata) == {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["steerlm"]}
    for attribute in info.attributes.attributes:
        assert f"| `{attribute.name}` | {attribute.low} to {attribute.high} | {attribute.default} |" in body
    assert ("`de`" in body) == bool(info.attributes.languages)
    assert "LlamaForCausalLM, 5 layers, hidden size 64, 512 tokens, texts of up to 512, float32" in body
    examples = re.findall(r"```python\n(.*?)```", body, re.DOTALL)
    assert len(examples) == (1 if kind == "steer" else 0)
    for example in examples:
        ast.parse(example)
