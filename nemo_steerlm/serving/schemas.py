"""Request bodies of the ``/v1`` endpoints. Unknown fields are let through: OpenAI's clients send many that mean nothing here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("text has an unpaired surrogate") from error
    return text


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Text = Annotated[str, AfterValidator(_encodable)]
StopList = Annotated[list[Text], BeforeValidator(_as_list), Field(max_length=16)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=False)


MOST = 100
"""The highest temperature and repetition penalty; far below it an answer is noise, and nothing is said twice."""
MOST_TOKENS = 10_000_000


class SampledBody(_Body):
    """What chat and completions share. Names and ranges are OpenAI's; ``top_k``, ``repetition_penalty`` and ``min_tokens`` are vLLM's."""

    model: Text | None = Field(None, description="Ignored but for being checked: a server has one model")
    max_tokens: int | None = Field(None, ge=0, le=1_000_000, description="Tokens to generate at most")
    temperature: Finite | None = Field(None, ge=0, le=MOST)
    top_p: Finite | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=MOST_TOKENS, description="0 or -1: all")
    repetition_penalty: Finite | None = Field(None, gt=0, le=MOST)
    min_tokens: int | None = Field(None, ge=0, le=1_000_000)
    n: int | None = Field(None, ge=1, le=64)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StopList | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    stop_token_ids: list[int] | None = Field(None, max_length=128, description="vLLM's: tokens that end the answer as well")


class CompletionBody(SampledBody):
    """``POST /v1/completions``: a raw prompt, in which control strings are control tokens."""

    prompt: Text | Annotated[list[int], Field(min_length=1)] | Annotated[list[Text | list[int]], Field(min_length=1, max_length=64)]
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=100)
    logprob_token_ids: list[int] | None = Field(None, max_length=128, description="vLLM's: give these tokens' logprobs, not the top ones'")
    return_tokens_as_token_ids: bool | None = Field(None, description="vLLM's: name tokens token_id:N in logprobs")


class TextPart(_Body):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class Message(_Body):
    """One message. ``attributes`` are those it was written under; an assistant's message without takes the request's."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    attributes: dict[str, int | str] | None = None

    @property
    def text(self) -> str:
        """The content as one string."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class TemplateArguments(_Body):
    """What other servers hand to the exported chat template; here its ``attributes`` count, so that one client works everywhere."""

    attributes: dict[str, int | str] | None = None


class ChatBody(SampledBody):
    """``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1, max_length=10_000)
    attributes: dict[str, int | str] | None = Field(None, description='What to write like, as {"quality": 4, "lang": "en"}')
    chat_template_kwargs: TemplateArguments | None = Field(None, description="vLLM's and llama.cpp's way to give attributes")
    max_completion_tokens: int | None = Field(None, ge=0, le=1_000_000)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=100)

    @property
    def asked(self) -> dict[str, int | str]:
        """The attributes asked for, wherever they stand; ``attributes`` itself wins."""
        arguments = self.chat_template_kwargs
        return {**((arguments and arguments.attributes) or {}), **(self.attributes or {})}


class AttributesBody(_Body):
    """``POST /v1/attributes``: conversations as JSONL records, or one as chat messages."""

    conversations: list[dict[str, Any]] | None = Field(None, min_length=1, max_length=1024)
    messages: list[Message] | None = Field(None, min_length=1, max_length=10_000)
    turns: Literal["unmasked", "all"] = "unmasked"
