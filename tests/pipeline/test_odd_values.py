"""A value of the wrong kind is refused by ``steerlm validate``, by the API and by the cluster's definition, or taken by all of them.

Null is left out: the API takes it as not given, as OpenAI's does, and an API server of Kubernetes puts the default in its place.
"""

from __future__ import annotations

import json

import jsonschema
import pydantic
import pytest
import yaml

from nemo_steerlm.core.attributes import preset
from nemo_steerlm.core.errors import DataError, UsageError
from nemo_steerlm.pipeline import crd
from nemo_steerlm.pipeline.manifest import load
from nemo_steerlm.serving.schemas import ChatBody
from tests.pipeline.manifests import with_field

FIELDS = {
    "integer": ("spec.evaluate.samplesPerLevel", "max_tokens"),
    "level": ("spec.evaluate.base.quality", "attributes.quality"),
    "number": ("spec.evaluate.temperature", "temperature"),
    "boolean": ("spec.serve.page", "stream"),
    "string": ("spec.model.base", "model"),
}
"""A field of the manifest and one of a request, by kind."""

VALUES = {
    "true": True,
    "yes": True,
    "off": False,
    "'yes'": "yes",
    "'true'": "true",
    "4": 4,
    "'4'": "4",
    "4.0": 4.0,
    "4e0": 4.0,
    "0x4": 4,
    "3.5": 3.5,
    "'3.5'": "3.5",
    "x": "x",
    "1:30": "1:30",
    "2026-11-30": "2026-11-30",
    "[4]": [4],
    "{a: 4}": {"a": 4},
}
"""YAML's text, and the JSON that kubectl makes of it and clients of the API send."""
TAKEN = {
    "integer": {"4", "4.0", "4e0", "0x4"},
    "level": {"4", "4.0", "4e0", "0x4"},
    "number": {"4", "4.0", "4e0", "0x4", "3.5"},
    "boolean": {"true", "yes", "off"},
    "string": {"'yes'", "'true'", "'4'", "'3.5'", "x", "1:30", "2026-11-30"},
}


def by_manifest(field, text, folder):
    path = folder / "m.yaml"
    path.write_text(yaml.safe_dump(with_field(field, "VALUE")).replace("VALUE", text))
    try:
        value = load(path)
    except UsageError as error:
        assert f"m.yaml:{1 + path.read_text()[: path.read_text().index(text)].count(chr(10))}: {field}" in str(error)
        return None
    for name in field.split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, pydantic.alias_generators.to_snake(name))
    return value


def by_request(field, value):
    name, _, attribute = field.partition(".")
    sent = json.dumps({"messages": [{"role": "user", "content": "?"}], name: {attribute: value} if attribute else value})
    try:
        found = getattr(ChatBody.model_validate_json(sent), name)
        return preset("oasst").label(found).values[attribute] if attribute else found
    except (pydantic.ValidationError, DataError):
        return None


# An API server's schemas are OpenAPI 3.0's, whose bounds are draft 4's, but 4.0 is a whole number to it (kube-openapi's type.go).
WHOLE = jsonschema.Draft6Validator.TYPE_CHECKER
Validator = jsonschema.validators.extend(jsonschema.Draft4Validator, type_checker=WHOLE)
SCHEMA = crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def by_definition(field, value):
    resource = with_field(field, value)
    if not Validator(SCHEMA).is_valid(resource):
        return None
    return value


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("text", VALUES)
def test_an_odd_value_means_the_same_everywhere(kind, text, tmp_path):
    field, parameter = FIELDS[kind]
    found = [by_manifest(field, text, tmp_path), by_request(parameter, VALUES[text]), by_definition(field, VALUES[text])]
    assert found == [VALUES[text] if text in TAKEN[kind] else None] * 3
    assert {type(value) for value in found[:2] if kind in ("integer", "level")} <= {int, type(None)}


@pytest.mark.parametrize("text", [".nan", ".inf", "010", "1_000", "y"])
@pytest.mark.parametrize("kind", FIELDS)
def test_what_json_cannot_say_or_readers_of_yaml_disagree_about_is_refused(kind, text, tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(with_field(FIELDS[kind][0], "VALUE")).replace("VALUE", text))
    with pytest.raises(UsageError, match=r"m\.yaml:\d+: "):
        load(path)
