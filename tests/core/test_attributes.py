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


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"name": ""}, "attribute name ''"),
        ({"name": "a:b"}, "attribute name 'a:b': use letters, digits and _ only"),
        ({"name": "a b"}, "attribute name 'a b'"),
        ({"name": "a\n"}, "attribute name"),
        ({"name": "lang"}, "attribute name 'lang' is taken by the language field; set `languages` instead"),
        ({"name": "a", "low": 2, "high": 2, "default": 2}, "attribute a: need low < high and low <= default <= high, found 2, 2, 2"),
        ({"name": "a", "low": 1}, "found 1, 0, 4"),
        ({"name": "a", "default": 5}, "found 0, 5, 4"),
    ],
)
def test_an_attribute_that_cannot_be_is_refused(fields, sentence):
    with pytest.raises(UsageError) as error:
        Attribute(**fields)
    assert sentence in str(error.value)


def test_an_attribute_may_default_to_its_ends():
    assert [Attribute(name="a", low=-1, high=1, default=d).values for d in (-1, 1)] == [range(-1, 2)] * 2


def test_a_schema_has_attributes_and_each_once():
    with pytest.raises(UsageError, match="needs at least one attribute"):
        AttributeSchema(attributes=())
    with pytest.raises(UsageError, match="attribute a is listed twice"):
        AttributeSchema(attributes=(Attribute(name="a"), Attribute(name="b"), Attribute(name="a")))


def test_a_language_is_english_where_there_is_english():
    made = [AttributeSchema(attributes=(Attribute(name="a"),), languages=languages) for languages in ((), ("de", "fr"), ("de", "en"))]
    assert [schema.default_language for schema in made] == [None, "de", "en"]


def test_what_is_wrong_with_a_request_is_said_with_its_field():
    for mapping, sentence in (
        ({"lang": 3}, "lang: language is 3; write a string"),
        ({"lang": "xx"}, "lang: unknown language 'xx'; known: ar bg"),
        ({"quality": 9}, "quality: label out of range: quality is 9; write a whole number from 0 to 4"),
        ({"qualty": 1}, "unknown attribute 'qualty'; did you mean quality? known: quality, toxicity"),
    ):
        with pytest.raises(DataError) as error:
            preset("oasst").label(mapping)
        assert str(error.value).startswith(sentence)
    with pytest.raises(DataError, match="label has language 'en', but schema helpsteer has none; drop the lang field"):
        preset("helpsteer").label({"lang": "en"})
    with pytest.raises(DataError, match="label part 'quality' has no ':'; write name:value,name:value"):
        preset("oasst").parse("quality")


def test_what_is_no_schema_is_named():
    with pytest.raises(UsageError, match=r"^attribute schema: .*attributes"):
        AttributeSchema.from_dict({"attributes": 3})


HIGH = {"quality", "understanding", "helpfulness", "correctness", "coherence", "complexity", "verbosity"}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_default_to_a_good_answer(name):
    """As the papers and model cards ask: what is good at its highest, everything else at zero."""
    schema = preset(name)
    top = 9 if name == "paper" else 4
    assert {a.name: (a.low, a.high, a.default) for a in schema.attributes} == {
        each: (0, top, top if each in HIGH else 0) for each in schema.names
    }
    assert schema.defaults() == {a.name: a.default for a in schema.attributes}
    assert all(a.description for a in schema.attributes)
    assert (schema.name, bool(schema.languages)) == (name, name in ("oasst", "nemotron"))
