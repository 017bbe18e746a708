"""The annotator against real HTTP servers: what it asks for, what it writes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from nemo_steerlm.annotation.annotate import annotate
from nemo_steerlm.client.chat import Chat
from nemo_steerlm.core.errors import ConfigError, DataError, UsageError
from nemo_steerlm.evaluation.agreement import agreement_of
from tests.annotation.labelling_server import Handler, Poisoned, model_info
from tests.annotation.running import QUICK, expected, options, served, text, write_conversations


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("scores", [True, False])
def test_each_record_is_labelled_in_order_and_nothing_else_changes(source: Path, tmp_path: Path, scores: bool, batch: int) -> None:
    output, seen = tmp_path / "out.jsonl", []
    with served(Handler, scores=scores) as url:
        summary = annotate(source, output, [url], options(batch_size=batch), progress=lambda done, total: seen.append((done, total)))
    assert text(output) == expected(source)
    assert (summary.total, summary.labelled, summary.failed, summary.turns, summary.rejects) == (40, 40, 0, 40, None)
    assert agreement_of(output, summary.schema)["helpfulness"]["turns"] == 40
    assert seen[0] == (0, 40)
    assert seen[-1] == (40, 40)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"], "the journal goes when all is done"


def test_a_server_that_announces_nothing_is_spoken_to_as_upstream_does(tmp_path: Path) -> None:
    source = write_conversations(tmp_path / "in.jsonl", 8)
    output, prompts = tmp_path / "out.jsonl", []

    class Upstream(Handler):
        def reply(self, body, answer):
            prompts.extend(body["sentences"])
            assert body["tokens_to_generate"] == 1
            assert body["end_strings"] == ["<extra_id_1>", "<|endoftext|>"]
            return 200, answer(body)

    with served(Upstream, info=None, scores=False) as url:
        annotate(source, output, [url], options(turns="all"))
    assert text(output) == expected(source, schema="oasst", fingerprint="unknown", every=True)
    assert len(prompts) == 8 * 2 * 13
    assert all(prompt.startswith("<extra_id_0>System\nBe kind.\n\n<extra_id_1>User\n") for prompt in prompts)


@pytest.mark.parametrize(
    ("labelled", "chosen", "every"),
    [(("Assistant",), {}, False), (("Assistant", "User"), {}, True), (("Assistant", "User"), {"turns": "unmasked"}, False)],
)
def test_the_turns_that_had_labels_when_the_model_was_trained_are_labelled(tmp_path: Path, labelled, chosen, every) -> None:
    """Also by upstream's flags, whose own default is all turns."""
    source = write_conversations(tmp_path / "in.jsonl", 8)
    info = msgspec.structs.replace(model_info(), labelled=labelled)
    with served(Handler, info=info, scores=True) as url:
        annotate(source, tmp_path / "ours.jsonl", [url], options(**chosen))
        annotate(source, tmp_path / "upstream.jsonl", [url], options(turns_unknown="all", **chosen))
    assert text(tmp_path / "ours.jsonl") == text(tmp_path / "upstream.jsonl") == expected(source, every=every)


def test_two_models_never_label_one_file(source: Path, tmp_path: Path) -> None:
    with (
        served(Handler) as one,
        served(Handler, info=model_info("nemo-annotate")) as other,
        pytest.raises(ConfigError, match="one file is labelled by one model"),
    ):
        annotate(source, tmp_path / "out.jsonl", [one, other], options())
    assert not (tmp_path / "out.jsonl").exists()


def test_of_a_server_with_both_kinds_of_model_the_one_that_reads_is_asked(source: Path, tmp_path: Path) -> None:
    class Both(Handler):
        def answer(self, status, body, headers=None):
            if self.command == "GET":
                value = body["data"][0]
                steer = {**value["metadata"]["steerlm"], "kind": "steer", "fingerprint": "sha256:writer"}
                body["data"].insert(0, {"id": "writer", "metadata": {"steerlm": steer, "scores": False}})
            super().answer(status, body, headers)

    with served(Both) as url, Chat(url, {}) as chat:
        assert annotate(source, tmp_path / "out.jsonl", [url], options()).model == model_info().fingerprint
        assert chat.info is not None
        assert chat.info.fingerprint == "sha256:writer"
    assert text(tmp_path / "out.jsonl") == expected(source)


def test_a_changed_input_is_refused_and_an_appended_one_goes_on(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with served(Poisoned, status=400) as url:
        annotate(source, output, [url], options())
    lines = text(source).splitlines(keepends=True)
    with served(Handler) as url:
        source.write_text("".join([lines[1], lines[0], *lines[2:]]), encoding="utf-8")
        with pytest.raises(DataError, match=r"in\.jsonl:1: the record differs from the one that .*give --restart"):
            annotate(source, output, [url], options())
        source.write_text("".join(lines[:5]), encoding="utf-8")
        with pytest.raises(DataError, match="fewer records"):
            annotate(source, output, [url], options())
        write_conversations(source, 50)
        assert annotate(source, output, [url], options()).resumed == 38
        assert text(output) == expected(source)


def test_a_broken_record_stops_the_run_before_any_server_is_asked_or_is_set_aside(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    good = expected(source)
    lines = text(source).splitlines(keepends=True)
    source.write_text("".join([*lines[:2], '{"conversations": [{"from": "User"}]}\n', *lines[2:]]), encoding="utf-8")
    with pytest.raises(DataError, match=r"in\.jsonl:3: conversations\[0\]\.value: missing key"):
        annotate(source, output, ["http://127.0.0.1:9"], options())
    assert not output.exists()
    with served(Handler) as url:
        summary = annotate(source, output, [url], options(on_error="skip"))
    assert (summary.labelled, summary.failed) == (40, 1)
    assert text(output) == good


def test_the_key_is_sent_and_its_absence_is_a_sentence(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Locked(Handler):
        def do_GET(self) -> None:  # noqa: N802 - the library's name
            if self.headers["authorization"] == "Bearer sesame":
                super().do_GET()
            else:
                self.answer(401, {"error": {"message": "no"}})

    with served(Locked) as url:
        monkeypatch.delenv("STEERLM_API_KEY", raising=False)
        with pytest.raises(ConfigError, match=r"refuses this client .*STEERLM_API_KEY"):
            annotate(source, tmp_path / "out.jsonl", [url], options())
        monkeypatch.setenv("STEERLM_API_KEY", "sesame")
        assert annotate(source, tmp_path / "out.jsonl", [url], options()).complete


@pytest.mark.parametrize("fields", [{"batch_size": 0}, {"batch_size": 129}, {"max_in_flight": 0}, {"min_confidence": 1.5}])
def test_impossible_options_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        options(**fields)


@pytest.mark.parametrize("servers", [[], ["localhost:1424"]])
def test_servers_must_be_named_by_url(source: Path, tmp_path: Path, servers: list[str]) -> None:
    with pytest.raises(UsageError, match="http://HOST:PORT"):
        annotate(source, tmp_path / "out.jsonl", servers, options(policy=QUICK))
