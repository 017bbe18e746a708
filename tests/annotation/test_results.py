"""What is written: probabilities, human labels beside predictions, and counts that add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_steerlm.annotation.annotate import annotate
from nemo_steerlm.annotation.results import ResultWriter, labelled, require_confidence
from nemo_steerlm.client.labelling import TurnLabel
from nemo_steerlm.core.conversation import Conversation
from nemo_steerlm.core.errors import ConfigError, DataError, TryAgainError, Where
from tests.annotation.labelling_server import Handler, model_info
from tests.annotation.running import options, served, text, write_conversations


def test_confidence_is_written_and_filters_when_asked_for(source: Path, tmp_path: Path) -> None:
    class Unsure(Handler):
        def reply(self, body, answer):
            found = answer(body)
            for record, result in zip(body["conversations"], found["results"], strict=True):
                if "answer 5." in record["conversations"][1]["value"]:
                    result["turns"][0]["attributes"]["coherence"]["probabilities"] = {str(v): 0.2 for v in range(5)}
            return 200, found

    output = tmp_path / "out.jsonl"
    with served(Unsure) as url:
        summary = annotate(source, output, [url], options(confidence=True, min_confidence=0.5))
    assert (summary.labelled, summary.unsure, summary.failed, summary.complete) == (39, 1, 0, True)
    turn = json.loads(text(output).splitlines()[0])["conversations"][1]
    assert list(turn) == ["value", "from", "label", "gt_label", "label_source", "confidence"]
    assert turn["confidence"] == dict.fromkeys(("helpfulness", "correctness", "coherence", "complexity", "verbosity"), 0.6)
    [reject] = [json.loads(line) for line in text(Path(f"{output}.rejected.jsonl")).splitlines()]
    assert (reject["line"], reject["reason"]) == (6, "coherence is below --min-confidence")
    with served(Handler, scores=False) as url, pytest.raises(ConfigError, match="no probabilities"):
        annotate(source, tmp_path / "other.jsonl", [url], options(min_confidence=0.5))


def test_the_languages_confidence_is_the_languages(tmp_path: Path) -> None:
    source, output = write_conversations(tmp_path / "in.jsonl", 1), tmp_path / "out.jsonl"
    with served(Handler, info=model_info(schema="oasst")) as url:
        assert annotate(source, output, [url], options(confidence=True)).complete
    confidence = json.loads(text(output))["conversations"][1]["confidence"]
    assert (confidence["lang"], confidence["quality"], len(confidence)) == (0.9, 0.6, 13)


def test_a_label_without_probabilities_is_not_written_with_half_of_them(tmp_path: Path) -> None:
    class WithoutLanguages(Handler):
        def reply(self, body, answer):
            found = answer(body)
            found["results"][0]["turns"][0]["lang"] = {"value": "en", "probabilities": {"de": 0.9}}
            return 200, found

    source, output = write_conversations(tmp_path / "in.jsonl", 1), tmp_path / "out.jsonl"
    with served(WithoutLanguages, info=model_info(schema="oasst")) as url:
        assert annotate(source, output, [url], options(confidence=True)).complete
    assert "confidence" not in json.loads(text(output))["conversations"][1]


def test_a_value_may_be_just_as_probable_as_is_wanted() -> None:
    labels = [TurnLabel(index=1, label="quality:1"), TurnLabel(index=3, label="quality:1", confidence={"quality": 0.5, "lang": 0.25})]
    require_confidence(labels, 0.25, Where())
    with pytest.raises(DataError) as error:
        require_confidence(labels, 0.26, Where(file="in", line=2))
    wanted = "in:2: conversations[3].label: lang is below --min-confidence; probability 0.250, wanted 0.26"
    assert str(error.value) == wanted


@pytest.mark.parametrize("total", [2, 4])
def test_a_result_that_is_not_what_came_in_is_no_result(tmp_path: Path, total: int) -> None:
    turn = {"from": "A", "value": "x", "label": "quality:2", "label_source": "m"}
    question = {"from": "B", "value": "y", "label": "quality:1"}
    record = Conversation.from_record({"conversations": [question, turn], "system": "", "mask": "B"})
    with ResultWriter(tmp_path / "out.jsonl") as writer:
        writer.write(record)
        writer.reject(DataError("broken"), b"{}")
        writer.reject(DataError("below"), b"{}", unsure=True)
    with pytest.raises(TryAgainError, match=f"1 records and 2 rejects of {total}; run again"):
        writer.summary(model="m", total=total, resumed=0, seconds=0.0)
    summary = writer.summary(model="m", total=3, resumed=0, seconds=0.0)
    assert (summary.labelled, summary.failed, summary.unsure, summary.turns) == (1, 1, 1, 1)


def test_a_second_annotation_never_takes_a_prediction_for_a_human_label() -> None:
    def said(*turns: dict[str, object]) -> dict[str, object]:
        return {"conversations": list(turns), "system": "", "mask": "A", "extra": [1]}

    record = said({"from": "A", "label": "quality:1", "value": "x"})
    once = labelled(Conversation.from_record(record), [TurnLabel(index=0, label="quality:2")], "m1")
    twice = labelled(once, [TurnLabel(index=0, label="quality:3", confidence={"quality": 0.5})], "m2", confidence=True)
    expected = {"from": "A", "label": "quality:3", "value": "x", "gt_label": "quality:1", "label_source": "m2"}
    assert twice.to_record() == said({**expected, "confidence": {"quality": 0.5}})
    assert list(twice.to_record()["conversations"][0]) == [*expected, "confidence"], "keys stay where they stood"
    assert record["conversations"][0]["label"] == "quality:1", "the input is not changed"  # type: ignore[index]
    for read in (TurnLabel(index=0, label="quality:4"), TurnLabel(index=0, label="quality:4", confidence={"quality": 0.9})):
        again = labelled(twice, [read], "m3").to_record()["conversations"][0]
        assert again == {**expected, "label": "quality:4", "label_source": "m3"}, "probabilities of an earlier label, or unasked ones"
    unlabelled = labelled(Conversation.from_record(said({"from": "A", "value": "x"})), [TurnLabel(index=0, label="quality:2")], "m1")
    assert labelled(unlabelled, [TurnLabel(index=0, label="quality:3")], "m2").turns[0].gt_label is None
