"""``PUT /generate``: NeMo's text generation server (``text_generation_server.py``, v2.4.1), its messages and status codes to the byte.

Deliberate differences: every sentence gets ``tokens_to_generate`` tokens (upstream counts from the longest); rows that end early are not
padded with end-of-text; ``end_strings`` and ``all_probs`` are limited; requests on which upstream crashes (500) are answered with 400 and
a sentence.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from nemo_steerlm.core.errors import DataError
from nemo_steerlm.core.template import ChatTokens
from nemo_steerlm.inference.engine import GenerationRequest, NextToken, Sampling
from nemo_steerlm.serving.bodies import parsed, read_beside
from nemo_steerlm.serving.model import Generation
from nemo_steerlm.serving.prompts import Prompts
from nemo_steerlm.serving.schemas import MOST_STOPS, STOP_CHARACTERS
from nemo_steerlm.serving.service import Service
from nemo_steerlm.serving.text_stream import AnswerText

logger = logging.getLogger(__name__)

MAX_SENTENCES = 128
MOST_PROBABILITIES = 2_000_000
"""Numbers in an answer with ``all_probs``, which is about 40 MB of JSON."""
_BOS = ("<s>", "<|begin_of_text|>", "<bos>")
"""The tokens that ``add_BOS`` may prepend; models without any (GPT-2) use end of text."""


def _whole(value: Any) -> bool:
    return isinstance(value, int)  # True is 1 here, as upstream


def _number(value: Any) -> bool:
    return type(value) in (int, float)


class _Rule(NamedTuple):
    key: str
    default: Any
    valid: Callable[[Any], bool]
    message: str


_RULES = (
    _Rule("tokens_to_generate", 64, lambda v: _whole(v) and v >= 1, "tokens_to_generate must be an integer greater than 0"),
    _Rule("all_probs", False, lambda v: isinstance(v, bool), "all_probs must be a boolean value"),
    _Rule(
        "temperature",
        1.0,
        lambda v: _number(v) and 0.0 < v <= 100.0,
        "temperature must be a positive number less than or equal to 100.0",
    ),
    _Rule("add_BOS", False, lambda v: isinstance(v, bool), "add_BOS must be a boolean value"),
    _Rule("greedy", False, lambda v: isinstance(v, bool), "greedy must be a boolean value"),
    _Rule("top_k", 0, lambda v: _number(v) and v >= 0, "top_k must be a positive integer number"),
    _Rule("top_p", 0.9, lambda v: _number(v) and 0.0 <= v <= 1.0, "top_p must be a positive number less than or equal to 1.0"),
    _Rule(
        "repetition_penalty",
        1.0,
        lambda v: _number(v) and v >= 1.0,
        "repetition_penalty must be a positive number no less than 1.0",
    ),
    _Rule(
        "end_strings",
        ["<|endoftext|>"],
        lambda v: isinstance(v, list) and all(isinstance(s, str) for s in v),
        "expect end_strings to be a list of strings",
    ),
    _Rule("min_tokens_to_generate", 0, lambda v: _whole(v) and v >= 0, "min_tokens_to_generate must be an integer no less than 0"),
    _Rule("neighbors", None, lambda v: _whole(v) and v >= 0, "num of neighbors must be an integer no less than 0"),
    _Rule("compute_logprob", False, lambda v: isinstance(v, bool), "compute_logprob must be a boolean value"),
    _Rule("random_seed", None, lambda v: v is None or (_whole(v) and v >= 0), "random_seed must be a positive integer number or None"),
)
ALLOWED_KEYS = frozenset({"sentences", "task_ids", *(rule.key for rule in _RULES)})
_TASK_IDS = (
    "Input at 'sentences' must by a tuple of two tensors like:                    "
    "(context_tokens_tensor, context_length_tensor) if task ids are given"
)


def _reply(value: Any, status: int = 200) -> Response:
    text = "".join(json.JSONEncoder(sort_keys=True).iterencode(value))
    return Response(text + "\n", status, media_type="application/json")


def router(service: Service) -> APIRouter:
    """The route, bound to ``service``."""
    routes = APIRouter(tags=["NeMo"])

    @routes.put("/generate", summary="NeMo's own protocol: sentences in, sentences with their continuation out")
    async def generate(request: Request) -> Response:
        try:
            body = await read_beside(service, parsed, await request.body())
        except DataError as error:
            return _reply({"message": str(error)}, 400)
        except (ValueError, RecursionError):
            return _reply({"message": "Failed to decode JSON object"}, 400)
        if not isinstance(body, dict):
            return _reply({"message": "The body must be a JSON object"}, 400)
        for key in body.keys() - ALLOWED_KEYS:
            logger.error("The request key %s is not allowed", key)
        if "sentences" not in body:
            return _reply({"message": "sentences is missing: a list of prompts"}, 400)
        return await _generate(service, request, body)

    return routes


async def _generate(service: Service, request: Request, body: Mapping[str, Any]) -> Response:
    sentences = body["sentences"]
    if isinstance(sentences, list) and len(sentences) > MAX_SENTENCES:
        return _reply("Maximum number of sentences is 128", 400)
    if "task_ids" in body:
        return _reply(_TASK_IDS)
    options = {}
    for rule in _RULES:
        options[rule.key] = body.get(rule.key, rule.default)
        if rule.key in body and not rule.valid(options[rule.key]):
            return _reply(rule.message)
    if not isinstance(sentences, list) or not sentences or not all(isinstance(s, str) and _encodable(s) for s in sentences):
        return _reply("sentences must be a list of strings", 400)
    try:
        service = _reached(service, sentences)
        generations = await run_in_threadpool(_generations, service, sentences, options)
    except DataError as error:
        return _reply(str(error), 400)
    service.require_open(len(generations))
    tokens: list[list[NextToken]] = [[] for _ in sentences]

    async def complete() -> None:
        async for index, delta in service.merged(generations):
            if delta.token is not None:
                tokens[index].append(delta.token)

    await service.within(request, complete())
    # In a thread, and in pieces: a long answer takes a while to write.
    return await run_in_threadpool(lambda: _reply(_answer(service.prompts, [g.request.prompt for g in generations], tokens, options)))


def _reached(service: Service, sentences: Sequence[str]) -> Service:
    """The model that can go on: where a label is to be written, as upstream's annotator asks for, it is the one that reads.

    Raises:
        DataError: If this server has none, or a request asks for both.
    """
    if service.scores:
        return service
    asks = {_within_label(sentence, service.model.info.tokens) for sentence in sentences}
    if asks == {False}:
        return service
    if len(asks) > 1:
        raise DataError("some sentences end within a label and some do not", instead="two models answer them: send two requests")
    if service.reader is None:
        where = "ask the server that reads for it" if service.remote_reader else "serve the value model"
        raise DataError(f"{service.settings.name} writes under labels and does not write labels", instead=where)
    return service.reader


def _within_label(prompt: str, tokens: ChatTokens) -> bool:
    _, found, label = prompt.rpartition(tokens.label_start)
    return bool(found) and tokens.end_of_name not in label and tokens.turn_start not in label


def _generations(service: Service, sentences: Sequence[str], options: Mapping[str, Any]) -> list[Generation]:
    """A row for each sentence. Raises DataError for more than this server gives."""
    ends = options["end_strings"]
    if len(ends) > MOST_STOPS or any(len(end) > STOP_CHARACTERS for end in ends):
        raise DataError(f"end_strings may have {MOST_STOPS} strings of {STOP_CHARACTERS} characters")
    generations = [_generation(service, sentence, options) for sentence in sentences]
    numbers = sum(len(g.request.prompt) + g.max_tokens for g in generations) * service.model.tokenizer.vocab_size
    if options["all_probs"] and numbers > MOST_PROBABILITIES:
        raise DataError(f"all_probs asks for {numbers} probabilities", instead=f"{MOST_PROBABILITIES} are the most that are given")
    return generations


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _generation(service: Service, sentence: str, options: Mapping[str, Any]) -> Generation:
    tokenizer = service.model.tokenizer
    prompt = service.prompts.raw(sentence)
    if options["add_BOS"]:
        named = (tokenizer.token_id(token) for token in _BOS)
        prompt = [next((i for i in named if i is not None), tokenizer.eos_id), *prompt]
    room = service.prompts.room(prompt, options["tokens_to_generate"])
    end_ids = {tokenizer.eos_id}
    strings = []
    for end in options["end_strings"]:
        token = tokenizer.token_id(end)
        end_ids.add(token) if token is not None else strings.append(end)
    wants_logprob = options["compute_logprob"] or options["all_probs"]
    request = GenerationRequest(
        prompt=tuple(prompt),
        sampling=Sampling(
            greedy=options["greedy"],
            temperature=options["temperature"],
            top_k=int(min(options["top_k"], tokenizer.vocab_size)),
            top_p=options["top_p"] or 1.0,
            repetition_penalty=1.0 if options["greedy"] else options["repetition_penalty"],
            seed=options["random_seed"],
        ),
        stop_ids=frozenset(i for i in end_ids if i >= 0),
        min_tokens=min(options["min_tokens_to_generate"], room),
        logprobs=0 if wants_logprob else None,
        prompt_logprobs=wants_logprob,
        full_logprobs=options["all_probs"],
    )
    return Generation(request, max_tokens=room, text=AnswerText(tokenizer, prompt, stops=[s for s in strings if _encodable(s)]))


def _answer(
    encoder: Prompts, prompts: Sequence[Sequence[int]], generated: Sequence[Sequence[NextToken]], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Upstream's fields. ``logprob`` and ``full_logprob`` have one entry per token except the first."""
    ids = [[*prompt, *(t.token for t in tokens)] for prompt, tokens in zip(prompts, generated, strict=True)]
    texts = [[encoder.token_text(i) for i in row] for row in ids]
    answer: dict[str, Any] = {
        "sentences": [encoder.tokenizer.decode(row) for row in ids],
        "tokens": texts,
        "logprob": None,
        "token_ids": ids,
        "offsets": [_offsets(row) for row in texts],
    }
    entries = [[*(tokens[0].prompt or []), *(t.logprob for t in tokens if t.logprob)] for tokens in generated]
    if options["compute_logprob"]:
        answer["logprob"] = [[e.logprob for e in row] for row in entries]
    if options["all_probs"]:
        answer["full_logprob"] = [[e.full for e in row] for row in entries]
    return answer


def _offsets(texts: Sequence[str]) -> list[int]:
    offsets = [0]
    for text in texts[:-1]:
        offsets.append(offsets[-1] + len(text))
    return offsets
