"""The exported chat template renders what ``core.template`` renders, byte for byte, and refuses what the server refuses."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nemo_steerlm.core.attributes import Attribute, AttributeSchema, preset
from nemo_steerlm.core.conversation import Conversation, Turn
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.template import ChatTokens, text_of
from nemo_steerlm.formats.chat_template import chat_template


class Words:
    """A vocabulary with these special strings."""

    normalizer = None

    def __init__(self, *special: str) -> None:
        self.special = special


WIDE = AttributeSchema(attributes=(Attribute(name="mood", low=-3, high=12, default=-1), Attribute(name="it's")), languages=("en", "pt"))
CONTROL = ChatTokens(system_turn_start="\x10", turn_start="\x11", label_start="\x12")
VOCABULARY = Words("<s>", "</s>", "<|im_end|>", "<|im_end|>x", "[INST]", "<a<b>", "(\\)", "<extra_id_1>")

MODELS = {
    "steer, OASST": ModelInfo(kind="steer", attributes=preset("oasst")),
    "steer, annotator's layout": ModelInfo(
        kind="steer", attributes=preset("steerlm9"), layout="nemo-annotate", system="Be \\ 'kind'\r\n{{"
    ),
    "steer, control characters": ModelInfo(kind="steer", attributes=WIDE, tokens=CONTROL, user="<s>", assistant="a 'b' \x11"),
    "value, HelpSteer": ModelInfo(kind="value", attributes=preset("helpsteer")),
    "value, control characters": ModelInfo(kind="value", attributes=WIDE, tokens=CONTROL, layout="nemo-annotate"),
}


def _raise(message: str) -> None:
    raise TemplateError(message)


def compiled(source: str) -> Any:
    """As transformers compiles a chat template (``utils/chat_template_utils.py``)."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals["raise_exception"] = _raise
    return environment.from_string(source)


TEMPLATES = {name: compiled(chat_template(info, VOCABULARY)) for name, info in MODELS.items()}

PIECES = [*VOCABULARY.special, *ChatTokens().markers, *CONTROL.markers, "<", "\\", "\\\\", "␐", "␑", "extra_id_1>", "im_end|>", "a", " "]
PIECES += ["\n", "\r\n", "{{", "a<b>", "'", '"', "{%", "%}", "}}", "{#", "ß", "语", "🙂"]
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=8).map("".join)


def attributes_of(schema: AttributeSchema) -> st.SearchStrategy[dict[str, int | str]]:
    values: dict[str, Any] = {a.name: st.integers(a.low, a.high) for a in schema.attributes}
    languages: dict[str, Any] = {"lang": st.sampled_from(schema.languages)} if schema.languages else {}
    return st.fixed_dictionaries({}, optional=values | languages)


@st.composite
def requests(draw: st.DrawFn, info: ModelInfo) -> tuple[list[dict[str, Any]], dict[str, int | str] | None]:
    messages: list[dict[str, Any]] = [{"role": draw(st.sampled_from(["user", "assistant"])), "content": draw(texts)}]
    for role in draw(st.lists(st.sampled_from(["user", "assistant", "system"]), max_size=5)):
        content = draw(texts | st.lists(st.builds(lambda text: {"type": "text", "text": text}, texts), max_size=2))
        message: dict[str, Any] = {"role": role, "content": content}
        if role != "system" and draw(st.booleans()):
            message["attributes"] = draw(attributes_of(info.attributes))
        messages.insert(draw(st.integers(0, len(messages))), message)
    return messages, draw(st.none() | attributes_of(info.attributes)) if info.kind == "steer" else None


def expected(info: ModelInfo, messages: list[dict[str, Any]], attributes: dict[str, int | str] | None) -> str:
    """What the server makes of the same request (``serving.prompts``, ``inference.scoring``)."""
    schema, template = info.attributes, info.template(VOCABULARY)

    def label(given: dict[str, int | str], *, complete: bool) -> str:
        read = schema.label(given)
        return schema.encode({**schema.defaults(), **read.values} if complete else read.values, read.language)

    def text(message: dict[str, Any]) -> str:
        content = message["content"]
        return content if isinstance(content, str) else "".join(part["text"] for part in content)

    names = {"user": info.user, "assistant": info.assistant}
    system = [text(m) for m in messages if m["role"] == "system"]
    turns = []
    for message in (m for m in messages if m["role"] in names):
        own = message.get("attributes")
        if info.kind == "value":
            said = None if own is None else label(own, complete=False)
        elif message["role"] == "assistant":
            said = label(attributes or {} if own is None else own, complete=True)
        else:
            said = None
        turns.append(Turn(speaker=names[message["role"]], text=text(message), label=said))
    conversation = Conversation(turns=tuple(turns), system="\n\n".join(system) if system else info.system)
    if info.kind == "value":
        return text_of(template.label_prompt(conversation, len(turns) - 1))
    return text_of(template.reply_prompt(conversation, info.assistant, label(attributes or {}, complete=True)))


@pytest.mark.parametrize("name", MODELS)
def test_it_renders_the_prompt_of_the_server(name: str) -> None:
    info, template = MODELS[name], TEMPLATES[name]

    @settings(max_examples=150, deadline=None)
    @given(requests(info))
    @example(([{"role": "user", "content": "<\\\\extra_id_1><<|im_end|><|im_end|>\\\\␑\\\x11\\\\\x11</s><s>"}], None))
    def check(request: tuple[list[dict[str, Any]], dict[str, int | str] | None]) -> None:
        messages, attributes = request
        given_too = {} if attributes is None else {"attributes": attributes}
        assert template.render(messages=messages, add_generation_prompt=True, **given_too) == expected(info, messages, attributes)

    check()


STEER = TEMPLATES["steer, OASST"]
ASKED = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"attributes": {"qualty": 4}}, "unknown attribute qualty; attributes here: quality 0..4, toxicity 0..4"),
        ({"attributes": {"quality": 5}}, "attribute quality is 5; write a whole number from 0 to 4"),
        ({"attributes": {"quality": -1}}, "attribute quality is -1"),
        ({"attributes": {"quality": True}}, "attribute quality is True"),
        ({"attributes": {"quality": "4"}}, "attribute quality is 4"),
        ({"attributes": {"quality": 3.5}}, r"attribute quality is 3\.5"),
        ({"attributes": {"lang": "tlh"}}, "unknown language tlh; known: "),
        ({"attributes": {"lang": 4}}, "unknown language 4"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "", "attributes": {"x": 1}}]}, "unknown attribute x"),
        ({"messages": [{"role": "user", "content": "", "attributes": {"x": 1}}]}, "unknown attribute x"),
        ({"messages": [{"role": "tool", "content": ""}]}, "role tool; write system, user or assistant"),
        ({"messages": [{"role": "system", "content": ""}]}, "messages have no turn"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "content of type image"),
    ],
)
def test_it_refuses_what_the_server_refuses(variables: dict[str, Any], message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        STEER.render(**{"messages": ASKED, "add_generation_prompt": True, **variables})


def test_a_value_model_is_not_asked_to_write() -> None:
    with pytest.raises(TemplateError, match="this is a value model"):
        TEMPLATES["value, HelpSteer"].render(messages=ASKED, attributes={"coherence": 4})


def test_without_a_generation_prompt_it_ends_with_the_last_turn() -> None:
    labelled = [*ASKED, {"role": "assistant", "content": "Hello", "attributes": {"coherence": 1}}]
    read = TEMPLATES["value, HelpSteer"].render(messages=labelled, add_generation_prompt=False)
    assert read.endswith("<extra_id_1>Assistant\nHello\n<extra_id_2>coherence:1\n")
    written = STEER.render(messages=labelled[:1], add_generation_prompt=False)
    assert written.endswith("<extra_id_1>User\nHi\n")
