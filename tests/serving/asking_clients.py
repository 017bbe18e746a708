"""Asks the server at ``argv[1]`` through litellm and langchain-openai, in their environment, and prints what they made of it as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import litellm
from langchain_openai import ChatOpenAI, OpenAI

URL = f"{sys.argv[1]}/v1"
MESSAGES = [{"role": "user", "content": "Once upon a time"}]
LONG = [{"role": "user", "content": "Once upon a time " * 300}]
SETTINGS: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
ATTRIBUTES = {"attributes": {"quality": 1, "lang": "de"}}


def refused(ask: Callable[[], Any]) -> dict[str, Any]:
    """The class of what a client raises, and what it keeps of the server's answer."""
    try:
        ask()
    except Exception as error:  # noqa: BLE001  whatever it is
        return {"error": type(error).__name__, "bases": [c.__name__ for c in type(error).__mro__], "said": str(error)}
    return {"error": None}


def by_litellm(messages: list[dict[str, str]] = MESSAGES, model: str = "writer", **settings: Any) -> Any:
    return litellm.completion(
        model=f"openai/{model}", api_base=URL, api_key="none", messages=messages, num_retries=0, **{**SETTINGS, **settings}
    )


def by_langchain(model: str = "writer", **settings: Any) -> ChatOpenAI:
    return ChatOpenAI(base_url=URL, api_key="none", model=model, max_retries=0, **{**SETTINGS, **settings})


def chat(answer: Any) -> list[Any]:
    choice = answer.choices[0]
    return [choice.message.content, choice.finish_reason, answer.usage.prompt_tokens, answer.usage.completion_tokens]


langchain = by_langchain(extra_body=ATTRIBUTES).invoke("Once upon a time")
found = {
    "litellm": {
        "chat": chat(by_litellm(extra_body=ATTRIBUTES)),
        "stream": "".join(part.choices[0].delta.content or "" for part in by_litellm(extra_body=ATTRIBUTES, stream=True)),
        "completion": litellm.text_completion(
            model="text-completion-openai/writer", api_base=URL, api_key="none", prompt="Once upon a time", **SETTINGS
        )
        .choices[0]
        .text,
        "too long": refused(lambda: by_litellm(LONG)),
        "unknown field": refused(lambda: by_litellm(extra_body={"attribute": {"quality": 1}})),
        "unknown model": refused(lambda: by_litellm(model="nobody")),
        "tools": refused(lambda: by_litellm(tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}])),
    },
    "langchain": {
        "chat": [
            langchain.content,
            langchain.response_metadata["finish_reason"],
            langchain.usage_metadata["input_tokens"],
            langchain.usage_metadata["output_tokens"],
        ],
        "stream": "".join(part.content for part in by_langchain(extra_body=ATTRIBUTES).stream("Once upon a time")),
        "completion": OpenAI(base_url=URL, api_key="none", model="writer", max_retries=0, **SETTINGS).invoke("Once upon a time"),
        "logprobs": len(by_langchain(logprobs=True).invoke("Once upon a time").response_metadata["logprobs"]["content"]),
        "too long": refused(lambda: by_langchain().invoke(LONG[0]["content"])),
        "unknown field": refused(lambda: by_langchain(extra_body={"attribute": {"quality": 1}}).invoke("a")),
        "unknown model": refused(lambda: by_langchain("nobody").invoke("a")),
    },
}
print(json.dumps(found))
