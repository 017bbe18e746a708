"""The annotator against real HTTP servers that fail, hang, refuse or answer wrongly."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path

import pytest

from nemo_steerlm.annotation.annotate import annotate
from nemo_steerlm.client.retry import RetryPolicy
from nemo_steerlm.core.errors import UnavailableError
from tests.annotation.labelling_server import Handler, Poisoned, model_info
from tests.annotation.running import expected, options, served, text, write_conversations


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
