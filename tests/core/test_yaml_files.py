"""YAML is read as every reader of it would, or refused with the line."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.core.yaml_files import MOST_VALUES, parse_yaml, read_yaml

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_json_is_read_as_json(value):
    """The operator hands a manifest to its pods as JSON."""
    [document] = parse_yaml(json.dumps({"value": value}), "m")
    assert document.value == {"value": json.loads(json.dumps(value))}


READ = {
    "1e-5": 1e-5,
    "6.0e-6": 6e-6,
    ".5": 0.5,
    "0": 0,
    "-7": -7,
    "0x1F": 31,
    "2026-11-30": "2026-11-30",
    "1:30": "1:30",
    "yes": True,
    "off": False,
    "=": "=",
    "~": None,
    "'010'": "010",
    "v1.2.3": "v1.2.3",
    "16Gi": "16Gi",
}


@pytest.mark.parametrize("text", READ)
def test_a_scalar_is_what_kubectl_makes_of_it(text):
    [document] = parse_yaml(f"a: {text}", "m")
    assert document.value == {"a": READ[text]}
    assert type(document.value["a"]) is type(READ[text])


REFUSED = {
    "a: 1\nb:\n  c: 1\n  c: 2": "m:4: the key 'c' stands here and in line 3; keep one of them",
    "a: {b: 1, b: 1}": "m:1: the key 'b' stands here and in line 1",
    "a: 010": 'm:1: 010 is read as different numbers by different readers of YAML: write 10, or put it in quotes: "010"',
    "a: 0o10": "m:1: 0o10 is read as different numbers",
    "a: 1_000": "write 1000, or put it in quotes",
    "a: y": 'y is a boolean to some readers of YAML and a text to others: write true or false, or put it in quotes: "y"',
    "1: a": 'm:1: the key 1 is no text; put it in quotes: "1"',
    "[a]: b": "m:1: a list or a mapping cannot be a key",
    "a: !!set {b}": "m:1: the tag tag:yaml.org,2002:set is not supported",
    "a: !x 1": "the tag !x is not supported",
    "a: &x [*x]": "m:1: an alias that stands inside what it means",
    "a: 1\nb: [": "m:2: not YAML: while parsing a flow node",
    "a:\n  <<: 3": "m:2: << takes a mapping",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_readers_disagree_about_is_refused_with_its_line(text):
    with pytest.raises(UsageError) as error:
        parse_yaml(text, "m")
    assert str(error.value).startswith("m:")
    assert REFUSED[text] in str(error.value)


def test_aliases_to_aliases_do_not_fill_the_memory():
    names = "abcdefgh"
    text = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    text += "".join(f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in itertools.pairwise(names))
    with pytest.raises(UsageError, match=f"more than {MOST_VALUES} values"):
        parse_yaml(text, "m")


def test_what_is_merged_is_overridden_and_every_value_has_its_line():
    [document] = parse_yaml("x: &t\n  p: 1\n  q: {r: 2}\nz:\n  <<: *t\n  q: [3, off]\n", "m")
    assert document.value == {"x": {"p": 1, "q": {"r": 2}}, "z": {"p": 1, "q": [3, False]}}
    assert document.lines["z", "p"] == 2
    assert document.lines["z", "q", 1] == 6
    assert ("z", "q", "r") not in document.lines
    assert document.texts["z", "q", 1] == "off"


def test_a_byte_order_mark_is_passed_over_and_empty_documents_are_left_out(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text("---\n---\na: 1\n---\nb: 2\n", encoding="utf-8-sig")
    assert [document.value for document in read_yaml(path)] == [{"a": 1}, {"b": 2}]
