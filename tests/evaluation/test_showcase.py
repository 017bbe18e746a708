"""Answers that are shown at the end: as they came, not the best ones."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import msgspec

from nemo_steerlm.cli import run
from nemo_steerlm.evaluation.samples import Candidate, Sample
from nemo_steerlm.evaluation.showcase import answer_pairs
from nemo_steerlm.pipeline.evaluate_spec import EvaluateSpec


def sample(attribute, level, prompt, answer, model="train-steer"):
    return Sample(attribute=attribute, level=level, prompt=prompt, answer=answer, model=model)


SAMPLES = [
    sample(name, level, f"Q{n}", f"{name} {level} {n}")
    for name, levels in (("positivity", (0, 2, 4)), ("verbosity", (1, 3)))
    for level in levels
    for n in range(2)
]


def test_attributes_take_turns_and_each_pair_is_one_question_at_both_ends():
    found = answer_pairs([sample("", 0, "Q", "joint"), *SAMPLES])
    assert [(p.attribute, p.prompt, p.lowest.answer, p.highest.answer) for p in found] == [
        ("positivity", "Q0", "positivity 0 0", "positivity 4 0"),
        ("verbosity", "Q0", "verbosity 1 0", "verbosity 3 0"),
        ("positivity", "Q1", "positivity 0 1", "positivity 4 1"),
    ]
    assert answer_pairs([]) == []


def test_the_end_of_a_run_shows_three_pairs_and_a_command_that_works_as_printed(tmp_path, capsys):
    folder = tmp_path / "my runs" / "evaluate"
    folder.mkdir(parents=True)
    (folder / "summary.txt").write_text("It steers.\n")
    (folder / "metrics.json").write_text(json.dumps({"best": "train-steer"}))
    other = [sample("positivity", 0, "Q0", "worse", "bootstrap-1-train"), *SAMPLES]
    (folder / "samples.jsonl").write_bytes(b"".join(msgspec.json.encode(s) + b"\n" for s in other))
    run._print_result(tmp_path / "my runs", EvaluateSpec())
    said = capsys.readouterr().out
    assert "'Q0', positivity 0 and 4:\n  0: positivity 0 0\n  4: positivity 4 0\n" in said
    assert said.count("\n  4: ") + said.count("\n  3: ") == 3
    assert "worse" not in said
    command = shlex.split(said.splitlines()[-1].removeprefix("talk to it: "))
    assert command[-4:] == ["chat", str(tmp_path / "my runs"), "--set", "positivity=4"]
    assert Path(command[0]).is_absolute()
    assert command[0] == str(Path(sys.executable).with_name("steerlm"))


def test_it_shows_single_answers_under_chosen_ones(tmp_path, capsys):
    folder = tmp_path / "evaluate"
    folder.mkdir()
    (folder / "summary.txt").write_text("It steers.\n")
    (folder / "metrics.json").write_text(json.dumps({"best": "train-steer"}))
    candidates = [Candidate(answer="first", logprob=-2.0, read={"verbosity": 1.0}), Candidate(answer="second", logprob=-1.0)]
    made = [Sample(attribute="verbosity", level=n, prompt="Q", answer="second", model="train-steer", candidates=candidates) for n in (0, 4)]
    (folder / "samples.jsonl").write_bytes(b"".join(msgspec.json.encode(s) + b"\n" for s in made))
    run._print_result(tmp_path, EvaluateSpec(bestOf=2, guidanceScale=1.5))
    said = capsys.readouterr().out
    assert "'Q', verbosity 0 and 4, best of 2:\n  0: second\n  4: second\n  and in single answers:\n  0: first\n  4: first\n" in said
    assert said.splitlines()[-1].endswith(f" chat {tmp_path} --set verbosity=4 --strength 1.5 --best-of 2")
