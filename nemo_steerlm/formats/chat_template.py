r"""The exported chat template: Jinja that renders messages as ``core.template`` does, so that any engine can be asked under attributes.

It is generated from a model's template, schema and defaults. Engines hand ``attributes`` through: transformers as an argument of
``apply_chat_template``, vLLM and llama.cpp's server as ``chat_template_kwargs``. A message's own ``attributes`` are those it was written
under. Unknown names and values are refused through ``raise_exception``. A value model's template ends where the label of the last message
starts.

Written for the smallest Jinja there is, llama.cpp's, which renders a template while it loads: loops and methods of strings, one filter.

People's text is escaped as ``core.escape`` does. Two things Jinja cannot do: see what a tokenizer's normaliser makes of text (fullwidth
letters under sentencepiece's ``nmt_nfkc``), and tell apart special strings that overlap, which get a backslash each. And where transformers
takes more for special than sentencepiece does (a typed ``</s>``), that is escaped as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from nemo_steerlm.core.files import atomic_write
from nemo_steerlm.core.label_support import LabelSupport
from nemo_steerlm.core.labels import LANGUAGE_KEY
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.template import Template, Vocabulary
from nemo_steerlm.core.tokenization import load_tokenizer

VERSION = 1
"""Of what the template renders; kept in ``steerlm.json``. To be raised when the same messages render differently."""


def chat_template(info: ModelInfo, vocabulary: Vocabulary | None = None, named: Sequence[str] = ()) -> str:
    """The Jinja source for a model, for prompts that the tokenizer ``vocabulary`` encodes.

    ``named`` are strings that are special to the engine alone, and escaped for it.
    """
    template = info.template(vocabulary)
    special = _special((*template.tokens.markers, *template.special, *named))
    loops = {"WORDS": _WORDS_LOOP, "ODD": _ODD_LOOP, "SIGNS": _SIGNS_LOOP}
    source = _ESCAPE
    for name, loop in loops.items():
        source = source.replace(f"${name}_LOOP$", loop if special[name] else "")
    partial = isinstance(info.support, LabelSupport) and info.support.partial
    source += _LABEL.replace("$PARTIAL_LABELS$", _PARTIAL if partial else "") + _CONTENT + (_VALUE if info.kind == "value" else _STEER)
    return _filled("".join(line.strip() for line in source.splitlines()), {**special, **_constants(info, template)})


def write_chat_template(folder: Path, info: ModelInfo) -> ModelInfo:
    """Put the template into ``folder``'s ``tokenizer_config.json``, where every engine looks for it. Returns ``info`` with its version."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_bytes()) if path.is_file() else {}
    # A sentencepiece model takes no typed </s> for its control piece; transformers does, since it is the name of eos_token.
    tokens = (settings.get(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token"))
    named = [token["content"] if isinstance(token, dict) else token for token in tokens if token]
    settings["chat_template"] = chat_template(info, load_tokenizer(folder), named)
    with atomic_write(path) as file:
        file.write(json.dumps(settings, ensure_ascii=False, indent=2) + "\n")
    return msgspec.structs.replace(info, chat_template=VERSION)


def _constants(info: ModelInfo, template: Template) -> dict[str, Any]:
    tokens, quote, schema = template.tokens, template.escape.apply, info.attributes
    return {
        "ATTRIBUTES": [[a.name, a.low, a.high, a.default] for a in schema.attributes],
        "KNOWN": [*schema.names, LANGUAGE_KEY],
        "LANGUAGES": list(schema.languages),
        "LANGUAGE": LANGUAGE_KEY,
        "RANGES": ", ".join(f"{a.name} {a.low}..{a.high}" for a in schema.attributes),
        "HEAD": f"{tokens.system_turn_start}System{tokens.end_of_name}",
        "SYSTEM": info.system,
        "SYSTEM_END": "" if template.layout == "nemo-annotate" else tokens.end_of_turn,
        "USER": f"{tokens.turn_start}{quote(info.user)}{tokens.end_of_name}",
        "ASSISTANT": f"{tokens.turn_start}{quote(info.assistant)}{tokens.end_of_name}",
        "LABEL_START": tokens.label_start,
        "NAME_END": tokens.end_of_name,
        "TURN_END": tokens.end_of_turn,
    }


def _special(special: Iterable[str]) -> dict[str, Any]:
    """What the loops of ``escape`` go through.

    WORDS are [first character, what follows it in words that begin so]; ODD are [first character, rest] of those in which that character
    comes again, or a backslash is in its place; SIGNS are [control character, its picture, what follows doubled backslashes], the
    pictures themselves before the characters that turn into them.
    """
    special = dict.fromkeys(special)
    pictures = {s: chr(0x2400 + ord(s)) for s in special if len(s) == 1 and ord(s) < 0x20}
    words = [s for s in special if len(s) > 1 and pictures.keys().isdisjoint(s)]
    odd = [w for w in words if w[0] in w[1:] or "\\" in w[:2]]
    groups: dict[str, list[str]] = {}
    for word in words:
        if word not in odd:
            groups.setdefault(word[0], []).append(word[1:])
    signs = [[picture, picture, "\\"] for picture in pictures.values()] + [[c, picture, ""] for c, picture in pictures.items()]
    return {"WORDS": [[first, rests] for first, rests in groups.items()], "ODD": [[w[0], w[1:]] for w in odd], "SIGNS": signs}


def _filled(source: str, constants: Mapping[str, Any]) -> str:
    for name, value in constants.items():
        source = source.replace(f"${name}$", _literal(value))
    return source


def _literal(value: int | str | Sequence[Any]) -> str:
    """``value`` in Jinja's syntax, as far as every engine reads it."""
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        for character, escaped in {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}.items():
            value = value.replace(character, escaped)
        return f"'{value}'"
    return f"[{', '.join(map(_literal, value))}]"


_ESCAPE = r"""
{%- macro escape(text) -%}
  {%- set e = namespace(text=text, parts='', last='', found=false) -%}
  $ODD_LOOP$
  $WORDS_LOOP$
  $SIGNS_LOOP$
  {{- e.text -}}
{%- endmacro -%}
"""

_WORDS_LOOP = r"""
{%- for first, rests in $WORDS$ -%}
  {%- if first in e.text -%}
    {%- set e.parts = '' -%}
    {%- for part in e.text.split(first) -%}
      {%- if loop.first -%}
        {%- set e.parts = part -%}
      {%- else -%}
        {%- set e.found = false -%}
        {%- for rest in rests -%}
          {%- if part.lstrip('\\').startswith(rest) -%}{%- set e.found = true -%}{%- endif -%}
        {%- endfor -%}
        {%- set e.parts = e.parts ~ first ~ ('\\' if e.found else '') ~ part -%}
      {%- endif -%}
    {%- endfor -%}
    {%- set e.text = e.parts -%}
  {%- endif -%}
{%- endfor -%}
"""

_ODD_LOOP = r"""
{%- for first, rest in $ODD$ -%}
  {%- set e.parts = '' -%}
  {%- for part in e.text.split(rest) -%}
    {%- if not loop.first -%}
      {%- set e.found = e.parts.endswith(first) or e.parts.rstrip('\\').endswith(first) -%}
      {%- set e.parts = e.parts ~ ('\\' if e.found else '') ~ rest -%}
    {%- endif -%}
    {%- set e.parts = e.parts ~ part -%}
  {%- endfor -%}
  {%- set e.text = e.parts -%}
{%- endfor -%}
"""

_SIGNS_LOOP = r"""
{%- for sign, picture, more in $SIGNS$ -%}
  {%- if sign in e.text -%}
    {%- set e.parts = '' -%}
    {%- for part in e.text.split(sign) -%}
      {%- if not loop.first -%}
        {%- for _ in range(e.last | length - e.last.rstrip('\\') | length) -%}{%- set e.parts = e.parts ~ '\\' -%}{%- endfor -%}
        {%- set e.parts = e.parts ~ more ~ picture -%}
      {%- endif -%}
      {%- set e.parts = e.parts ~ part -%}
      {%- set e.last = part -%}
    {%- endfor -%}
    {%- set e.text = e.parts -%}
  {%- endif -%}
{%- endfor -%}
"""

_LABEL = r"""
{%- macro label(values, complete) -%}
  {%- set l = namespace(text='', complete=complete) -%}
  {%- for name in values -%}
    {%- if name not in $KNOWN$ -%}{{- raise_exception('unknown attribute ' ~ name ~ '; attributes here: ' ~ $RANGES$) -}}{%- endif -%}
    $PARTIAL_LABELS$
  {%- endfor -%}
  {%- for name, low, high, default in $ATTRIBUTES$ -%}
    {%- if name in values -%}
      {%- set value = values[name] -%}
      {%- if value is not integer or value < low or value > high -%}
        {{- raise_exception('attribute ' ~ name ~ ' is ' ~ value ~ '; write a whole number from ' ~ low ~ ' to ' ~ high) -}}
      {%- endif -%}
      {%- set l.text = l.text ~ (',' if l.text else '') ~ name ~ ':' ~ value -%}
    {%- elif l.complete -%}
      {%- set l.text = l.text ~ (',' if l.text else '') ~ name ~ ':' ~ default -%}
    {%- endif -%}
  {%- endfor -%}
  {%- if $LANGUAGE$ in values -%}
    {%- if values[$LANGUAGE$] not in $LANGUAGES$ -%}
      {{- raise_exception('unknown language ' ~ values[$LANGUAGE$] ~ '; known: ' ~ $LANGUAGES$) -}}
    {%- endif -%}
    {%- set l.text = l.text ~ (',' if l.text else '') ~ $LANGUAGE$ ~ ':' ~ values[$LANGUAGE$] -%}
  {%- endif -%}
  {{- escape(l.text) -}}
{%- endmacro -%}
"""

_PARTIAL = "{%- if name != $LANGUAGE$ -%}{%- set l.complete = false -%}{%- endif -%}"
"""In the loop over the named attributes, for a model that was taught labels with attributes left out: those not named stay unnamed."""

_CONTENT = r"""
{%- macro content(message) -%}
  {%- if message['content'] is string -%}
    {{- message['content'] -}}
  {%- else -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] != 'text' -%}{{- raise_exception('content of type ' ~ part['type'] ~ '; this model reads text') -}}{%- endif -%}
      {{- part['text'] -}}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(system='', systems=0, turns=0) -%}
{%- for message in messages -%}
  {%- if message['role'] == 'system' or message['role'] == 'developer' -%}
    {%- set ns.system = ns.system ~ ('\n\n' if ns.systems else '') ~ content(message) -%}
    {%- set ns.systems = ns.systems + 1 -%}
  {%- elif message['role'] == 'user' or message['role'] == 'assistant' -%}
    {%- set ns.turns = ns.turns + 1 -%}
  {%- else -%}
    {{- raise_exception('role ' ~ message['role'] ~ '; write system, user or assistant') -}}
  {%- endif -%}
{%- endfor -%}
{%- if not ns.turns -%}{{- raise_exception('messages have no turn; add a message with role user') -}}{%- endif -%}
{{- $HEAD$ ~ escape(ns.system if ns.systems else $SYSTEM$) ~ $SYSTEM_END$ -}}
"""

_STEER = r"""
{%- set asked = label(attributes if attributes is defined and attributes is mapping else {}, true) -%}
{%- for message in messages -%}
  {%- set own = asked -%}
  {%- if 'attributes' in message and message['attributes'] is mapping -%}
    {%- set own = label(message['attributes'], true) -%}
  {%- endif -%}
  {%- if message['role'] == 'user' -%}
    {{- $USER$ ~ escape(content(message)) ~ $TURN_END$ -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- $ASSISTANT$ ~ $LABEL_START$ ~ own ~ $NAME_END$ ~ escape(content(message)) ~ $TURN_END$ -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- $ASSISTANT$ ~ $LABEL_START$ ~ asked ~ $NAME_END$ -}}{%- endif -%}
"""

_VALUE = r"""
{%- if attributes is defined and attributes is mapping -%}
  {{- raise_exception('this is a value model: it reads attributes; ask the steer model to write under them') -}}
{%- endif -%}
{%- set t = namespace(number=0) -%}
{%- for message in messages -%}
  {%- if message['role'] == 'user' or message['role'] == 'assistant' -%}
    {%- set t.number = t.number + 1 -%}
    {{- ($USER$ if message['role'] == 'user' else $ASSISTANT$) ~ escape(content(message)) ~ $TURN_END$ -}}
    {%- if add_generation_prompt and t.number == ns.turns -%}
      {{- $LABEL_START$ -}}
    {%- elif 'attributes' in message and message['attributes'] is mapping -%}
      {{- $LABEL_START$ ~ label(message['attributes'], false) ~ $NAME_END$ -}}
    {%- endif -%}
  {%- endif -%}
{%- endfor -%}
"""
