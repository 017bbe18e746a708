"""Token ids and loss masks equal upstream's on ordinary records."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings

from nemo_steerlm.core.conversation import Conversation
from nemo_steerlm.core.encoding import encode_spans
from nemo_steerlm.core.template import ChatTokens, Template
from nemo_steerlm.core.tokenization import TextTokenizer
from tests.core import tokenizers_of_all_kinds as kinds
from tests.core.records_for_tests import ordinary_records
from tests.core.upstream_model import NotOrdinaryError, upstream

DEFAULT = ChatTokens()
# The tutorial's flags as bash hands them over, and as they are meant.
FROM_BASH = ChatTokens.from_shell(system_turn_start="x00", turn_start="x11", label_start="x12")
FROM_YAML = ChatTokens.from_shell(
    system_turn_start=r"\x00", turn_start=r"\x11", label_start=r"\x12", end_of_turn=r"\x0A", end_of_name=r"\x0A"
)
CUSTOM = ChatTokens(system_turn_start="[SYS]", turn_start="[TURN]", label_start="[LABEL]", end_of_turn="[END]\n", end_of_name="::\n")
CHOICES = {"default": DEFAULT, "from-bash": FROM_BASH, "from-yaml": FROM_YAML, "custom": CUSTOM}


@pytest.fixture(params=["sentencepiece", "sentencepiece-control", "byte-level-bpe", "byte-level-bpe-control"])
def tokenizer_kind(request: pytest.FixtureRequest) -> str:
    return request.param


def tokenizer_for(kind: str, tokens: ChatTokens, folder) -> TextTokenizer:
    if kind == "sentencepiece":
        return kinds.sentencepiece_plain()
    if kind == "sentencepiece-control":
        kinds.sentencepiece_plain()
        return kinds.sentencepiece_with_control(tokens.markers, folder)
    return kinds.byte_level_bpe(tokens.markers if kind.endswith("control") else ())


@pytest.mark.parametrize("tokens", CHOICES.values(), ids=CHOICES)
def test_ids_and_mask_equal_upstreams(tokens, tokenizer_kind, tmp_path_factory):
    tokenizer = tokenizer_for(tokenizer_kind, tokens, tmp_path_factory.mktemp("tokenizer"))
    compared = 0
    strings = tuple(getattr(tokens, field) for field in tokens.__struct_fields__)

    @settings(max_examples=25, database=None, suppress_health_check=[HealthCheck.filter_too_much])
    @given(ordinary_records())
    def compare(record):
        nonlocal compared
        try:
            expected = upstream(record, tokenizer.encode, strings)
        except NotOrdinaryError:
            assume(False)
        spans = Template.of(tokenizer, tokens).render(Conversation.from_record(record))
        assert encode_spans(spans, tokenizer) == expected
        compared += 1

    compare()
    assert compared >= 12


def test_bash_and_yaml_mean_the_same_tokens():
    assert FROM_BASH.markers == FROM_YAML.markers == ("\x00", "\x11", "\x12")
    assert FROM_YAML == FROM_BASH


@pytest.mark.parametrize(
    ("kind", "mask", "learned"),
    [
        ("VALUE_TO_TEXT", "User", ["t1\n", "t3\n"]),
        ("VALUE_TO_TEXT", "Assistant", ["t2\n", "t4\n"]),
        ("TEXT_TO_VALUE", "User", ["quality:1\n", "quality:3\n"]),
        ("TEXT_TO_VALUE", "Assistant", ["quality:0\n", "quality:2\n", "quality:4\n"]),
        (None, "User", ["t1\n", "t3\n"]),
    ],
)
def test_learned_text_is_upstreams_own_expectation(kind, mask, learned, tokenizer_kind, tmp_path):
    """tests/collections/nlp/test_chat_sft_dataset.py of NeMo v1.22.0: five turns, the user first."""
    turns = [{"from": ("User", "Assistant")[i % 2], "value": f"t{i}", "label": f"quality:{i}"} for i in range(5)]
    conversation = Conversation.from_record({"conversations": turns, "system": "S\n\n", "mask": mask, "type": kind})
    tokenizer = tokenizer_for(tokenizer_kind, DEFAULT, tmp_path)
    encoded = encode_spans(Template.of(tokenizer).render(conversation), tokenizer)
    text = tokenizer.decode([i for i, on in zip(encoded.ids, encoded.loss_mask, strict=True) if on])
    assert text.strip() == "".join(f"{piece}<extra_id_1>" for piece in learned)
