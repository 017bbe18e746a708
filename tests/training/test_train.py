"""Real trainings, small. In this process where one process is enough, so that NeMo is imported once."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from nemo_steerlm.core.errors import EXIT_TERMINATED, ConfigError
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.template import Template
from nemo_steerlm.core.tokenization import load_tokenizer
from nemo_steerlm.formats.nemo_archive import nemo_archive
from nemo_steerlm.training.batches import TrainingOrder
from nemo_steerlm.training.checkpoints import complete_checkpoints, read_state
from nemo_steerlm.training.token_files import dataset
from nemo_steerlm.training.train import main
from tests.inputs import STORIES
from tests.training.records import Records

pytestmark = pytest.mark.megatron

LORA = ["model.peft.peft_scheme=lora", "model.peft.lora_tuning.target_modules=[all]"]
NO_NEMO = "exp_manager.checkpoint_callback_params.save_nemo_on_train_end=false"
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

TUTORIAL = (
    "trainer.num_nodes=1 trainer.devices=1 trainer.precision=bf16 trainer.sft.max_epochs=1 trainer.sft.max_steps=1000 "
    "trainer.sft.val_check_interval=200 trainer.sft.save_interval=200 trainer.sft.limit_val_batches=40 model.megatron_amp_O2=True "
    "model.tensor_model_parallel_size=1 model.pipeline_model_parallel_size=1 model.optim.lr=6e-6 "
    "model.optim.name=distributed_fused_adam model.optim.weight_decay=0.01 model.optim.sched.constant_steps=200 "
    "model.optim.sched.warmup_steps=1 model.optim.sched.min_lr=5e-6 model.answer_only_loss=True "
    "model.activations_checkpoint_granularity=selective model.activations_checkpoint_method=uniform model.data.chat=True "
    "model.data.num_workers=0 model.data.chat_prompt_tokens.system_turn_start=\\x00 model.data.chat_prompt_tokens.turn_start=\\x11 "
    "model.data.chat_prompt_tokens.label_start=\\x12 model.data.train_ds.max_seq_length=4096 model.data.train_ds.micro_batch_size=2 "
    "model.data.train_ds.global_batch_size=8 model.data.train_ds.index_mapping_dir=/indexmap_dir model.data.train_ds.add_eos=False "
    "model.data.train_ds.hf_dataset=True model.data.validation_ds.max_seq_length=4906 model.data.validation_ds.micro_batch_size=2 "
    "model.data.validation_ds.global_batch_size=8 model.data.validation_ds.index_mapping_dir=/indexmap_dir "
    "model.data.validation_ds.add_eos=False model.data.validation_ds.hf_dataset=True exp_manager.create_wandb_logger=True "
    "exp_manager.wandb_logger_kwargs.project=steerlm exp_manager.wandb_logger_kwargs.name=value_model exp_manager.resume_if_exists=True "
    "exp_manager.resume_ignore_no_checkpoint=True exp_manager.create_checkpoint_callback=True "
    "exp_manager.checkpoint_callback_params.monitor=val_loss model.save_nemo_on_validation_end=True"
)
"""Steps 6 and 9 as they stand in the tutorial, paths and sizes aside: what a shell makes of the unquoted backslashes is below."""


def settings(base: Path, train: Path, validation: Path, out: Path, *more: str) -> list[str]:
    return [
        f"model.restore_from_path={base}",
        f"model.data.train_ds.file_path={train}",
        f"model.data.validation_ds.file_path={validation}",
        "model.data.train_ds.global_batch_size=8",
        "model.data.train_ds.micro_batch_size=2",
        "model.data.validation_ds.global_batch_size=4",
        "model.data.validation_ds.micro_batch_size=2",
        "trainer.sft.max_epochs=1",
        "model.optim.lr=1e-3",
        "trainer.precision=32",
        f"exp_manager.explicit_log_dir={out}",
        f"steerlm.metrics_file={out}.json",
        *more,
    ]


def metrics(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.with_name(f"{out.name}.json").read_text())
    return found


def losses(out: Path) -> list[float]:
    return [entry["loss"] for entry in metrics(out)["train"]]


@pytest.fixture(scope="module")
def undisturbed(base_nemo: Path, records: Records, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The arguments of a training, without its place, and where it was done once from start to end."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    arguments = settings(base_nemo, records(40), records(9, start=40), out)
    main(arguments)
    return [a for a in arguments if not a.startswith(("exp_manager.explicit_log_dir", "steerlm.metrics_file"))], out


def at(out: Path) -> list[str]:
    return [f"exp_manager.explicit_log_dir={out}", f"steerlm.metrics_file={out}.json"]


def test_the_tutorials_step_6_runs_as_it_stands(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = tmp_path / "results"
    paths = [
        f"model.restore_from_path={STORIES}",
        f"model.data.train_ds.file_path={records(24)}",
        f"model.data.validation_ds.file_path={records(9, start=24)}",
        f"exp_manager.explicit_log_dir={out}",
        f"steerlm.metrics_file={out}.json",
        f"steerlm.export_dir={tmp_path / 'hf'}",
        "steerlm.progress=true",
    ]
    main([*TUTORIAL.replace("\\", "").split(), *paths])  # bash drops a backslash that is not quoted
    done = metrics(out)
    assert (done["steps"], done["consumed_samples"]) == (3, 24)
    assert set(done["attributes"]) == {"quality", "toxicity"}
    assert done["attributes"]["quality"]["count"] == 9  # every record, the incomplete last batch too
    assert 0 <= done["attributes"]["toxicity"]["accuracy"] <= 1
    assert (out / "checkpoints" / "megatron_gpt_sft.nemo").is_file()
    assert list((out / "tensorboard").glob("events.*"))
    assert list((out / "wandb").glob("offline-run-*"))
    with safe_open(tmp_path / "hf" / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118  no mapping
    info = ModelInfo.load(tmp_path / "hf")
    assert (info.kind, info.tokens.turn_start, info.fingerprint) == ("value", "\x11", done["fingerprint"])
    progress = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"steerlm"')]
    assert [(p["stage"], p["done"], p["total"]) for p in progress] == [("train-value", i, 3) for i in (1, 2, 3)]


def test_validation_weighs_tokens_and_agrees_with_training(base_nemo: Path, records: Records, tmp_path: Path) -> None:
    """With a rate of nearly zero, the mean of the training losses over an epoch is the validation loss of the same file."""
    train = records(16)
    out = tmp_path / "run"
    main(settings(base_nemo, train, train, out, "model.optim.lr=1e-12", "model.optim.sched.min_lr=0"))
    tokenizer = load_tokenizer(STORIES / "tokenizer.model")
    counts = dataset(train, Template.of(tokenizer), tokenizer, 256).counts
    order = TrainingOrder(16, 8, 1234, shuffle=True)
    weights = [int(counts[order.batch(step)].sum()) for step in range(2)]
    weighted = sum(w * loss for w, loss in zip(weights, losses(out), strict=True)) / sum(weights)
    assert metrics(out)["validation_loss"] == pytest.approx(weighted, abs=1e-4)
    stored, _ = nemo_archive(out / "checkpoints" / "megatron_gpt_sft.nemo")
    assert stored.steerlm.kind == "value"


def test_sigterm_saves_and_the_same_command_ends_as_if_nothing_had_been(undisturbed: tuple[list[str], Path], tmp_path: Path) -> None:
    arguments, reference = undisturbed
    out = tmp_path / "run"
    command = [sys.executable, "examples/train_gpt_sft.py", *arguments, *at(out), "steerlm.progress=true", "trainer.sft.save_minutes=1e-9"]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if '"done": 2' in line:
            assert json.loads(line)["stop_seconds"] > 0  # a checkpoint was due by the clock after the first step
            process.send_signal(signal.SIGTERM)
            break
    process.stdout.read()
    assert process.wait(timeout=60) == EXIT_TERMINATED
    assert not (out / "checkpoints" / "megatron_gpt_sft.nemo").exists()
    main([*arguments, *at(out)])
    assert losses(out) == losses(reference)
    assert metrics(out)["validation_loss"] == pytest.approx(metrics(reference)["validation_loss"], abs=1e-6)
    assert [path.name for path in (out / "checkpoints").glob("step=*")] == ["step=00000005"]


@pytest.mark.slow
def test_a_checkpoint_leaves_no_thread_behind(tmp_path: Path) -> None:
    """With one more than there are cores, OpenMP would let all of them sleep between products."""
    command = [sys.executable, "-m", "tests.training.threads_of_a_save", str(STORIES / "tokenizer.model"), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env={**ENVIRONMENT, "OMP_NUM_THREADS": "2"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, after, used = map(int, done.stdout.splitlines()[-1].split())
    assert after <= before
    assert used == 2


def test_another_stage_never_goes_on_from_this_ones_checkpoint(undisturbed: tuple[list[str], Path], records: Records) -> None:
    arguments, out = undisturbed
    with pytest.raises(ConfigError, match=r"stage \(train-value, not train-steer\)"):
        main([*arguments, *at(out), f"model.data.train_ds.file_path={records(40, 'VALUE_TO_TEXT')}", "trainer.sft.limit_val_batches=0"])


@pytest.mark.parametrize("layers", ["null", "[1,3]"], ids=["all layers", "some layers"])
def test_lora_learns_resumes_and_is_merged_into_what_is_saved(base_nemo: Path, records: Records, tmp_path: Path, layers: str) -> None:
    out = tmp_path / "run"
    arguments = settings(
        base_nemo,
        records(24, "VALUE_TO_TEXT"),
        records(8, "VALUE_TO_TEXT", start=24),
        out,
        "model.peft.peft_scheme=lora",
        "model.peft.lora_tuning.target_modules=[all]",
        f"model.peft.lora_tuning.layer_selection={layers}",
        "model.optim.lr=5e-3",
        "model.optim.sched.warmup_steps=0",
    )
    main([*arguments, "trainer.sft.max_steps=2"])  # killed after two of three steps, as far as the checkpoint can tell
    main(arguments)
    assert len(losses(out)) == 3
    assert losses(out)[-1] < losses(out)[0]
    merged = tmp_path / "merged"
    main(
        [
            *[a for a in arguments if "peft" not in a],
            *at(merged),
            f"model.restore_from_path={out}/checkpoints/megatron_gpt_sft.nemo",
            "model.optim.lr=1e-12",
            "model.optim.sched.min_lr=0",
            "trainer.sft.max_steps=1",
        ]
    )
    assert metrics(merged)["validation_loss"] == pytest.approx(metrics(out)["validation_loss"], abs=1e-4)


def test_peft_reads_the_adapters_beside_the_export(records: Records, tmp_path: Path) -> None:
    """On the base model they give the merged model's logits: markers that were added, layers without adapters and all."""
    pytest.importorskip("peft")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    export, lora = tmp_path / "hf", "model.peft.lora_tuning"
    own = [f"{lora}.layer_selection=[1,3]", f"{lora}.adapter_dim=4", f"{lora}.alpha=6", f"{lora}.adapter_dropout=0.1"]
    train = records(24, "VALUE_TO_TEXT")
    main([*settings(STORIES, train, train, tmp_path / "run", *LORA, *own, NO_NEMO, "model.optim.lr=1e-2"), f"steerlm.export_dir={export}"])
    merged = AutoModelForCausalLM.from_pretrained(export)
    base = AutoModelForCausalLM.from_pretrained(STORIES)
    ids = torch.arange(3, merged.config.vocab_size).view(1, -1)  # the markers are the last ones
    with torch.no_grad():
        before = base(ids[:, :-3]).logits
        base.resize_token_embeddings(merged.config.vocab_size)
        adapted = PeftModel.from_pretrained(base, export / "adapter").eval()
        logits, expected = adapted(ids).logits, merged(ids).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert (logits[:, :-3, :512] - before).abs().max() > 0.1
    kept = json.loads((export / "adapter" / "adapter_config.json").read_text())
    assert (kept["r"], kept["lora_alpha"], kept["lora_dropout"], kept["layers_to_transform"]) == (4, 6, 0.1, [0, 2])
    assert "q_proj" in kept["target_modules"]


RUINOUS = ["model.optim.lr=0.1", "model.optim.sched.warmup_steps=0", "trainer.sft.val_check_interval=1", "trainer.sft.limit_val_batches=2"]
"""A rate at which every step makes the model worse."""
KEPT_BEST = "exp_manager.checkpoint_callback_params.save_best_model=true"


def validation_losses(out: Path) -> list[float]:
    return [entry["loss"] for entry in metrics(out)["validation"]]


def test_the_best_step_is_kept_and_a_training_that_gets_no_better_ends(undisturbed: tuple[list[str], Path], tmp_path: Path) -> None:
    """The first of five steps is the best, and two validations later there is nothing more to wait for."""
    out, loaded = tmp_path / "run", tmp_path / "loaded"
    main([*undisturbed[0], *at(out), *RUINOUS, KEPT_BEST, "trainer.sft.early_stopping_patience=2"])
    told = metrics(out)
    assert (told["steps"], told["best_step"]) == (3, 1)
    best, _, last = validation_losses(out)
    assert last > best + 0.1
    nemo = f"model.restore_from_path={out}/checkpoints/megatron_gpt_sft.nemo"
    unchanged = ["model.optim.lr=1e-12", "model.optim.sched.min_lr=0", "trainer.sft.max_steps=1"]
    main([*undisturbed[0], *RUINOUS, *at(loaded), nemo, *unchanged])
    assert validation_losses(loaded) == [pytest.approx(best, abs=1e-4)]


def test_an_attribute_says_which_step_is_best(undisturbed: tuple[list[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    monitor = ["exp_manager.checkpoint_callback_params.monitor=val/quality/mae", NO_NEMO, KEPT_BEST]
    main([*undisturbed[0], *at(out), "trainer.sft.val_check_interval=1", *monitor])
    errors = [entry["attributes"]["quality"]["mae"] for entry in metrics(out)["validation"]]
    assert metrics(out)["best_step"] == 1 + errors.index(min(errors))
    assert len(errors) == 5


def poisoned(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Have these steps' gradients hold what is not a number."""
    from nemo_steerlm.megatron.gpt_sft import SteerLMGPTSFTModel

    run, taken = SteerLMGPTSFTModel.run_micro_batches, itertools.count(1)

    def run_and_poison(self: Any, batches: Any, *, forward_only: bool) -> Any:
        results = run(self, batches, forward_only=forward_only)
        if not forward_only and next(taken) in steps:
            next(p for p in self.model.parameters() if p.grad is not None).grad.view(-1)[0] = math.nan
        return results

    monkeypatch.setattr(SteerLMGPTSFTModel, "run_micro_batches", run_and_poison)


def test_a_step_whose_gradients_are_not_finite_changes_nothing(
    undisturbed: tuple[list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    poisoned(monkeypatch, {2})
    main([*undisturbed[0], *at(out), "trainer.sft.val_check_interval=1", "trainer.sft.limit_val_batches=2", NO_NEMO])
    steps, validation = metrics(out)["train"], validation_losses(out)
    assert metrics(out)["skipped_steps"] == 1
    assert [(entry.get("skipped"), entry["grad_norm"] is None) for entry in steps[:3]] == [(None, False), (1, True), (None, False)]
    assert validation[0] == validation[1] != validation[2]
    assert read_state(complete_checkpoints(out / "checkpoints")[-1]).step == 5


def test_a_training_without_a_finite_gradient_ends_at_the_limit(undisturbed: tuple[list[str], Path], tmp_path: Path) -> None:
    """The first step at this rate ruins every weight, and no step after it has a gradient."""
    rate = ["model.optim.lr=1e30", "model.optim.sched.warmup_steps=0", "trainer.sft.gradient_clip_val=0", NO_NEMO]
    said = r"gradients of 2 steps in a row were not finite \(.*limit=1\); lower model\.optim\.lr"
    with pytest.raises(ConfigError, match=said) as ended:
        main([*undisturbed[0], *at(tmp_path / "run"), *rate, "trainer.sft.skipped_steps_limit=1"])
    assert ended.value.exit_code == 78


@pytest.mark.slow
def test_the_step_that_steers_best_is_what_is_saved(
    base_nemo: Path, records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked at each validation is the model as it is then, adapters and all; the best one comes back at the end."""
    seen: list[dict[str, Any]] = []

    def ask(job: Path, folder: Path) -> float:
        assert job == tmp_path / "job.json"
        seen.append(load_file(folder / "model.safetensors"))
        return [2.0, 1.0, 3.0][len(seen) - 1]

    monkeypatch.setattr("nemo_steerlm.training.control._ask", ask)
    out = tmp_path / "run"
    lora = ["model.peft.peft_scheme=lora", "model.peft.lora_tuning.target_modules=[all]", "model.optim.lr=5e-3"]
    chosen = ["exp_manager.checkpoint_callback_params.monitor=val_control", "exp_manager.checkpoint_callback_params.save_best_model=True"]
    more = [*lora, *chosen, "model.optim.sched.warmup_steps=0", "trainer.sft.val_check_interval=1", f"steerlm.export_dir={tmp_path / 'hf'}"]
    arguments = settings(base_nemo, records(24, "VALUE_TO_TEXT"), records(8, "VALUE_TO_TEXT", start=24), out, *more)
    with pytest.raises(ConfigError, match=r"set steerlm\.control_job"):
        main(arguments)
    main([*arguments, f"steerlm.control_job={tmp_path / 'job.json'}"])
    assert metrics(out)["best_step"] == 2
    assert [entry["control"] for entry in metrics(out)["validation"]] == [2.0, 1.0, 3.0]
    saved = load_file(tmp_path / "hf" / "model.safetensors")
    assert all(torch.equal(saved[name], weight) for name, weight in seen[1].items())
    assert not all(torch.equal(saved[name], weight) for name, weight in seen[2].items())
    assert not all(torch.equal(saved[name], weight) for name, weight in seen[0].items())
