"""What ``import nemo_steerlm`` offers."""

from __future__ import annotations

import inspect

import pytest

import nemo_steerlm


@pytest.mark.parametrize("name", nemo_steerlm.__all__)
def test_each_public_name_is_there_and_described(name):
    thing = getattr(nemo_steerlm, name)
    assert name == "__version__" or inspect.getdoc(thing)
    assert name in dir(nemo_steerlm)


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'megatron_gpt'"):
        nemo_steerlm.megatron_gpt  # noqa: B018


def test_the_public_names_are_enough_to_render_a_labelled_prompt():
    from nemo_steerlm import Conversation, Template, Turn, preset

    label = preset("nemotron").encode(dict.fromkeys(preset("nemotron").names, 1))
    turns = (Turn(speaker="User", text="Hi"), Turn(speaker="Assistant", text="Hello", label=label))
    spans = Template().render(Conversation(turns=turns, system="S", mask="User"), "VALUE_TO_TEXT")
    assert label in "".join(span.text for span in spans)
