"""What only CUDA can show. ``make test-gpu`` runs it on any machine that has it; elsewhere everything here skips."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_steerlm.core.template import ChatTokens
from nemo_steerlm.megatron import compat
from nemo_steerlm.training.train import main
from tests.inputs import STORIES
from tests.training.records import Records

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not compat.HAVE_CUDA, reason="no CUDA")]

ROOT = Path(__file__).parents[2]
NO_CUDA = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(os.cpu_count() or 1)}
ADAPTERS = ["model.peft.peft_scheme=lora", "model.peft.lora_tuning.target_modules=[all]"]
Train = Callable[..., list[float]]


@pytest.fixture(scope="session")
def arguments(records: Records) -> list[str]:
    """Ten steps of a small training."""
    return [
        f"model.restore_from_path={STORIES}",
        f"model.data.train_ds.file_path={records(80)}",
        "model.data.train_ds.global_batch_size=8",
        "model.data.train_ds.micro_batch_size=4",
        "model.data.train_ds.max_seq_length=256",
        "model.optim.lr=1e-3",
        "model.optim.sched.min_lr=1e-4",
        "model.optim.sched.warmup_steps=2",
        "model.optim.sched.constant_steps=0",
        "exp_manager.create_tensorboard_logger=false",
    ]


def placed(out: Path) -> list[str]:
    return [f"exp_manager.explicit_log_dir={out}", f"steerlm.metrics_file={out}.json"]


def losses(out: Path) -> list[float]:
    return [step["loss"] for step in json.loads(Path(f"{out}.json").read_text())["train"]]


@pytest.fixture
def train(arguments: list[str], tmp_path: Path) -> Train:
    """Trains in this process, as another configuration of the same, and gives its losses."""

    def run(name: str, *more: str) -> list[float]:
        from megatron.core import parallel_state

        parallel_state.destroy_model_parallel()
        main([*arguments, *placed(tmp_path / name), *more])
        return losses(tmp_path / name)

    return run


@pytest.fixture(scope="session")
def on_the_cpu(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of this very training in fp32 on this machine's CPU, in a process that sees no GPU."""
    out = tmp_path_factory.mktemp("cpu") / "run"
    command = [sys.executable, "-m", "nemo_steerlm.training.train", *arguments, *placed(out), "trainer.precision=32"]
    subprocess.run(command, cwd=ROOT, env=NO_CUDA, check=True, timeout=240)
    return losses(out)


def test_fp32_has_the_cpus_losses(train: Train, on_the_cpu: list[float]) -> None:
    assert train("fp32", "trainer.precision=32") == pytest.approx(on_the_cpu, abs=2e-4)


def test_bf16_is_near_them(train: Train, on_the_cpu: list[float]) -> None:
    assert train("bf16", "trainer.precision=bf16") == pytest.approx(on_the_cpu, abs=5e-2)


class Dtypes(torch.overrides.TorchFunctionMode):
    """In what products and attention are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[torch.dtype]] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") in ("linear", "matmul", "scaled_dot_product_attention") and isinstance(result, torch.Tensor):
            self.seen.setdefault(function.__name__, set()).add(result.dtype)
        return result


@pytest.mark.parametrize("scheme", [[], ADAPTERS], ids=["all weights", "adapters"])
def test_bf16_is_what_weights_products_and_attention_are_in(train: Train, scheme: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from nemo_steerlm.training.loop import TrainingLoop

    held: dict[str, Any] = {}
    step = TrainingLoop._step

    def watched(self: TrainingLoop) -> int:
        with Dtypes() as dtypes:
            stopping = step(self)
        held.update(
            dtypes=dtypes.seen,
            frozen={p.dtype for p in self.model.parameters() if not p.requires_grad},
            trained={p.dtype for p in self.model.parameters() if p.requires_grad},
            masters={p.dtype for group in self.model._optimizer.param_groups for p in group["params"]},
            devices={p.device.type for p in self.model.parameters()},
        )
        return stopping

    monkeypatch.setattr(TrainingLoop, "_step", watched)
    train("dtypes", "trainer.precision=bf16", "trainer.sft.max_steps=1", *scheme)
    assert held["devices"] == {"cuda"}
    assert held["masters"] == {torch.float32}
    assert held["trained"] == ({torch.float32} if scheme else {torch.bfloat16})
    assert held["frozen"] == ({torch.bfloat16} if scheme else set())
    assert all(seen == {torch.bfloat16} for seen in held["dtypes"].values()), held["dtypes"]
    assert compat.HAVE_TRANSFORMER_ENGINE or "scaled_dot_product_attention" in held["dtypes"]


@pytest.mark.parametrize("name", ["adamw", "mcore_distributed_optim"])
def test_a_resumed_training_has_the_losses_of_one_that_went_on(train: Train, tmp_path: Path, name: str) -> None:
    settings = ["trainer.precision=32", f"model.optim.name={name}", "trainer.sft.max_steps=6", "trainer.sft.save_interval=3"]
    straight = train("straight", *settings, "exp_manager.checkpoint_callback_params.save_top_k=9")
    resumed = train("resumed", *settings, f"model.resume_from_checkpoint={tmp_path}/straight/checkpoints/step=00000003")
    assert resumed == pytest.approx(straight, abs=1e-5)


def test_adapters_train_on_a_nemo_that_was_written_without_a_gpu(train: Train, tmp_path: Path) -> None:
    script = (
        "import sys; from nemo_steerlm.megatron.convert import convert_hf_to_nemo; from nemo_steerlm.core.template import ChatTokens\n"
        "if __name__ == '__main__': convert_hf_to_nemo(sys.argv[1], sys.argv[2], tokens=ChatTokens())\n"
    )
    nemo = tmp_path / "cpu.nemo"
    subprocess.run([sys.executable, "-c", script, str(STORIES), str(nemo)], cwd=ROOT, env=NO_CUDA, check=True, timeout=240)
    found = train("lora", f"model.restore_from_path={nemo}", "trainer.precision=bf16", "trainer.sft.max_steps=5", *ADAPTERS)
    assert found[-1] < found[0]


def test_an_export_loads_in_transformers_and_answers(train: Train, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    train("export", "trainer.precision=bf16", f"steerlm.export_dir={tmp_path}/hf", *ADAPTERS)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", torch_dtype="auto").cuda()
    assert model.dtype == torch.bfloat16
    prompt = AutoTokenizer.from_pretrained(tmp_path / "hf")(f"{ChatTokens().turn_start}User\nTell me", return_tensors="pt").to("cuda")
    answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert answer.size(1) > prompt["input_ids"].size(1)


@pytest.mark.skipif(not compat.HAVE_TRANSFORMER_ENGINE, reason="no TransformerEngine")
def test_packed_rows_have_the_losses_of_padded_ones(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from nemo_steerlm.megatron.gpt_sft import SteerLMGPTSFTModel

    packed = train("packed", "trainer.precision=bf16")
    monkeypatch.setattr(SteerLMGPTSFTModel, "packs", False)
    assert train("padded", "trainer.precision=bf16") == pytest.approx(packed, abs=2e-2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU: NCCL wants one for each process")
@pytest.mark.parametrize("layout", [["model.tensor_model_parallel_size=2"], ["model.pipeline_model_parallel_size=1"]], ids=["tp", "dp"])
def test_two_gpus_have_the_losses_of_one(arguments: list[str], tmp_path: Path, train: Train, layout: list[str]) -> None:
    one = train("one", "trainer.precision=32")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "nemo_steerlm.training.train"]
    two = [*arguments, *placed(tmp_path / "two"), "trainer.devices=2", "trainer.precision=32", *layout]
    subprocess.run([*command, *two], cwd=ROOT, check=True, timeout=240)
    assert losses(tmp_path / "two") == pytest.approx(one, abs=2e-4)


@pytest.mark.parametrize("scheme", [[], ADAPTERS], ids=["all weights", "adapters"])
def test_the_memory_that_a_plan_says_is_what_it_takes(records: Records, tmp_path: Path, scheme: list[str], tokenizer: Path) -> None:
    """Of a model of 300 million parameters, beside which what a context takes is small."""
    from megatron.core import parallel_state

    from nemo_steerlm.training import config
    from nemo_steerlm.training.loop import TrainingLoop
    from nemo_steerlm.training.memory import CONTEXT
    from nemo_steerlm.training.plan import plan_training
    from nemo_steerlm.training.stop_signal import StopSignal

    sizes = {"num_layers": 6, "hidden_size": 2048, "ffn_hidden_size": 5632, "num_attention_heads": 16, "num_query_groups": 16}
    given = [
        "model.restore_from_path=null",
        f"+model.tokenizer={{library: sentencepiece, model: {tokenizer}}}",
        *[f"+model.{name}={value}" for name, value in sizes.items()],
        f"model.data.train_ds.file_path={records(32)}",
        "model.data.train_ds.global_batch_size=16",
        "model.data.train_ds.micro_batch_size=16",
        "trainer.precision=bf16",
        "trainer.sft.max_steps=2",
        "exp_manager.create_checkpoint_callback=false",
        "exp_manager.checkpoint_callback_params.save_nemo_on_train_end=false",
        *placed(tmp_path / "memory"),
        *scheme,
    ]
    parallel_state.destroy_model_parallel()
    with StopSignal() as stop:
        planned = plan_training(config.compose(given), tmp_path)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        TrainingLoop(planned, stop).run()
    taken = torch.cuda.max_memory_allocated() - before
    assert taken == pytest.approx(planned.memory.total - CONTEXT, rel=0.35)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from nemo_steerlm.formats.tokenizer_files import write_tokenizer_files

    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer_files(STORIES, folder, ChatTokens().markers)
    return folder / "tokenizer.model"
