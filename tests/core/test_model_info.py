"""``steerlm.json``: read back as it was written, refused by name, and how long what it describes may be asked."""

from __future__ import annotations

import json

import msgspec
import pytest

from nemo_steerlm.core.attributes import Attribute, AttributeSchema, preset
from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.core.label_support import LabelSupport
from nemo_steerlm.core.model_info import BASE_LENGTH, ModelInfo
from nemo_steerlm.core.template import ChatTokens

PLAIN = ModelInfo(kind="steer", attributes=preset("helpsteer"))
FULL = ModelInfo(
    kind="value",
    attributes=AttributeSchema(attributes=(Attribute(name="é", low=-1, high=2, description="d"),), languages=("de", "en")),
    tokens=ChatTokens(turn_start="<t>"),
    layout="nemo-annotate",
    system="Be kind.",
    user="U",
    assistant="A",
    support=LabelSupport.count(preset("helpsteer"), ["helpfulness:1"]),
    fingerprint="sha256:1",
    max_seq_length=128,
    labelled=("A", "U"),
    chat_template=3,
)


@pytest.mark.parametrize("info", [PLAIN, FULL], ids=["plain", "full"])
def test_a_description_is_read_back(info, tmp_path):
    info.save(tmp_path)
    assert ModelInfo.load(tmp_path) == info
    assert ModelInfo.from_dict(json.loads((tmp_path / "steerlm.json").read_text(encoding="utf-8"))) == info
    assert ModelInfo.from_dict(info.to_dict()) == info
    assert (tmp_path / "steerlm.json").read_text(encoding="utf-8").endswith("\n}\n")


def test_what_nobody_wrote_down_is_not_there(tmp_path):
    PLAIN.save(tmp_path)
    assert {"support", "max_seq_length", "labelled", "chat_template"}.isdisjoint(json.loads((tmp_path / "steerlm.json").read_text()))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "{folder}: no steerlm.json; is this a model that nemo_steerlm exported?"),
        ("{", "{folder}/steerlm.json: Input data was truncated"),
        ('{"kind": "judge"}', "{folder}/steerlm.json: Invalid enum value 'judge'"),
        (json.dumps({**PLAIN.to_dict(), "more": 1}), "{folder}/steerlm.json: Object contains unknown field `more`"),
    ],
)
def test_what_is_no_description_is_named_with_its_file(content, sentence, tmp_path):
    if content is not None:
        (tmp_path / "steerlm.json").write_text(content)
    with pytest.raises(UsageError) as error:
        ModelInfo.load(tmp_path)
    assert str(error.value).startswith(sentence.format(folder=tmp_path))


def test_a_description_in_an_archive_names_the_archive():
    with pytest.raises(UsageError, match=r"^model\.nemo: "):
        ModelInfo.from_dict({}, "model.nemo")
    with pytest.raises(UsageError, match=r"^steerlm\.json: "):
        ModelInfo.from_dict({})


@pytest.mark.parametrize(
    ("taught", "wanted", "served"),
    [
        (msgspec.UNSET, None, 512),
        (128, None, 128),
        (512, None, 512),
        (1024, None, 512),
        (128, BASE_LENGTH, 512),
        (128, 512, 512),
        (128, 200, 200),
        (128, 64, 64),
    ],
)
def test_a_request_is_as_long_as_was_taught_unless_somebody_says_otherwise(taught, wanted, served):
    assert msgspec.structs.replace(PLAIN, max_seq_length=taught).served_length(512, wanted) == served


def test_no_request_is_longer_than_the_model_has_positions():
    with pytest.raises(UsageError, match=r"--max-model-len 513: this model has positions for 512 tokens"):
        PLAIN.served_length(512, 513)


def test_its_prompts_have_its_own_tokens_and_layout():
    template = FULL.template()
    assert (template.tokens.turn_start, template.layout) == ("<t>", "nemo-annotate")
