"""``steerlm render``: the exact prompt of a record, learned spans marked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from nemo_steerlm.cli.spans import print_spans
from nemo_steerlm.core.errors import UsageError

if TYPE_CHECKING:
    from nemo_steerlm.core.conversation import Conversation
    from nemo_steerlm.core.template import ChatTokens, Layout


def render(
    file: str = typer.Argument(..., help="Records, .jsonl or .jsonl.gz."),
    tokenizer: str = typer.Option(..., "--tokenizer", help="A sentencepiece .model file, a tokenizer.json, a model folder, or a hub name."),
    index: int = typer.Option(0, "--index", help="Which record, from 0."),
    as_json: bool = typer.Option(False, "--json", help="Print text, token ids and loss mask (1 = learned) as JSON."),
    system_turn_start: str = typer.Option("", "--system_turn_start", help="Control string; the model folder's or <extra_id_0> by default."),
    turn_start: str = typer.Option("", "--turn_start", help="Control string; the model folder's or <extra_id_1> by default."),
    label_start: str = typer.Option("", "--label_start", help="Control string; the model folder's or <extra_id_2> by default."),
) -> None:
    """Show the exact prompt of a record, as a model trains on it: learned spans are coloured, or in ⟦ ⟧ where there are no colours."""
    from nemo_steerlm.core.encoding import encode_spans
    from nemo_steerlm.core.template import Template, text_of
    from nemo_steerlm.core.tokenization import load_tokenizer

    given = {"system_turn_start": system_turn_start, "turn_start": turn_start, "label_start": label_start}
    tokens, layout = _taught(tokenizer, {name: text for name, text in given.items() if text})
    conversation = _conversation(file, index)
    loaded = load_tokenizer(tokenizer, tokens)
    spans = Template.of(loaded, tokens, layout).render(conversation)
    encoded = encode_spans(spans, loaded)
    if as_json:
        print(json.dumps({"text": text_of(spans), "token_ids": encoded.ids, "loss_mask": encoded.loss_mask}, ensure_ascii=False))
        return
    print_spans(spans)
    print(f"\n{len(encoded.ids)} tokens, {sum(encoded.loss_mask)} learned")


def _taught(tokenizer: str, given: dict[str, str]) -> tuple[ChatTokens, Layout]:
    """Control strings and layout of the model in the tokenizer's folder where it says them, with ``given`` ones instead."""
    from nemo_steerlm.core.model_info import FILE_NAME, ModelInfo
    from nemo_steerlm.core.template import ChatTokens

    if (Path(tokenizer) / FILE_NAME).is_file():
        info = ModelInfo.load(Path(tokenizer))
        shell = ChatTokens.from_shell(**given)
        fields = {name: getattr(shell if name in given else info.tokens, name) for name in ChatTokens.__struct_fields__}
        return ChatTokens(**fields), info.layout
    return ChatTokens.from_shell(**given), "nemo-sft"


def _conversation(file: str, index: int) -> Conversation:
    from nemo_steerlm.core.errors import Where
    from nemo_steerlm.data.records import check_conversation, parse_conversation, raw_lines

    found = 0
    for found, (number, raw) in enumerate(raw_lines(file), 1):
        if found - 1 == index:
            where = Where(file=file, line=number)
            return check_conversation(parse_conversation(raw, where), where)
    raise UsageError(f"--index {index}: {file} has {found} records, counted from 0")
