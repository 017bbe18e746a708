"""What a base model answers under its own chat template, and how likely texts are to it: ``python -m … JOB.json RESULT.json``.

The base model knows nothing of attributes. It is what an evaluation compares with: the same model, asked in words.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, GenerationConfig

from nemo_steerlm.core.errors import ConfigError
from nemo_steerlm.core.exits import run_and_exit
from nemo_steerlm.core.files import atomic_write
from nemo_steerlm.core.processes import exit_on_sigterm, report
from nemo_steerlm.core.tokenization import TextTokenizer, load_tokenizer
from nemo_steerlm.formats.gguf_files import open_gguf
from nemo_steerlm.formats.nemo_archive import is_nemo
from nemo_steerlm.formats.tokenizer_files import write_tokenizer_files
from nemo_steerlm.inference.base_job import BaseAnswer, BaseJob, BaseResult, Likelihood
from nemo_steerlm.inference.batching import BatchedEngine
from nemo_steerlm.inference.blocks import Block, BlockModel
from nemo_steerlm.inference.causal_model import CausalModel
from nemo_steerlm.inference.engine import GenerationRequest, Sampling
from nemo_steerlm.inference.offline import generate
from nemo_steerlm.inference.registry import EngineOptions
from nemo_steerlm.megatron.weights import open_weights

PIECE = 256
"""Tokens whose scores over the whole vocabulary are in memory at once."""


@contextlib.contextmanager
def hugging_face_folder(source: Path) -> Iterator[Path]:
    """``source`` as a Hugging Face folder: itself, or what is in a ``.gguf``, with its own chat template.

    Raises:
        ConfigError: For a ``.nemo`` file, which has no chat template.
    """
    if source.is_dir():
        yield source
        return
    if is_nemo(str(source)):
        raise ConfigError(f"{source}: a .nemo file has no chat template to ask it in words by; name the Hugging Face folder as model.base")
    with tempfile.TemporaryDirectory(prefix="steerlm-base-") as scratch:
        folder = Path(scratch)
        write_tokenizer_files(source, folder)
        # A .gguf names no type; in bf16, as what is trained on it is exported.
        config = {**open_gguf(source).config(), "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        weights = open_weights(source)
        save_file({name: weights.tensor(name) for name in weights.names}, folder / "model.safetensors", metadata={"format": "pt"})
        yield folder


class BaseModel:
    """A base model that is asked in its own words."""

    def __init__(self, folder: Path) -> None:
        """Load it. Raises UsageError and ConfigError where ``folder`` cannot be loaded."""
        self.model: BlockModel = CausalModel(folder)
        self.tokenizer: TextTokenizer = load_tokenizer(folder)
        self._chat: Any = AutoTokenizer.from_pretrained(folder)
        self._ends = _ends(folder, self._chat)
        self._start = next(i for i in (self._chat.bos_token_id, self._chat.eos_token_id, 0) if i is not None)

    def prompt(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """Token ids of a conversation up to the answer. Raises ConfigError where the model has no chat template."""
        if not self._chat.chat_template:
            raise ConfigError("the base model has no chat template, so it cannot be asked in words; leave baselines: [prompted] out")
        ids: list[int] = self._chat.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=True)
        return tuple(ids)

    def answers(self, job: BaseJob, progress: Callable[[int], None], options: EngineOptions | None = None) -> list[BaseAnswer]:
        """The answers to ``job.requests``, in order. ``progress`` gets the number of answers so far."""
        engine = BatchedEngine(None, self.tokenizer, self.model, options or EngineOptions())
        requests = []
        for request in job.requests:
            sampling = Sampling(greedy=job.temperature == 0, temperature=job.temperature or 1.0, top_k=job.top_k, seed=request.seed)
            requests.append(GenerationRequest(prompt=self.prompt(request.messages), sampling=sampling, stop_ids=self._ends))
        return [
            BaseAnswer(text=self._chat.decode(ids, skip_special_tokens=True).strip(), finish="stop" if ended else "length")
            for ids, ended in generate(engine, requests, job.max_tokens, progress)
        ]

    @torch.inference_mode()
    def likelihood(self, text: str) -> Likelihood:
        """Of ``text`` by itself, after the token that begins a text."""
        ids = self.tokenizer.encode(text)
        cache, total = self.model.cache(1), 0.0
        context = [self._start, *ids[:-1]]
        for start in range(0, len(ids), PIECE):
            piece = context[start : start + PIECE]
            scores = self.model.forward(cache, Block([piece], [start]), reads=[(0, i) for i in range(len(piece))])
            wanted = torch.tensor(ids[start : start + PIECE])
            total -= float(scores.log_softmax(-1).gather(1, wanted[:, None]).sum())
        return Likelihood(nll=total, tokens=len(ids))


def _ends(folder: Path, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's and those of ``generation_config.json``."""
    ends = {tokenizer.eos_token_id}
    if (folder / "generation_config.json").is_file():
        named = GenerationConfig.from_pretrained(folder).eos_token_id
        ends |= set(named if isinstance(named, list) else [named])
    return frozenset(ends - {None})


def run(job: BaseJob) -> BaseResult:
    """Do ``job``, saying how far it is."""
    with hugging_face_folder(Path(job.model)) as folder:
        model = BaseModel(folder)
        count = len(job.requests)
        total = count + (len(job.texts) + count if job.likelihoods else 0)
        answers = model.answers(job, lambda n: report("progress", done=n, total=total, phase="base model answers"))
        if not job.likelihoods:
            return BaseResult(answers=answers, texts=[])
        found = []
        for text in [*job.texts, *(answer.text for answer in answers)]:
            found.append(model.likelihood(text))
            report("progress", done=count + len(found), total=total, phase="base model reads")
        answers = [
            msgspec.structs.replace(answer, likelihood=likelihood)
            for answer, likelihood in zip(answers, found[len(job.texts) :], strict=True)
        ]
        return BaseResult(answers=answers, texts=found[: len(job.texts)])


def main() -> None:
    """Read the job, write the result, whole or not at all."""
    exit_on_sigterm()
    source, target = sys.argv[1:]
    result = run(msgspec.json.decode(Path(source).read_bytes(), type=BaseJob))
    with atomic_write(Path(target)) as file:
        file.write(msgspec.json.encode(result).decode())


if __name__ == "__main__":
    run_and_exit(main, "base model")
