"""How the page looks: chat, comparison and reading. What it does is in ``asking``."""

from __future__ import annotations

import contextlib
import html
import random
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from pydantic import ValidationError
from starlette.types import ASGIApp

from nemo_steerlm.core.errors import SteerLMError
from nemo_steerlm.serving.playground.asking import Asking, problem
from nemo_steerlm.serving.playground.bars import alert, answer_box, conversation, note, reading
from nemo_steerlm.serving.playground.controls import AttributeControls, SamplingControls
from nemo_steerlm.serving.playground.presets import contrast
from nemo_steerlm.serving.schemas import ChatBody, Message

_STYLE = Path(__file__).with_name("page.css")
_HINT = "Move a slider, ask, ask again: the same question, written another way."
_SIDES = {"A": "Answer A", "B": "Answer B"}
_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
"""For every event: the scheduler's queue is the one that bounds, and the API is elsewhere."""
_READY = "() => { document.documentElement.dataset.ready = 'yes' }"
"""Fields are drawn before keys and clicks do anything; whoever drives a browser waits for this."""


@contextlib.asynccontextmanager
async def running(asking: Asking, path: str) -> AsyncIterator[ASGIApp]:
    """The page as an app that answers below ``path``."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    theme = gr.themes.Default(font=["sans-serif"], font_mono=["monospace"], primary_hue="blue")
    gr.mount_gradio_app(
        app, _blocks(asking), path, footer_links=[], show_error=False, ssr_mode=False, mcp_server=False, theme=theme, css_paths=[_STYLE]
    )
    async with app.router.lifespan_context(app):
        yield app


def _blocks(asking: Asking) -> gr.Blocks:
    name = asking.service.settings.name
    blocks = gr.Blocks(title=name, analytics_enabled=False)
    with blocks:
        kind = asking.service.model.info.kind
        _html(f"<header><h1>{html.escape(name)}</h1><p>{kind} model · {html.escape(_attributes(asking))}</p></header>")
        with gr.Tabs():
            if not asking.service.scores:
                with gr.Tab("Chat", id="chat"):
                    _chat(asking)
                with gr.Tab("Compare", id="compare"):
                    _compare(asking)
            if asking.reader is not None:
                with gr.Tab("How does it read?", id="read"):
                    _read(asking)
        missing = "" if asking.reader else " · to read texts as well, start the server with --reader"
        _html(f'<footer><a href="../docs">API</a> · <a href="../metrics">metrics</a>{missing}</footer>')
        blocks.load(None, js=_READY, api_visibility="private")
    return blocks


def _attributes(asking: Asking) -> str:
    schema = asking.service.model.info.attributes
    return ", ".join(f"{a.name} {a.low} to {a.high}" for a in schema.attributes)


def _chat(asking: Asking) -> None:
    turns = gr.State([])
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            shown = _html(conversation([], _HINT), elem_id="conversation")
            told = _html(elem_id="chat-note")
            wrong = _html(elem_id="chat-problem")
            box = gr.Textbox(
                label="Your message", placeholder="Enter sends, Shift+Enter starts a line", submit_btn="Send", autofocus=True, max_lines=8,
                elem_id="chat-box",
            )  # fmt: skip
            with gr.Row():
                again = gr.Button("Ask again", size="sm")
                clear = gr.Button("Start over", size="sm")
        with gr.Column(scale=2, min_width=300):
            attributes = AttributeControls(asking.service.prompts)
            sampling = SamplingControls(asking.service.prompts)
    count = len(attributes.inputs)
    outputs = [shown, turns, box, told, wrong]

    async def answer(text: str, history: list[dict[str, Any]], *values: Any) -> AsyncGenerator[tuple[Any, ...], None]:
        """Ask ``text``, or the last question again where there is none."""
        text = text or ""
        asked = [*history, {"role": "user", "content": text}] if text.strip() else _until_last_question(history)
        if not asked:
            yield *_skipped(3), "", alert("Write a message first.")
            return
        chosen = attributes.attributes(values[:count])
        try:
            body = ChatBody.model_validate({"messages": asked, "attributes": chosen, **sampling.body(values[count:])})
            label = asking.service.prompts.label(chosen)
            yield _visible(asked), asked, _buttons("Send", busy=True, value=""), note(label), ""
            done = asked
            async with contextlib.aclosing(asking.write([body])) as texts:
                async for (so_far,) in texts:
                    done = [*asked, {"role": "assistant", "content": so_far, "attributes": chosen}]
                    yield _visible(done), done, gr.skip(), gr.skip(), gr.skip()
            yield gr.skip(), gr.skip(), _buttons("Send"), await _noted(asking, label, done), ""
        except (SteerLMError, ValidationError) as error:
            # The question goes back to where it can be mended.
            yield _visible(history), history, _buttons("Send", value=text), "", alert(problem(error))

    async def ask_again(history: list[dict[str, Any]], *values: Any) -> AsyncGenerator[tuple[Any, ...], None]:
        async with contextlib.aclosing(answer("", history, *values)) as steps:
            async for step in steps:
                yield step

    sent = box.submit(answer, [box, turns, *attributes.inputs, *sampling.inputs], outputs, **_PRIVATE)
    repeated = again.click(ask_again, [turns, *attributes.inputs, *sampling.inputs], outputs, **_PRIVATE)
    box.stop(lambda: _buttons("Send"), None, box, cancels=[sent, repeated], **_PRIVATE)
    empty = [_visible([]), [], _buttons("Send", value=""), "", ""]
    clear.click(lambda: empty, None, outputs, cancels=[sent, repeated], **_PRIVATE)


def _compare(asking: Asking) -> None:
    prompts = asking.service.prompts
    question = gr.Textbox(label="One question", placeholder="Enter asks", submit_btn="Compare", max_lines=8, elem_id="compare-box")
    wrong = _html(elem_id="compare-problem")
    answers, notes, controls = [], [], []
    with gr.Row():
        for side, name in _SIDES.items():
            with gr.Column(min_width=300):
                answers.append(_html(answer_box(name), elem_id=f"answer-{side}"))
                notes.append(_html(elem_id=f"note-{side}"))
    with gr.Row():
        for side, start in zip(_SIDES, contrast(prompts.info.attributes), strict=True):
            with gr.Column(min_width=300):
                controls.append(AttributeControls(prompts, start=start, name=side))
    sampling = SamplingControls(prompts)
    count = len(controls[0].inputs)

    async def answer(text: str, *values: Any) -> AsyncGenerator[tuple[Any, ...], None]:
        if not (text or "").strip():
            yield *_skipped(5), alert("Write a question first.")
            return
        chosen = [control.attributes(values[i * count : (i + 1) * count]) for i, control in enumerate(controls)]
        drawn = sampling.body(values[2 * count :])
        if drawn["seed"] is None:
            # The same luck for both, so that what differs comes from the attributes.
            drawn["seed"] = random.randrange(2**31)
        messages = [{"role": "user", "content": text}]
        try:
            bodies = [ChatBody.model_validate({"messages": messages, "attributes": one, **drawn}) for one in chosen]
            labels = [prompts.label(one) for one in chosen]
            yield *map(answer_box, _SIDES.values()), *map(note, labels), _buttons("Compare", busy=True), ""
            texts = ["", ""]
            async with contextlib.aclosing(asking.write(bodies)) as steps:
                async for texts in steps:
                    yield *map(answer_box, _SIDES.values(), texts), *_skipped(4)
            done = [[*messages, {"role": "assistant", "content": one}] for one in texts]
            told = [await _noted(asking, label, turns) for label, turns in zip(labels, done, strict=True)]
            yield *_skipped(2), *told, _buttons("Compare"), ""
        except (SteerLMError, ValidationError) as error:
            yield *_skipped(2), "", "", _buttons("Compare"), alert(problem(error))

    inputs = [question, *controls[0].inputs, *controls[1].inputs, *sampling.inputs]
    asked = question.submit(answer, inputs, [*answers, *notes, question, wrong], **_PRIVATE)
    question.stop(lambda: _buttons("Compare"), None, question, cancels=[asked], **_PRIVATE)


def _read(asking: Asking) -> None:
    schema = asking.service.model.info.attributes
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            question = gr.Textbox(label="Question (may be empty)", max_lines=8, elem_id="read-question")
            text = gr.Textbox(
                label="Text to read", placeholder="Paste an answer to the question", lines=6, max_lines=20, elem_id="read-text"
            )
            button = gr.Button("Read", variant="primary")
            wrong = _html(elem_id="read-problem")
        with gr.Column(scale=3, min_width=300):
            shown = _html(elem_id="reading")

    async def read(asked: str, answered: str) -> tuple[str, str]:
        if not (answered or "").strip():
            return "", alert("Paste a text first.")
        try:
            messages = [{"role": "user", "content": asked}] if (asked or "").strip() else []
            return reading(await asking.read(_messages([*messages, {"role": "assistant", "content": answered}])), schema), ""
        except (SteerLMError, ValidationError) as error:
            return "", alert(problem(error))

    gr.on([button.click, question.submit], read, [question, text], [shown, wrong], **_PRIVATE)


async def _noted(asking: Asking, label: str, turns: Sequence[dict[str, Any]]) -> str:
    """What an answer was asked for and, where there is a reader, what it reads as."""
    if asking.reader is None or not turns[-1]["content"]:
        return note(label)
    try:
        return note(label, await asking.read(_messages(turns)))
    except (SteerLMError, ValidationError) as error:
        return note(label) + alert(f"not read: {problem(error)}")


def _messages(turns: Sequence[dict[str, Any]]) -> list[Message]:
    return [Message.model_validate(turn) for turn in turns]


def _until_last_question(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    while turns and turns[-1]["role"] != "user":
        turns = turns[:-1]
    return turns


def _html(value: str = "", **told: Any) -> gr.HTML:
    """HTML as our style sheet has it: Gradio's own is made for Markdown."""
    return gr.HTML(value, apply_default_css=False, **told)


def _visible(turns: Sequence[dict[str, Any]]) -> str:
    return conversation(turns, _HINT)


def _buttons(send: str, *, busy: bool = False, **changed: Any) -> Any:
    """A text box that can be sent, or its answer stopped."""
    return gr.update(submit_btn=False if busy else send, stop_btn="Stop" if busy else False, **changed)


def _skipped(count: int) -> list[Any]:
    return [gr.skip() for _ in range(count)]
