"""The annotator against real HTTP servers, healthy and sick."""

from __future__ import annotations

import json
import random
import subprocess
import threading
from pathlib import Path

import msgspec
import pytest

from nemo_steerlm.annotation import shards
from nemo_steerlm.annotation.annotate import annotate
from nemo_steerlm.annotation.results import ResultWriter, labelled
from nemo_steerlm.client.chat import Chat
from nemo_steerlm.client.retry import RetryPolicy
from nemo_steerlm.core.conversation import Conversation
from nemo_steerlm.core.errors import ConfigError, DataError, TryAgainError, UnavailableError, UsageError
from nemo_steerlm.data.shard import Shard
from nemo_steerlm.evaluation.agreement import agreement_of
from tests.annotation.labelling_server import Handler, model_info
from tests.annotation.running import CLIENT_ENV, QUICK, client_command, expected, options, served, write_conversations


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_conversations(tmp_path / "in.jsonl", 40)


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


class Faulty(Handler):
    """Spoils a seeded share of its answers, each in one of the ways that servers and networks have."""

    chance = random.Random(5)
    share = 0.4
    lock = threading.Lock()

    def reply(self, body, answer):
        with self.lock:
            fault = self.chance.randrange(8) if self.chance.random() < self.share else None
        good = json.dumps(answer(body)).encode()
        if fault in (0, 1):
            # Cut before the answer, or in the middle of it.
            if fault:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(good), good[: len(good) // 2]))
            self.close_connection = True
            raise ConnectionAbortedError
        spoiled = {
            2: (500, b"oops"),
            3: (200, b"<html>busy</html>"),
            4: (200, good[: len(good) // 2]),
            5: (200, good[:40] + b"\xff" + good[41:]),
            6: (429, b"{}"),
            7: (200, good.replace(b'"value": ', b'"value": 9') if self.scores else b'{"sentences": []}'),
        }
        return (200, good) if fault is None else spoiled[fault]


@pytest.mark.parametrize("scores", [True, False])
def test_no_spoiled_answer_gets_through_or_costs_a_record(source: Path, tmp_path: Path, scores: bool) -> None:
    output = tmp_path / "out.jsonl"
    with served(Faulty, scores=scores) as one, served(Faulty, scores=scores) as other:
        policy = RetryPolicy(attempts=12, timeout=5, patience=20, wait_initial=0.002, wait_max=0.02)
        summary = annotate(source, output, [one, other], options(policy=policy))
    assert summary.complete
    assert text(output) == expected(source)


class Sick(Handler):
    """Answers everything in one bad way."""

    bad: tuple[int, object] = (500, {"message": "Internal Server Error"})

    def reply(self, body, answer):
        return self.bad


class Hangs(Handler):
    released = threading.Event()

    def reply(self, body, answer):
        self.released.wait(30)
        return 503, {}


@pytest.mark.parametrize(
    "bad", [(500, {}), (200, b"not JSON"), (200, {"model": model_info().fingerprint, "results": []}), (429, {}), (404, {})]
)
def test_a_sick_server_beside_a_healthy_one_costs_nothing(source: Path, tmp_path: Path, bad: tuple[int, object]) -> None:
    with served(Sick, bad=bad) as sick, served(Handler) as healthy:
        summary = annotate(source, tmp_path / "out.jsonl", [sick, healthy, "http://127.0.0.1:9"], options())
    assert summary.complete
    assert text(tmp_path / "out.jsonl") == expected(source)


def test_a_server_that_hangs_is_left_for_another(source: Path, tmp_path: Path) -> None:
    with served(Hangs) as hanging, served(Handler) as healthy:
        policy = RetryPolicy(attempts=6, timeout=0.3, patience=20, wait_initial=0.002, wait_max=0.05)
        assert annotate(source, tmp_path / "out.jsonl", [hanging, healthy], options(policy=policy)).complete
        Hangs.released.set()
    assert text(tmp_path / "out.jsonl") == expected(source)


class Poisoned(Handler):
    """Cannot answer requests with question 3 or 17 in them."""

    status = 500

    def reply(self, body, answer):
        said = json.dumps(body)
        poisoned = "answer 3." in said or "answer 17." in said
        return (self.status, {"error": {"code": "data", "message": "too long"}}) if poisoned else (200, answer(body))


@pytest.mark.parametrize(("status", "batch"), [(500, 1), (400, 1), (400, 8)])
def test_what_cannot_be_labelled_is_rejected_alone_with_its_reason(source: Path, tmp_path: Path, status: int, batch: int) -> None:
    output = tmp_path / "out.jsonl"
    with served(Poisoned, status=status) as url:
        summary = annotate(source, output, [url], options(batch_size=batch))
    assert (summary.labelled, summary.failed, summary.complete) == (38, 2, False)
    rejects = [json.loads(line) for line in text(Path(f"{output}.rejected.jsonl")).splitlines()]
    assert [(r["line"], r["reason"]) for r in rejects] == [(4, f"HTTP {status}: too long"), (18, f"HTTP {status}: too long")]
    wanted = expected(source).splitlines()
    assert text(output).splitlines() == [line for i, line in enumerate(wanted) if i not in (3, 17)]
    # Run again against a server that can: only those two are asked for, and nothing is missing.
    asked = []

    class Counting(Handler):
        def reply(self, body, answer):
            asked.append(len(body["conversations"]))
            return 200, answer(body)

    with served(Counting) as url:
        summary = annotate(source, output, [url], options())
    assert summary.complete
    assert summary.resumed == 38
    assert sum(asked) == 2
    assert text(output) == expected(source)
    assert not Path(f"{output}.rejected.jsonl").exists()


@pytest.mark.parametrize("refusal", [429, 500])
def test_retry_after_is_obeyed(source: Path, tmp_path: Path, refusal: int) -> None:
    times: list[tuple[int, float]] = []

    class Limited(Handler):
        def reply(self, body, answer):
            import time

            first = not times
            times.append((refusal if first else 200, time.monotonic()))
            return 200, answer(body)

        def answer(self, status, body, headers=None):
            if self.command == "POST" and len(times) == 1:
                return super().answer(refusal, {}, {"Retry-After": "1"})
            return super().answer(status, body, headers)

    with served(Limited) as url:
        assert annotate(write_conversations(tmp_path / "one.jsonl", 1), tmp_path / "out.jsonl", [url], options()).complete
    assert len(times) == 2
    assert times[1][1] - times[0][1] >= 0.95


def test_concurrency_adapts_to_what_a_server_takes(source: Path, tmp_path: Path) -> None:
    class Narrow(Handler):
        at_once = most = refused = 0
        lock = threading.Lock()

        def reply(self, body, answer):
            kind = type(self)
            with self.lock:
                kind.at_once += 1
                kind.most = max(kind.most, kind.at_once)
                over = kind.at_once > 2
                kind.refused += over
            try:
                return (429, {}) if over else (200, answer(body))
            finally:
                with self.lock:
                    kind.at_once -= 1

    seen: list[type[Narrow]] = []

    class Noted(Narrow):
        def setup(self) -> None:
            seen.append(type(self))
            super().setup()

    with served(Noted) as url:
        assert annotate(source, tmp_path / "out.jsonl", [url], options(max_in_flight=64)).complete
    assert text(tmp_path / "out.jsonl") == expected(source)
    assert seen[0].most < 16, "40 records are ready to go, but refusals keep the number low"


def test_no_server_ends_the_run_without_output_and_the_labels_are_kept(source: Path, tmp_path: Path) -> None:
    class Dies(Handler):
        left = 10

        def reply(self, body, answer):
            kind = type(self)
            kind.left -= 1
            return (200, answer(body)) if kind.left >= 0 else (503, {})

    output = tmp_path / "out.jsonl"
    policy = RetryPolicy(attempts=3, timeout=5, patience=0.3, wait_initial=0.002, wait_max=0.05)
    with served(Dies) as url, pytest.raises(UnavailableError, match=r"no server gave an answer for 0\.3 s .*HTTP 503"):
        annotate(source, output, [url], options(policy=policy))
    assert not output.exists()
    with served(Handler) as url:
        summary = annotate(source, output, [url], options())
    assert summary.resumed == 10
    assert text(output) == expected(source)


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


def test_an_answer_of_another_model_is_not_taken(source: Path, tmp_path: Path) -> None:
    class Swapped(Handler):
        def reply(self, body, answer):
            return 200, answer(body) | {"model": "sha256:other"}

    policy = RetryPolicy(attempts=3, timeout=5, patience=0.2, wait_initial=0.002, wait_max=0.05)
    with served(Swapped) as url, pytest.raises(UnavailableError, match="answered by model 'sha256:other'"):
        annotate(source, tmp_path / "out.jsonl", [url], options(policy=policy))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda turn: turn.update(label=turn["label"].replace("coherence:", "coherence:1")), "do not agree"),
        (lambda turn: turn["attributes"].pop("coherence"), "do not agree"),
        (lambda turn: turn["attributes"]["coherence"].update(value=7), "wrong value"),
        (lambda turn: turn.update(index=0), "labels of turns"),
    ],
)
def test_an_answer_that_contradicts_itself_is_not_taken(tmp_path: Path, change, reason: str) -> None:
    class Contradicts(Handler):
        def reply(self, body, answer):
            found = answer(body)
            change(found["results"][0]["turns"][0])
            return 200, found

    output = tmp_path / "out.jsonl"
    with served(Contradicts) as url:
        summary = annotate(write_conversations(tmp_path / "in.jsonl", 1), output, [url], options())
    assert (summary.labelled, summary.failed) == (0, 1)
    assert reason in json.loads(text(Path(f"{output}.rejected.jsonl")))["reason"]


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


def test_shards_merge_to_what_one_run_gives(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with served(Handler) as url:
        for index in (2, 0, 1):
            annotate(source, output, [url], options(shard=Shard(index=index, count=3)))
            if index == 0:
                with pytest.raises(UsageError, match=r"out\.jsonl\.shard-1-of-3 is missing"):
                    shards.merge(source, output, 3)
    summary = shards.merge(source, output, 3)
    assert text(output) == expected(source)
    assert (summary.total, summary.labelled, summary.model) == (40, 40, model_info().fingerprint)
    output.unlink()
    part = tmp_path / "out.jsonl.shard-1-of-3"
    part.write_text("".join(text(part).splitlines(keepends=True)[1:]), encoding="utf-8")
    with pytest.raises(DataError, match=r"in\.jsonl:2: the next record of .*shard-1-of-3 is another"):
        shards.merge(source, output, 3)
    assert not output.exists()


def test_the_command_labels_in_shards_and_merges_them(source: Path, tmp_path: Path) -> None:
    output, asked = tmp_path / "out.jsonl", ("--confidence", "--min-confidence", "0.5")
    with served(Handler, info=model_info(schema="oasst")) as url:
        for shard in ("0/2", "1/2"):
            done = subprocess.run(client_command(source, output, "--server", url, "--shard", shard, *asked), env=CLIENT_ENV, check=False)
            assert done.returncode == 0
    figures = ("--summary", tmp_path / "s.json", "--confusion", tmp_path / "c.svg")
    done = subprocess.run(
        client_command(source, output, "--merge", "2", *figures), capture_output=True, text=True, env=CLIENT_ENV, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"40 of 40 records labelled in {output}" in done.stdout
    summary = json.loads(text(tmp_path / "s.json"))
    assert set(summary["agreement"]["helpfulness"]) == {"turns", "accuracy", "mae", "spearman", "low", "confusion"}
    assert "helpfulness" in done.stdout
    assert "<svg" in text(tmp_path / "c.svg")
    assert json.loads(text(output).splitlines()[0])["conversations"][1]["confidence"]["quality"] == 0.6
    wrong = subprocess.run(client_command(source, output, "--shard", "2/2", "--server", "x"), capture_output=True, text=True, check=False)
    assert (wrong.returncode, "count from 0" in wrong.stderr) == (2, True)


def test_rejects_of_shards_are_merged_too(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with served(Poisoned, status=400) as url:
        for index in (0, 1):
            annotate(source, output, [url], options(shard=Shard(index=index, count=2)))
    summary = shards.merge(source, output, 2)
    assert (summary.labelled, summary.failed) == (38, 2)
    assert [json.loads(line)["line"] for line in text(Path(f"{output}.rejected.jsonl")).splitlines()] == [4, 18]


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


@pytest.mark.parametrize("total", [2, 4])
def test_a_result_that_is_not_what_came_in_is_no_result(tmp_path: Path, total: int) -> None:
    turn = {"from": "A", "value": "x", "label": "quality:2", "label_source": "m"}
    record = Conversation.from_record({"conversations": [turn], "system": "", "mask": "A"})
    with ResultWriter(tmp_path / "out.jsonl") as writer:
        writer.write(record)
        writer.reject(DataError("broken"), b"{}")
        writer.reject(DataError("below"), b"{}", unsure=True)
    with pytest.raises(TryAgainError, match=f"1 records and 2 rejects of {total}; run again"):
        writer.summary(model="m", total=total, resumed=0, seconds=0.0)
    summary = writer.summary(model="m", total=3, resumed=0, seconds=0.0)
    assert (summary.labelled, summary.failed, summary.unsure, summary.turns) == (1, 1, 1, 1)


def test_a_second_annotation_never_takes_a_prediction_for_a_human_label() -> None:
    from nemo_steerlm.client.labelling import TurnLabel

    def said(*turns: dict[str, object]) -> dict[str, object]:
        return {"conversations": list(turns), "system": "", "mask": "A", "extra": [1]}

    record = said({"from": "A", "label": "quality:1", "value": "x"})
    once = labelled(Conversation.from_record(record), [TurnLabel(index=0, label="quality:2")], "m1")
    twice = labelled(once, [TurnLabel(index=0, label="quality:3", confidence={"quality": 0.5})], "m2", confidence=True)
    expected = {"from": "A", "label": "quality:3", "value": "x", "gt_label": "quality:1", "label_source": "m2"}
    assert twice.to_record() == said({**expected, "confidence": {"quality": 0.5}})
    assert list(twice.to_record()["conversations"][0]) == [*expected, "confidence"], "keys stay where they stood"
    assert record["conversations"][0]["label"] == "quality:1", "the input is not changed"  # type: ignore[index]
    again = labelled(twice, [TurnLabel(index=0, label="quality:4")], "m3").to_record()["conversations"][0]
    assert again == {**expected, "label": "quality:4", "label_source": "m3"}, "the probabilities of an earlier label go with it"
    unlabelled = labelled(Conversation.from_record(said({"from": "A", "value": "x"})), [TurnLabel(index=0, label="quality:2")], "m1")
    assert labelled(unlabelled, [TurnLabel(index=0, label="quality:3")], "m2").turns[0].gt_label is None


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
