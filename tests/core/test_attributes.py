"""Schemas encode and parse label strings, and name what is wrong with one."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_steerlm.core.attributes import PRESETS, Attribute, AttributeSchema, preset
from nemo_steerlm.core.errors import DataError, UsageError


@st.composite
def schemas(draw: st.DrawFn) -> AttributeSchema:
    names = draw(
        st.lists(st.text(st.characters(codec="utf-8", exclude_characters=":, \n"), min_size=1), min_size=1, max_size=5, unique=True)
    )
    attributes = []
    for name in (n for n in names if n != "lang"):
        low = draw(st.integers(-5, 5))
        high = low + draw(st.integers(1, 9))
        attributes.append(Attribute(name=name, low=low, high=high, default=draw(st.integers(low, high))))
    attributes = attributes or [Attribute(name="quality")]
    return AttributeSchema(attributes=tuple(attributes), languages=draw(st.sampled_from([(), ("en", "pt")])))


@settings(max_examples=50)
@given(schemas(), st.data())
def test_encode_then_parse_gives_the_same(schema, data):
    chosen = data.draw(st.lists(st.sampled_from(schema.attributes), unique=True))
    values = {a.name: data.draw(st.integers(a.low, a.high)) for a in chosen}
    language = data.draw(st.sampled_from([None, *schema.languages]))
    label = schema.parse(schema.encode(values, language))
    assert (label.values, label.language) == (values, language)
    assert list(label.values) == [n for n in schema.names if n in values]


@settings(max_examples=50)
@given(schemas())
def test_dictionary_round_trip(schema):
    assert AttributeSchema.from_dict(schema.to_dict()) == schema


@settings(max_examples=50)
@given(st.text(max_size=30) | st.from_regex(r"(quality|toxicity|lang)[:,]?-*[0-9]{0,3}", fullmatch=True))
def test_no_label_string_does_anything_but_parse_or_raise_our_error(label):
    with contextlib.suppress(DataError):
        preset("oasst").parse(label)


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        ("quality", "no ':'"),
        ("quality:5", "quality is 5"),
        ("quality:-1", "quality is -1"),
        ("quality:--1", "whole number from 0 to 4"),
        ("quality:" + "9" * 5000, "whole number from 0 to 4"),
        ("quality:four", "whole number from 0 to 4"),
        ("qualty:4", "did you mean quality?"),
        ("quality:1,quality:1", "names quality twice"),
        ("lang:en,lang:en", "names lang twice"),
        ("lang:xx", "unknown language 'xx'"),
    ],
)
def test_a_wrong_label_says_what_is_wrong(label, sentence):
    with pytest.raises(DataError) as error:
        preset("oasst").parse(label)
    assert sentence in str(error.value)


def test_presets_have_upstreams_names_in_upstreams_order():
    assert ",".join(f"{n}:{4 if n in ('quality', 'helpfulness') else 0}" for n in preset("oasst").names) == (
        "quality:4,toxicity:0,humor:0,creativity:0,violence:0,helpfulness:4,not_appropriate:0,hate_speech:0,sexual_content:0,fails_task:0,"
        "political_content:0,moral_judgement:0"
    )
    assert {name: len(schema.names) for name, schema in PRESETS.items()} == {
        "oasst": 12,
        "helpsteer": 5,
        "steerlm9": 9,
        "nemotron": 17,
        "paper": 7,
    }
    assert preset("paper")["quality"].high == 9


def test_true_is_no_level():
    with pytest.raises(DataError):
        preset("oasst").encode({"quality": True})


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean oasst"):
        preset("oast")
