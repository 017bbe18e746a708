"""Request bodies of the ``/v1`` endpoints. What would change an answer is honoured or refused in words; an unknown name is a mistake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from nemo_steerlm.core.errors import nearest, shown
from nemo_steerlm.core.spec import whole

MOST = 100
"""The highest temperature and repetition penalty; far below it an answer is noise, and nothing is said twice."""
MOST_TOKENS = 10_000_000
MOST_STOPS = 16
STOP_CHARACTERS = 256
"""Of one stop string: after every token it is looked for at every place where it could have begun."""

_IGNORED = frozenset(
    {"user", "metadata", "store", "service_tier", "parallel_tool_calls", "prediction", "safety_identifier", "prompt_cache_key"}
    | {"prompt_cache_retention", "skip_special_tokens"}
)
"""OpenAI's and vLLM's fields that change no answer of this server."""


class _Refused:
    """A field that this server does not have: why, and the values at which it asks for nothing."""

    def __init__(self, why: str, *nothing: Any) -> None:
        self.why = why
        self.nothing = (None, *nothing)


_NO_TOOLS = "this server calls no tools"
_PLAIN = "answers are plain text"
_REFUSED = {
    "response_format": _Refused(_PLAIN, {"type": "text"}),
    "modalities": _Refused(_PLAIN, ["text"]),
    "audio": _Refused(_PLAIN),
    "tools": _Refused(_NO_TOOLS, []),
    "tool_choice": _Refused(_NO_TOOLS, "none", "auto"),
    "functions": _Refused(_NO_TOOLS, []),
    "function_call": _Refused(_NO_TOOLS, "none", "auto"),
    "web_search_options": _Refused(_NO_TOOLS),
    "suffix": _Refused("a prompt is continued, not filled in", ""),
    "best_of": _Refused("ask for n answers, and choose among them", 1),
    "reasoning_effort": _Refused("these models do not reason apart from their answer", "none"),
    "verbosity": _Refused('ask for it as an attribute, as {"attributes": {"verbosity": 2}}'),
}


def _refusal(field: str, sentence: str) -> PydanticCustomError:
    return PydanticCustomError("refused", "{sentence}", {"sentence": sentence, "field": field})


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("text has an unpaired surrogate") from error
    return text


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} must be text, not {shown(value)}")
    return _encodable(value)


def _short(text: str) -> str:
    if len(text) > STOP_CHARACTERS:
        raise ValueError(f"a stop string has at most {STOP_CHARACTERS} characters, not {len(text)}")
    return text


def _stops(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _prompts(value: Any) -> list[str | list[int]]:
    """OpenAI's four kinds of prompt: a text, several, token ids, several lists of them."""
    several = value if isinstance(value, list) and not (value and type(value[0]) is int) else [value]
    if not 1 <= len(several) <= 64:
        raise ValueError(f"1 to 64 prompts can be asked for at once, not {len(several)}")
    prompts: list[str | list[int]] = []
    for prompt in several:
        if isinstance(prompt, list) and prompt:
            if not all(type(token) is int for token in prompt):
                raise ValueError("a list of token ids has something else in it")
            prompts.append(prompt)
        else:
            prompts.append(_text(prompt, "a prompt"))
    return prompts


def _content(value: Any) -> str:
    if not isinstance(value, list):
        return _text(value, "content")
    texts = []
    for number, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise ValueError(f"part {number} has type {shown(kind)}; only text parts are taken")
        texts.append(_text(part.get("text"), f"the text of part {number}"))
    return "".join(texts)


_TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}, "minItems": 1}]}
_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}

EncodableText = Annotated[str, AfterValidator(_encodable)]
Stop = Annotated[EncodableText, AfterValidator(_short)]
StopList = Annotated[list[Stop], Field(max_length=MOST_STOPS, fail_fast=True), BeforeValidator(_stops)]
# Strict: True is no number, and "2" is none. JSON Schema's whole numbers include 2.0.
Whole = Annotated[int, BeforeValidator(whole), Strict()]
Finite = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Flag = Annotated[bool, Strict()]
Levels = Annotated[
    dict[str, Annotated[Any, BeforeValidator(whole)]],
    Field(max_length=256),
    WithJsonSchema({"type": "object", "additionalProperties": {"anyOf": [{"type": "integer"}, {"type": "string"}]}}),
]
LevelsOrNone = Annotated[
    Levels | Literal["none"],
    WithJsonSchema(
        {"anyOf": [{"type": "object", "additionalProperties": {"anyOf": [{"type": "integer"}, {"type": "string"}]}}, {"const": "none"}]}
    ),
]
Prompt = Annotated[
    list[Any],
    BeforeValidator(_prompts),
    WithJsonSchema({"anyOf": [*_TEXTS["anyOf"], {"type": "array", "items": _TEXTS, "minItems": 1, "maxItems": 64}]}),
]
Content = Annotated[str, BeforeValidator(_content), WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}]})]
Tokens = Annotated[list[Whole], Field(max_length=128, fail_fast=True)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=False)
    ignored: ClassVar[frozenset[str]] = _IGNORED
    refused: ClassVar[Mapping[str, _Refused]] = _REFUSED

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        """Refuse the first field that is not understood."""
        for name in data.keys() - cls.model_fields.keys() - cls.ignored if isinstance(data, dict) else ():
            known = cls.refused.get(name)
            if known is None:
                names = sorted(cls.model_fields)
                # Half a surrogate pair has no encoding, and pydantic could not tell of it.
                written = name.encode("utf-8", "backslashreplace").decode()
                raise _refusal(written, f"there is no such field; {nearest(name, names)}known: {', '.join(names)}")
            if data[name] not in known.nothing:
                raise _refusal(name, f"is not supported: {known.why}")
        return data


class SampledBody(_Body):
    """What chat and completions share. Names and ranges are OpenAI's; those that it does not have are vLLM's."""

    model: EncodableText | None = Field(None, description="A name from GET /v1/models; by default the first")
    max_tokens: Whole | None = Field(None, ge=-1, le=1_000_000, description="Tokens to generate at most; -1: as many as fit")
    temperature: Finite | None = Field(None, ge=0, le=MOST)
    top_p: Finite | None = Field(None, gt=0, le=1)
    top_k: Whole | None = Field(None, ge=-1, le=MOST_TOKENS, description="0 or -1: all")
    repetition_penalty: Finite | None = Field(None, gt=0, le=MOST)
    frequency_penalty: Finite | None = Field(None, ge=-2, le=2)
    presence_penalty: Finite | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[Finite, Field(ge=-100, le=100)]] | None = Field(None, max_length=1024, description="By token id")
    min_tokens: Whole | None = Field(None, ge=0, le=1_000_000)
    n: Whole | None = Field(None, ge=1, le=64)
    seed: Whole | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StopList | None = None
    stream: Flag | None = None
    stream_options: dict[str, Any] | None = None
    stop_token_ids: Tokens | None = Field(None, description="Tokens that end the answer as well")
    allowed_token_ids: Tokens | None = Field(None, min_length=1, description="Tokens that an answer may have, and no others")
    ignore_eos: Flag | None = Field(None, description="Go on after end of text")


class CompletionBody(SampledBody):
    """``POST /v1/completions``: a raw prompt, in which control strings are control tokens."""

    prompt: Prompt
    echo: Flag | None = None
    logprobs: Whole | None = Field(None, ge=0, le=100)
    logprob_token_ids: Tokens | None = Field(None, description="Give these tokens' logprobs, not the top ones'")
    return_tokens_as_token_ids: Flag | None = Field(None, description="Name tokens token_id:N in logprobs")


class ChatMessage(_Body):
    """One message. ``attributes`` are those it was written under; an assistant's message without takes the request's."""

    ignored: ClassVar[frozenset[str]] = frozenset({"annotations", "reasoning", "reasoning_content"})
    refused: ClassVar[Mapping[str, _Refused]] = {
        "tool_calls": _Refused(_NO_TOOLS, []),
        "function_call": _Refused(_NO_TOOLS),
        "tool_call_id": _Refused(_NO_TOOLS),
        "name": _Refused("speakers are told apart by their role", ""),
        "audio": _Refused("only text is taken"),
        "refusal": _Refused("write it as content", ""),
    }
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    attributes: Levels | None = None

    @model_validator(mode="before")
    @classmethod
    def _turn(cls, data: Any) -> Any:
        """An assistant's turn may have no text; a tool's turn has no place in the prompt."""
        if isinstance(data, dict):
            if data.get("role") in ("tool", "function"):
                raise _refusal("role", f"{data['role']} turns are not supported: {_NO_TOOLS}")
            if data.get("role") == "assistant" and data.get("content") is None:
                return {**data, "content": ""}
        return data

    @property
    def text(self) -> str:
        """The content as one string."""
        return self.content


class TemplateArguments(_Body):
    """What other servers hand to the exported chat template; here its ``attributes`` count, so that one client works everywhere."""

    attributes: Levels | None = None


class ChatBody(SampledBody):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=10_000, fail_fast=True)]
    attributes: LevelsOrNone | None = Field(
        None, description='What to write like, as {"quality": 4, "lang": "en"}; "none": write under no label'
    )
    guidance_scale: Finite | None = Field(
        None, ge=0, le=10, description="Strength of the attributes: 1 as trained, above 1 stronger, 0 as guidance_attributes say"
    )
    guidance_attributes: LevelsOrNone | None = Field(
        None,
        description='What guidance_scale leads away from. By default no label ("none") if the model was taught without labels too, else '
        "the model's default attributes",
    )
    best_of: Whole | None = Field(
        None, ge=1, le=16, description="Write so many answers and give the one that reads most like the attributes; needs a value model"
    )
    read: Flag | None = Field(
        None,
        description="Say how the answer reads (steerlm.read), where the server has a value model. By default where attributes are given "
        "and the answer is not streamed",
    )
    chat_template_kwargs: TemplateArguments | None = Field(None, description="vLLM's and llama.cpp's way to give attributes")
    max_completion_tokens: Whole | None = Field(None, ge=-1, le=1_000_000)
    logprobs: Flag | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=100)

    @property
    def asked(self) -> dict[str, Any] | Literal["none"]:
        """The attributes asked for, wherever they stand; ``attributes`` itself wins. ``none``: no label is."""
        if self.attributes == "none":
            return "none"
        arguments = self.chat_template_kwargs
        return {**((arguments and arguments.attributes) or {}), **(self.attributes or {})}


class AttributesBody(_Body):
    """``POST /v1/attributes``: conversations as JSONL records, or one as chat messages."""

    model: EncodableText | None = Field(None, description="A name from GET /v1/models; by default the model that reads")
    conversations: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=1024, fail_fast=True)] | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=10_000, fail_fast=True)] | None = None
    turns: Literal["unmasked", "all"] = "unmasked"
    labels: list[list[Levels | None]] | None = Field(
        None,
        max_length=1024,
        description="Labels to evaluate: for each conversation one for each turn that is read, as attributes, or null. A field's logprob "
        "is exact, conditional on the fields before it as the label has them. Fields that a label leaves out are the model's choice, so "
        "the sum is exact for labels that name all fields, or the first ones",
    )
