"""``steerlm render`` shows the prompt that is trained on."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from nemo_steerlm.core.conversation import Conversation
from nemo_steerlm.core.encoding import encode_spans
from nemo_steerlm.core.template import Template, text_of
from tests.core.tokenizers_of_all_kinds import MODEL, sentencepiece_plain

RECORD = {
    "conversations": [
        {"value": "hi", "from": "User", "label": "quality:3"},
        {"value": "hello", "from": "Assistant", "label": "quality:4"},
    ],
    "system": "S",
    "mask": "User",
    "type": "VALUE_TO_TEXT",
}


def render(tmp_path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    sentencepiece_plain()
    file = tmp_path / "records.jsonl"
    file.write_text("{}\n" + json.dumps(RECORD) + "\n")
    command = [sys.executable, "-m", "nemo_steerlm.cli.main", "render", str(file), "--tokenizer", str(MODEL), *flags]
    plain = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "NO_COLOR")}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=plain | environment)


def test_json_has_what_the_trainer_sees(tmp_path):
    shown = json.loads(render(tmp_path, "--index", "1", "--json").stdout)
    tokenizer = sentencepiece_plain()
    spans = Template.of(tokenizer).render(Conversation.from_record(RECORD))
    assert shown["text"] == text_of(spans)
    assert (shown["token_ids"], shown["loss_mask"]) == encode_spans(spans, tokenizer)


def test_learned_spans_are_marked_with_and_without_colours(tmp_path):
    assert "quality:4\n⟦hello\n<extra_id_1>⟧" in render(tmp_path, "--index", "1").stdout
    coloured = render(tmp_path, "--index", "1", FORCE_COLOR="1", TERM="xterm-256color").stdout
    assert "\x1b[30;42mhello" in coloured
    assert "\x1b[30;42mhi" not in coloured


def test_other_control_tokens(tmp_path):
    flags = ["--system_turn_start", "x00", "--turn_start", "x11", "--label_start", "x12"]
    shown = json.loads(render(tmp_path, "--index", "1", "--json", *flags).stdout)
    assert shown["text"].startswith("\x00System\nS\n\x11User\n\x12quality:3\n")


def test_what_cannot_be_shown_is_one_line(tmp_path):
    for flags, code, sentence in ((["--index", "9"], 2, "has 2 records"), ([], 65, "records.jsonl:1: conversations: missing key")):
        done = render(tmp_path, *flags)
        assert (done.returncode, len(done.stderr.splitlines())) == (code, 1)
        assert sentence in done.stderr
