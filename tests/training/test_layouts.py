"""One training under many layouts, in real processes over gloo: each has the loss curve of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_steerlm.megatron.cpu import multiplies_in_bf16
from nemo_steerlm.training.train import main
from tests.training.records import Records
from tests.training.test_train import ENVIRONMENT, at, losses, metrics, settings

pytestmark = [pytest.mark.megatron, pytest.mark.distributed]

TP, PP = "model.tensor_model_parallel_size=2", "model.pipeline_model_parallel_size=2"
SHARDED = "model.optim.name=mcore_distributed_optim"
LORA = ["model.peft.peft_scheme=lora", "model.peft.lora_tuning.target_modules=[all]"]
NO_NEMO = "exp_manager.checkpoint_callback_params.save_nemo_on_train_end=false"
NOTHING_SAVED = [NO_NEMO, "exp_manager.create_checkpoint_callback=false"]


@pytest.fixture(scope="module")
def trained(base_nemo: Path, records: Records, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Every layout's training, done once; and what one process was told."""
    out = tmp_path_factory.mktemp("layouts")
    one = [
        *settings(base_nemo, records(40), records(9, start=40), out / "one", "exp_manager.create_tensorboard_logger=false"),
        "model.optim.sched.warmup_steps=2",
        "model.optim.sched.constant_steps=0",
    ]
    common = [a for a in one if not a.startswith(("exp_manager.explicit_log_dir", "steerlm.metrics_file"))]
    nemo = f"model.restore_from_path={out}/tp/checkpoints/megatron_gpt_sft.nemo"
    each_saved = ["trainer.sft.save_interval=2", "exp_manager.checkpoint_callback_params.save_top_k=9"]
    second_step = f"model.resume_from_checkpoint={out}/sharded dp/checkpoints/step=00000002"
    groups = {
        "2": {
            "tp": [TP],
            "tp with its sequence shared": [TP, "model.sequence_parallel=true", *NOTHING_SAVED],
            "pp": [PP, *NOTHING_SAVED],
            "dp": NOTHING_SAVED,
            "lora pp": [PP, *LORA, *NOTHING_SAVED],
            "lora tp": [TP, *LORA, *NOTHING_SAVED],
            "tp in bf16": [TP, "trainer.precision=bf16", *NOTHING_SAVED],
            "tp-to-pp": [PP, nemo, "trainer.sft.max_steps=1", *NOTHING_SAVED],
            "sharded dp": [SHARDED, *each_saved, NO_NEMO],
            "sharded dp-to-tp": [SHARDED, TP, second_step, *NOTHING_SAVED],
        },
        "4": {"tp and pp": [TP, PP, *NOTHING_SAVED]},
    }
    main(one)
    main([*common, SHARDED, *at(out / "sharded one"), *NOTHING_SAVED])
    main([*common, *LORA, *at(out / "lora one"), *NOTHING_SAVED])
    command = [sys.executable, str(Path(__file__).with_name("layouts.py")), json.dumps(common), str(out), json.dumps(groups)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return out, common


@pytest.mark.parametrize("layout", ["tp", "tp with its sequence shared", "pp", "dp", "tp and pp"])
def test_a_layout_has_the_loss_curve_of_one_process(trained: tuple[Path, list[str]], layout: str) -> None:
    out, _ = trained
    assert losses(out / layout) == pytest.approx(losses(out / "one"), abs=1e-5)
    assert metrics(out / layout)["validation_loss"] == pytest.approx(metrics(out / "one")["validation_loss"], abs=1e-5)


@pytest.mark.parametrize("layout", ["lora pp", "lora tp"])
def test_adapters_and_marker_rows_learn_under_each_layout(trained: tuple[Path, list[str]], layout: str) -> None:
    """Adapters start at other random numbers under another layout, so the curves are near each other and no more."""
    out, _ = trained
    assert losses(out / layout)[0] == pytest.approx(losses(out / "lora one")[0], abs=1e-5)
    assert losses(out / layout) == pytest.approx(losses(out / "lora one"), rel=2e-2)
    assert losses(out / layout)[-1] < losses(out / layout)[0]


def test_bf16_is_computed_under_tensor_parallelism_too(trained: tuple[Path, list[str]]) -> None:
    out, _ = trained
    rough = losses(out / "tp in bf16")
    assert rough == pytest.approx(losses(out / "one"), rel=1e-2)
    assert (rough != pytest.approx(losses(out / "one"), abs=1e-5)) == multiplies_in_bf16()


def test_a_nemo_of_one_layout_loads_under_another(trained: tuple[Path, list[str]], tmp_path: Path) -> None:
    out, common = trained
    nemo = f"model.restore_from_path={out}/one/checkpoints/megatron_gpt_sft.nemo"
    main([*common, *at(tmp_path / "again"), nemo, "trainer.sft.max_steps=1", *NOTHING_SAVED])
    assert losses(out / "tp-to-pp") == pytest.approx(losses(tmp_path / "again"), abs=1e-5)


def test_the_sharded_optimizer_steps_as_torchs_and_resumes_under_another_layout(trained: tuple[Path, list[str]]) -> None:
    """What two data-parallel ranks saved after two steps is gone on from under TP 2."""
    out, _ = trained
    alone = metrics(out / "sharded one")["train"]
    assert [e["loss"] for e in alone] == pytest.approx(losses(out / "one"), rel=1e-4)
    assert [e["grad_norm"] for e in alone] == pytest.approx([e["grad_norm"] for e in metrics(out / "one")["train"]], rel=1e-2)
    assert losses(out / "sharded dp") == pytest.approx(losses(out / "sharded one"), abs=1e-5)
    assert losses(out / "sharded dp-to-tp") == pytest.approx(losses(out / "sharded one"), abs=1e-5)
    assert metrics(out / "sharded dp-to-tp")["validation_loss"] == pytest.approx(metrics(out / "sharded one")["validation_loss"], abs=1e-5)
