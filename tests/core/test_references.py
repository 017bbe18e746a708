"""What a manifest's references and numbers may be."""

from __future__ import annotations

import re

import pydantic
import pytest

from nemo_steerlm.core.references import PATTERN, check_scheme
from nemo_steerlm.core.spec import Reference, Spec, Text, from_plain, whole

TAKEN = ["s3://b/k", "gs://b/k", "az://c/k", "https://h/f", "hf:owner/name", "pypi:a==1/b", "/abs/path", "rel/path", "a:b", "C:/x", "a//b"]


class Part(Spec):
    base_model: Reference = "b"
    steps: int = 1
    rate: float = 1.0
    names: tuple[Text, ...] = ()


@pytest.mark.parametrize("reference", TAKEN)
def test_paths_and_known_addresses_are_taken(reference):
    assert check_scheme(reference) == reference
    assert re.search(PATTERN, reference)
    assert from_plain(Part, {"baseModel": reference}).base_model == reference


@pytest.mark.parametrize("scheme", ["http", "ftp", "s4", "S3", "file"])
def test_another_scheme_is_named_with_those_there_are(scheme):
    sentence = f"unknown scheme '{scheme}'; write s3://, gs://, az://, https://, hf:, pypi: or a path"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        check_scheme(f"{scheme}://bucket/key")
    assert not re.search(PATTERN, f"{scheme}://bucket/key")
    with pytest.raises(pydantic.ValidationError, match=re.escape(sentence)):
        from_plain(Part, {"baseModel": f"{scheme}://bucket/key"})


def test_what_is_no_text_is_left_to_others():
    assert check_scheme(3) == 3


@pytest.mark.parametrize(("given", "taken"), [(3.0, 3), (3.5, 3.5), (3, 3), ("3.0", "3.0"), (True, True), (None, None), (-0.0, 0)])
def test_a_whole_number_is_one_however_it_is_written(given, taken):
    assert whole(given) == taken
    assert type(whole(given)) is type(taken)


def test_plain_data_is_read_as_an_api_server_reads_it():
    part = from_plain(Part, {"steps": 3.0, "rate": 2, "names": ["a"]})
    assert (part.steps, part.rate, part.names) == (3, 2.0, ("a",))
    assert type(part.steps) is int


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 3.5}, {"steps": "3"}, {"steps": True}, {"rate": "1"}, {"names": [1]}, {"names": [""]}, {"base_model": "b"}, {"more": 1}],
)
def test_what_is_of_another_kind_is_refused(wrong):
    with pytest.raises(pydantic.ValidationError):
        from_plain(Part, wrong)
