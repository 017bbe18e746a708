from __future__ import annotations

import pytest

from nemo_steerlm.client.labelling import LabelFormat, Labelling
from nemo_steerlm.client.retry import RequestFailed
from nemo_steerlm.core.attributes import preset
from nemo_steerlm.core.conversation import Conversation, Turn
from nemo_steerlm.core.template import Template

CONVERSATION = Conversation(
    turns=(Turn(speaker="User", text="text0", label="quality:1,lang:de"), Turn(speaker="Assistant", text="text1", label="quality:0")),
    system="SYS\n\n",
)
UPSTREAM = LabelFormat(schema=preset("oasst"), template=Template(layout="nemo-annotate"), turns="all")


def answer_all(work: Labelling, value: str = "3") -> list[str]:
    """Let a server that always says ``value`` label everything. Returns the prompts it got."""
    prompts = []
    while not work.done:
        prompt = work.prompt()
        prompts.append(prompt)
        work.take(prompt + ("en" if prompt.endswith("lang:") else value), prompt)
    return prompts


def test_prompts_are_upstreams_to_the_byte() -> None:
    prompts = answer_all(Labelling(CONVERSATION, UPSTREAM))
    assert len(prompts) == 26, "thirteen a turn"
    assert prompts[0] == "<extra_id_0>System\nSYS\n\n<extra_id_1>User\ntext0\n<extra_id_2>quality:"
    assert prompts[1] == "<extra_id_0>System\nSYS\n\n<extra_id_1>User\ntext0\n<extra_id_2>quality:3,toxicity:"
    label = ",".join(f"{name}:3" for name in preset("oasst").names) + ",lang:en"
    first = f"<extra_id_0>System\nSYS\n\n<extra_id_1>User\ntext0\n<extra_id_2>{label}\n"
    assert prompts[13] == f"{first}<extra_id_1>Assistant\ntext1\n<extra_id_2>quality:"


def test_masked_turns_keep_their_label_as_context_when_only_others_are_read() -> None:
    form = LabelFormat(schema=preset("helpsteer"), template=Template(), turns="unmasked")
    work = Labelling(CONVERSATION, form)
    prompts = answer_all(work)
    assert prompts[0].endswith("User\ntext0\n<extra_id_2>quality:1,lang:de\n<extra_id_1>Assistant\ntext1\n<extra_id_2>helpfulness:")
    assert list(work.labels) == [1]


@pytest.mark.parametrize(
    ("sentence", "label"),
    [
        ("System\nSYS text0\nquality:4", "quality:4"),
        ("quality:1 quality: 2,toxicity:0", "quality:2"),
        ("quality:3\nmore", "quality:3"),
    ],
)
def test_a_value_is_found_where_the_tokenizer_changed_the_prompt(sentence: str, label: str) -> None:
    work = Labelling(CONVERSATION, UPSTREAM)
    work.take(sentence, work.prompt())
    assert work.prompt().endswith(f"{label},toxicity:")


@pytest.mark.parametrize("value", ["5", "-1", "x", "", "3.5", "\u0663", "quality:"])
def test_a_wrong_value_is_never_taken(value: str) -> None:
    work = Labelling(CONVERSATION, UPSTREAM)
    prompt = work.prompt()
    with pytest.raises(RequestFailed):
        work.take(prompt + value, prompt)
    assert work.prompt() == prompt, "the same value is asked for again"


def test_an_answer_without_the_attribute_is_refused() -> None:
    work = Labelling(CONVERSATION, UPSTREAM)
    with pytest.raises(RequestFailed, match="no quality"):
        work.take("hello", work.prompt())
