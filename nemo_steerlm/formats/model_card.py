"""The model card of an exported folder: ``README.md`` as hubs read it, with what the model was taught and how to ask it."""

from __future__ import annotations

import json
from pathlib import Path

from nemo_steerlm.core.files import atomic_write
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.formats.families import FAMILIES
from nemo_steerlm.formats.families.base import ModelConfig

FILE_NAME = "README.md"


def write_model_card(folder: Path, info: ModelInfo, config: ModelConfig) -> None:
    """Write ``README.md`` into ``folder``. What nobody knows at export, licences and results, is left to its reader to add."""
    with atomic_write(folder / FILE_NAME) as file:
        file.write(model_card(info, config))


def model_card(info: ModelInfo, config: ModelConfig) -> str:
    """The text of the card."""
    return _HEAD + _about(info, config) + _attributes(info) + (_ask_value(info) if info.kind == "value" else _ask_steer(info))


_HEAD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- steerlm
---

"""


def _about(info: ModelInfo, config: ModelConfig) -> str:
    does = {
        "value": "# A value model\n\nIt reads the attributes of a conversation's turns and writes them as a label.",
        "steer": "# A model steered by attributes\n\nIt answers under the attributes that it is asked for.",
    }[info.kind]
    architecture = (
        f"{FAMILIES[config.family].architecture}, {config.num_hidden_layers} layers, hidden size {config.hidden_size}, "
        f"{config.vocab_size} tokens, texts of up to {config.max_position_embeddings}, {config.dtype}"
    )
    return f"""{does} It was trained with nemo_steerlm after SteerLM (arXiv:2310.05344); `steerlm.json` says how.

| | |
|---|---|
| architecture | {architecture} |
| fingerprint | `{info.fingerprint}` |
| chat template | version {info.chat_template}, layout `{info.layout}` |

"""


def _attributes(info: ModelInfo) -> str:
    rows = "".join(f"| `{a.name}` | {a.low} to {a.high} | {a.default} | {a.description} |\n" for a in info.attributes.attributes)
    languages = ", ".join(f"`{language}`" for language in info.attributes.languages)
    return f"""## Attributes

| name | values | default | meaning |
|---|---|---|---|
{rows}
{f"`lang` names the language: {languages}." if languages else "Labels name no language."}

"""


def _example(info: ModelInfo) -> str:
    first = info.attributes.attributes[0]
    return json.dumps({first.name: first.high})


def _ask_steer(info: ModelInfo) -> str:
    return f"""## How to ask it

The chat template takes `attributes`; those that are left out have their defaults, and unknown names and values are refused. A message of
the assistant may have `attributes` of its own: those that it was written under.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModelForCausalLM.from_pretrained(".")
messages = [{{"role": "user", "content": "Hello"}}]
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", attributes={_example(info)})
print(tokenizer.decode(model.generate(ids, max_new_tokens=64)[0, ids.shape[1] :]))
```

`steerlm serve .` answers OpenAI's chat requests with `"attributes": {_example(info)}` in the body, or with
`"chat_template_kwargs": {{"attributes": {_example(info)}}}`, which llama.cpp's server takes too. `steerlm export . --gguf F16` writes
the file for it.
"""


def _ask_value(info: ModelInfo) -> str:
    return f"""## How to ask it

`steerlm serve .` reads conversations at `POST /v1/attributes`, with the probability of every value, and `steerlm annotate` labels files
through it. The chat template renders a conversation up to where the label of its last message starts; what comes next is that label,
{info.attributes.names[0]} first.
"""
