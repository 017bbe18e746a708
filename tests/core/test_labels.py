"""Label strings come apart into what they were put together from, for every schema; what is asked for may come from anywhere."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_steerlm.core.attributes import PRESETS, AttributeSchema, preset
from nemo_steerlm.core.errors import DataError, UsageError
from nemo_steerlm.core.labels import LANGUAGE_KEY, Label, join, split
from tests.core.test_attributes import schemas

SCHEMAS = st.sampled_from(list(PRESETS.values())) | schemas()


@st.composite
def labels(draw: st.DrawFn) -> tuple[AttributeSchema, Label]:
    schema = draw(SCHEMAS)
    chosen = draw(st.lists(st.sampled_from(schema.attributes), unique=True))
    values = {a.name: draw(st.integers(a.low, a.high)) for a in sorted(chosen, key=schema.attributes.index)}
    return schema, Label(values=values, language=draw(st.sampled_from([None, *schema.languages])))


@settings(max_examples=100)
@given(labels())
def test_a_label_is_read_back_from_its_string_and_from_the_apis_mapping(made):
    schema, label = made
    text = schema.encode(label.values, label.language)
    assert schema.parse(text) == label
    assert list(schema.parse(text).values) == list(label.values)
    assert schema.label(label.to_mapping()) == label
    assert Label.from_options(f"{name}={value}" for name, value in label.to_mapping().items()) == label


@settings(max_examples=100)
@given(labels())
def test_the_fields_of_a_string_are_its_values_where_they_stand(made):
    schema, label = made
    text = schema.encode(label.values, label.language)
    fields = split(text)
    assert join((field.name, field.text) for field in fields) == text
    assert {field.name: field.level for field in fields if field.level is not None} == label.values
    assert [field.text for field in fields if field.name == LANGUAGE_KEY] == ([label.language] if label.language else [])
    for field in fields:
        assert text[: field.start].endswith(f"{field.name}:")
        assert text[field.start :].startswith(field.text)


@settings(max_examples=100)
@given(st.text(st.sampled_from("ab:,-09.lang٣"), max_size=24))
def test_any_string_at_all_is_split_and_nothing_of_it_is_lost(text):
    fields = split(text)
    assert ",".join(field.name if field.text is None else f"{field.name}:{field.text}" for field in fields) == text
    for field in fields:
        assert field.text is None or text[field.start :].startswith(field.text)
        assert (field.level is not None) == (bool(re.fullmatch("-?[0-9]{1,9}", field.text or "")) and field.name != LANGUAGE_KEY)


def test_upstreams_string():
    label = Label(values={"quality": 4, "toxicity": 0}, language="en")
    assert preset("oasst").encode(label.values, label.language) == "quality:4,toxicity:0,lang:en"
    assert split("quality:4,x,lang:en") == [("quality", "4", 8), ("x", None, 11), ("lang", "en", 17)]
    assert split("") == []


def test_what_is_asked_for_stands_over_what_is_there():
    base = Label(values={"quality": 4, "humor": 0}, language="en")
    assert Label(values={"humor": 3}).over(base) == Label(values={"quality": 4, "humor": 3}, language="en")
    assert Label(language="de").over(base).language == "de"
    assert base.to_mapping() == {"quality": 4, "humor": 0, "lang": "en"}


@pytest.mark.parametrize("option", ["quality", "=4", "quality=high", "quality=", "quality=4.0", "quality=٣", "quality=--4"])
def test_an_option_that_is_no_level_is_a_usage_error(option):
    with pytest.raises(UsageError, match="write"):
        Label.from_options([option])


@pytest.mark.parametrize("value", [True, 4.0, "4", None, 5, -1])
def test_a_request_brings_whole_numbers_in_range(value):
    with pytest.raises(DataError, match="label out of range: quality"):
        preset("oasst").label({"quality": value})


@pytest.mark.parametrize(("name", "language"), [("oasst", "xx"), ("oasst", 3), ("helpsteer", "en")])
def test_a_request_brings_a_language_that_the_schema_has(name, language):
    with pytest.raises(DataError, match="language"):
        preset(name).label({"lang": language})


def test_the_language_nobody_chose():
    assert preset("oasst").default_language == "en"
    assert preset("helpsteer").default_language is None
    assert AttributeSchema(attributes=preset("oasst").attributes, languages=("de", "fr")).default_language == "de"


def test_an_option_s_last_equals_sign_divides_it():
    assert Label.from_options(["a=b=4"]) == Label(values={"a=b": 4})
