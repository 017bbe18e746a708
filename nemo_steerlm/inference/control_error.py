"""How far a SteerLM model misses what it is asked for, by a value model: ``python -m … JOB.json STEER_FOLDER RESULT.json``.

The control error is that of the evaluation: the mean distance, in steps, of the expected value read from the level asked for.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from nemo_steerlm.core.conversation import Conversation, Turn
from nemo_steerlm.core.encoding import prompt_ids
from nemo_steerlm.core.exits import run_and_exit
from nemo_steerlm.core.files import atomic_write
from nemo_steerlm.core.processes import exit_on_sigterm
from nemo_steerlm.inference.control_job import ControlJob
from nemo_steerlm.inference.engine import Engine, GenerationRequest, Sampling, ScoreRequest
from nemo_steerlm.inference.huggingface import HuggingFaceEngine
from nemo_steerlm.inference.offline import generate


def answers(engine: Engine, job: ControlJob) -> list[str]:
    """What the SteerLM model writes, in the order of the job."""
    info, tokenizer = engine.info, engine.tokenizer
    template = info.template(tokenizer)
    stops = frozenset(
        i for i in (tokenizer.eos_id, *(tokenizer.token_id(marker) for marker in info.tokens.markers)) if i is not None and i >= 0
    )
    requests = []
    for one in job.asked:
        spans = template.reply_prompt(Conversation.from_record(one.conversation), info.assistant, one.label)
        sampling = Sampling(greedy=job.temperature == 0, temperature=job.temperature or 1.0, top_k=job.top_k, seed=one.seed)
        requests.append(GenerationRequest(prompt=tuple(prompt_ids(spans, tokenizer)), sampling=sampling, stop_ids=stops))
    written = generate(engine, requests, job.max_tokens, lambda _: None)
    return [template.escape.undo(tokenizer.decode(one.ids)).removesuffix(info.tokens.end_of_turn) for one in written]


def errors(engine: Engine, job: ControlJob, texts: list[str]) -> list[float]:
    """Of each answer the distance of what the value model reads from what was asked for."""
    found: list[float] = []
    for start in range(0, len(texts), engine.max_rows):
        part = slice(start, start + engine.max_rows)
        requests = []
        for one, text in zip(job.asked[part], texts[part], strict=True):
            asked = Conversation.from_record(one.conversation)
            turns = (*asked.turns, Turn(speaker=engine.info.assistant, text=text))
            requests.append(ScoreRequest(conversation=msgspec.structs.replace(asked, turns=turns), turns=(len(turns) - 1,)))
        for one, (turn,) in zip(job.asked[part], engine.score(requests), strict=True):
            probabilities = turn.choices[one.attribute].probabilities
            expected = sum(int(value) * chance for value, chance in probabilities.items())
            found.append(abs(expected - one.level))
    return found


def control_error(job: ControlJob, folder: Path) -> float:
    """Mean control error of the SteerLM model in ``folder``, in steps."""
    texts = answers(HuggingFaceEngine(folder), job)
    found = errors(HuggingFaceEngine(Path(job.value_model)), job, texts)
    return sum(found) / len(found)


def main() -> None:
    """Read the job, write the figure."""
    exit_on_sigterm()
    source, folder, target = map(Path, sys.argv[1:])
    found = control_error(msgspec.json.decode(source.read_bytes(), type=ControlJob), folder)
    with atomic_write(target) as file:
        file.write(msgspec.json.encode({"control": found}).decode())


if __name__ == "__main__":
    run_and_exit(main, "control error")
