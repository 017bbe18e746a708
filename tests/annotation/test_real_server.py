"""The clients against ``steerlm serve`` with real (tiny) models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_steerlm.annotation.annotate import annotate
from nemo_steerlm.client.announcement import Announcement
from nemo_steerlm.client.chat import Chat, get_answer
from nemo_steerlm.client.retry import RetryPolicy
from nemo_steerlm.core.errors import ConfigError, UnavailableError, UsageError
from tests.annotation.labelling_server import Handler
from tests.annotation.running import CLIENT_ENV, client_command, served, write_conversations
from tests.annotation.running import options as quick_options
from tests.serving.servers import Server
from tests.serving.tiny_models import SCHEMA

ROOT = Path(__file__).parents[2]
PATIENT = RetryPolicy(timeout=60, patience=60)


def test_scoring_and_upstreams_protocol_give_the_same_labels(value_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_conversations(tmp_path / "in.jsonl", 6, turns=4)
    scored, generated = tmp_path / "scored.jsonl", tmp_path / "generated.jsonl"
    summary = annotate(source, scored, [value_server.url], quick_options(policy=PATIENT))
    assert (summary.complete, summary.model, summary.turns) == (True, "untrained-value", 12)
    seen = Announcement.__struct_fields__

    # The same server, asked as one that has no scoring.
    from nemo_steerlm.client import servers

    read = servers.read_announcement

    async def without_scores(*arguments):
        found = await read(*arguments)
        return Announcement(**{field: getattr(found, field) for field in seen} | {"scores": False})

    monkeypatch.setattr(servers, "read_announcement", without_scores)
    summary = annotate(source, generated, [value_server.url], quick_options(policy=PATIENT))
    by_score, by_token = (
        [[turn.get("label") for turn in json.loads(line)["conversations"]] for line in path.read_text(encoding="utf-8").splitlines()]
        for path in (scored, generated)
    )
    # Greedy decoding may leave the schema's values, which a reject says; what it labels is what scoring says.
    rejected = Path(f"{generated}.rejected.jsonl")
    lost = {json.loads(line)["line"] for line in rejected.read_text(encoding="utf-8").splitlines()} if rejected.exists() else set()
    assert by_token == [labels for line, labels in enumerate(by_score, 1) if line not in lost]
    assert by_token, "some records are labelled both ways"


def test_the_command_labels_shows_progress_and_sums_up(value_server: Server, tmp_path: Path) -> None:
    source = write_conversations(tmp_path / "in.jsonl", 5)
    files = ("--summary", tmp_path / "s.json", "--confidence", "--progress", "json")
    command = client_command(source, tmp_path / "out.jsonl", "--server", value_server.url, *files)
    done = subprocess.run(command, capture_output=True, text=True, env=CLIENT_ENV, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert json.loads(lines[0]) == {"steerlm": "progress", "stage": "annotate", "done": 0, "total": 5}
    assert {"steerlm": "progress", "stage": "annotate", "done": 5, "total": 5} in [json.loads(x) for x in lines if x.startswith("{")]
    assert lines[-1] == f"5 of 5 records labelled in {tmp_path / 'out.jsonl'}"
    summary = json.loads((tmp_path / "s.json").read_text())
    assert (summary["labelled"], summary["model"]) == (5, "untrained-value")
    turn = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()[0])["conversations"][1]
    assert list(turn["confidence"]) == [*SCHEMA.names, "lang"]


@pytest.mark.parametrize("lang", [True, False])
def test_upstreams_flags_work_in_both_spellings(tmp_path: Path, lang: bool) -> None:
    source, output = write_conversations(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
    with served(Handler, info=None, scores=False) as url:
        port = url.rsplit(":", 1)[1]
        flags = [f"--input_file_name={source}", "--output_file_name", str(output), "--host=127.0.0.1", "--port_num", port]
        command = [sys.executable, ROOT / "examples" / "attribute_annotate.py", *flags, "--batch_size", "2", f"--process_lang={lang}"]
        done = subprocess.run(command, capture_output=True, text=True, env=CLIENT_ENV, check=False)
    assert done.returncode == 0, done.stderr
    for line in output.read_text(encoding="utf-8").splitlines():
        for turn in json.loads(line)["conversations"]:
            assert turn["label"].endswith(",lang:en") == lang
            assert turn["gt_label"] == "helpfulness:3", "user turns are labelled too, as upstream does"


def test_an_incomplete_output_is_never_called_a_success(tmp_path: Path) -> None:
    class Refuses(Handler):
        def reply(self, body, answer):
            bad = "answer 1." in json.dumps(body)
            return (400, {"error": {"message": "too long"}}) if bad else (200, answer(body))

    source, output = write_conversations(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
    with served(Refuses) as url:
        done = subprocess.run(client_command(source, output, "--server", url), capture_output=True, text=True, env=CLIENT_ENV, check=False)
    assert done.returncode == 1
    assert f"2 of 3 records labelled in {output}; rejects are in {output}.rejected.jsonl" in done.stdout
    assert "INCOMPLETE: 1 of 3 records are not labelled" in done.stderr


def test_a_question_is_answered_under_attributes(steer_server: Server) -> None:
    answer = get_answer("Where is the cat?", {"quality": 4, "lang": "en"}, steer_server.url, max_tokens=12)
    assert answer
    assert answer == get_answer("Where is the cat?", {"quality": 4, "lang": "en"}, steer_server.url, max_tokens=12)
    command = [sys.executable, ROOT / "examples" / "get_answer.py", "Where is the cat?", "--server", steer_server.url]
    flags = ["--set", "quality=4", "--set", "lang=en", "--max_tokens", "12"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, env=CLIENT_ENV, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, answer + "\n", "")
    with pytest.raises(UsageError, match=r"unknown attribute 'qualty'; this model has quality 0\.\.4"):
        get_answer("x", {"qualty": 4}, steer_server.url)


def test_a_value_model_does_not_answer_and_no_server_says_so(value_server: Server) -> None:
    with pytest.raises(ConfigError, match="answers need a steer model"):
        get_answer("x", {}, value_server.url)
    with pytest.raises(UnavailableError, match="no server gave an answer"):
        get_answer("x", {}, "http://127.0.0.1:9", patience=0.1)


def test_upstreams_server_gets_the_prompt_of_the_tutorial_repaired() -> None:
    prompts = []

    class Upstream(Handler):
        def work(self, path, answer):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            prompts.append(body["sentences"][0])
            assert body["greedy"] is True
            self.answer(200, {"sentences": [body["sentences"][0] + "Under the quality:4 hat.\n<extra_id_1>User\nmore"]})

    with served(Upstream, info=None, scores=False) as url, Chat(url, {"humor": 4, "lang": "en"}) as chat:
        assert list(chat.say("Where?")) == ["Under the quality:4 hat."]
        list(chat.say("Really?"))
    label = "quality:4,toxicity:0,humor:4,creativity:0,violence:0,helpfulness:4,not_appropriate:0,hate_speech:0,sexual_content:0,"
    label += "fails_task:0,political_content:0,moral_judgement:0,lang:en"
    system = "A chat between a curious user and an artificial intelligence assistant. "
    system += "The assistant gives helpful, detailed, and polite answers to the user's questions.\n\n"
    first = f"<extra_id_0>System\n{system}<extra_id_1>User\nWhere?\n<extra_id_1>Assistant\n<extra_id_2>{label}\n"
    second = f"{first}Under the quality:4 hat.\n<extra_id_1>User\nReally?\n<extra_id_1>Assistant\n<extra_id_2>{label}\n"
    assert prompts == [first, second]


def test_an_answer_that_breaks_off_is_an_error_and_not_part_of_the_history() -> None:
    from nemo_steerlm.core.errors import TryAgainError
    from nemo_steerlm.core.model_info import ModelInfo

    class Breaks(Handler):
        def do_POST(self) -> None:  # noqa: N802 - the library's name
            self.rfile.read(int(self.headers["content-length"]))
            self.answer(200, b'data: {"choices": [{"delta": {"content": "Half"}}]}\n\n')

    with served(Breaks, info=ModelInfo(kind="steer", attributes=SCHEMA)) as url, Chat(url, {}) as chat:
        pieces = []
        with pytest.raises(TryAgainError, match="broke off"):
            pieces.extend(chat.say("x"))
        assert chat.messages == []


def test_a_chat_starts_a_server_for_a_folder_and_stops_it(steer_folder: Path) -> None:
    said = "Once upon a time\n/set quality=0 humor=10\n/set quality=9\n/show\n/reset\n/nonsense\n/quit\nnever asked\n"
    command = [sys.executable, "-m", "nemo_steerlm.cli.main", "chat", steer_folder, "--set", "quality=4", "--max-tokens", "8"]
    before = _servers_of(steer_folder)
    done = subprocess.run(command, input=said, capture_output=True, text=True, env=CLIENT_ENV, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    state = "quality=0, toxicity=0, humor=10]"
    assert lines[-4:] == [f"[2 messages; {state}", f"[2 messages; {state}", f"[2 messages; {state}", f"[0 messages; {state}"]
    assert "label out of range: quality is 9; this model has quality 0..4, toxicity 0..4, humor 0..10" in done.stderr
    assert _servers_of(steer_folder) == before, "the server it started has ended"


def _servers_of(folder: Path) -> set[str]:
    """Process ids of servers of ``folder``; another test may have one running."""
    found = subprocess.run(["pgrep", "-f", f"serve {folder}"], capture_output=True, text=True, check=False)
    return set(found.stdout.split())


def test_a_chat_with_what_is_no_folder_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nemo_steerlm.cli.main", "chat", tmp_path / "absent"]
    done = subprocess.run(command, capture_output=True, text=True, env=CLIENT_ENV, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no such folder; give http://HOST:PORT" in done.stderr
