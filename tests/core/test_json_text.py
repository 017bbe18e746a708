"""JSON is read as everybody reads it, and refused where readers disagree or where it cannot be written again."""

from __future__ import annotations

import functools
import json
from typing import Any

import ijson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_steerlm.core.errors import DataError, Where
from nemo_steerlm.core.json_text import Streamed, check_streamed, parse_json

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)

REPEATED = {
    "beside each other": '{"a": 1, "b": 2, "a": 1}',
    "escaped": '{"a": 1, "\\u0061": 2}',
    "inside": '{"x": [{"y": {"b": 0, "a": 1, "a": 2}}]}',
    "in what is not kept": '{"a": {"a": 0}, "a": 1}',
    "with a text that looks like keys": '{"a": "\\"a\\":1,\\"b\\" :", "a" : 1}',
}


def streamed(text: str) -> Any:
    noted: list[tuple[Streamed, str]] = []
    [value] = ijson.items(text.encode(), "", use_float=True, map_type=functools.partial(Streamed, noted))
    check_streamed(value, noted, Where(field="[0]"))
    return value


@given(value=VALUES, ascii_only=st.booleans(), indent=st.none() | st.just(1))
def test_every_value_is_read_as_it_was_written(value, ascii_only, indent):
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert parse_json(text.encode()) == value


@given(value=st.dictionaries(st.text(), VALUES, min_size=1), again=st.data())
def test_a_key_that_stands_twice_is_named(value, again):
    key = again.draw(st.sampled_from(sorted(value)))
    text = json.dumps(value)[:-1] + f", {json.dumps(key)}: 0}}"
    with pytest.raises(DataError, match="stands twice in one object; keep one of them"):
        parse_json(f"[{text}]".encode())


@pytest.mark.parametrize("read", [lambda text: parse_json(text.encode()), streamed], ids=["whole", "streamed"])
@pytest.mark.parametrize("kind", REPEATED)
def test_a_key_that_stands_twice_is_found_wherever_it_is(kind, read):
    with pytest.raises(DataError, match="the key 'a' stands twice in one object"):
        read(REPEATED[kind])


def test_the_same_key_in_different_objects_is_nothing_special():
    text = '{"a": [{"a": 1}, {"a": "\\"a\\": 1"}]}'
    assert parse_json(text.encode()) == streamed(text) == json.loads(text)


def test_nan_is_null_and_what_cannot_be_written_again_is_refused():
    assert parse_json(b'{"a": NaN}') == {"a": None}
    assert parse_json(rb'"\ud83d\ude00"') == "\U0001f600"
    for raw in (b"Infinity", b"[-Infinity]", b"[1e999]", rb'["\ud83d"]', rb'{"\uDE00": 1}', b"{", b"", b"\xff"):
        with pytest.raises(ValueError, match=r"."):
            parse_json(raw)
