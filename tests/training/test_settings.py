"""Every setting that cannot work is refused in the plan, in one line, by its key."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_steerlm.core.errors import ConfigError
from nemo_steerlm.formats.tokenizer_files import require_markers
from nemo_steerlm.megatron.machine import Machine
from nemo_steerlm.megatron.model_config import DEFAULTS, Parallelism, check_architecture
from nemo_steerlm.training import config, settings
from nemo_steerlm.training.base_model import check_exportable

CPU = Machine(cuda=False)
NVIDIA = Machine(cuda=True, apex=True, transformer_engine=True)


def checked(*overrides: str, machine: Machine = CPU) -> Parallelism:
    return settings.check(config.compose(["model.data.train_ds.file_path=r.jsonl", *overrides]), machine)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        *[(f"trainer.sft.max_epochs={value}", "trainer.sft.max_epochs") for value in ("-1", "0", "null", "1.5", "true", "two", "[1]")],
        *[(f"trainer.sft.max_steps={value}", "trainer.sft.max_steps") for value in ("0", "null", "-2", "1.5")],
        *[
            (f"trainer.sft.val_check_interval={value}", "trainer.sft.val_check_interval")
            for value in ("0", "null", "-1", "1.5", "0.0", "x")
        ],
        *[(f"trainer.sft.save_interval={value}", "trainer.sft.save_interval") for value in ("0", "null", "-1")],
        *[(f"trainer.sft.limit_train_batches={value}", "trainer.sft.limit_train_batches") for value in ("0", "null", "0.0", "-1")],
        *[(f"trainer.sft.limit_val_batches={value}", "trainer.sft.limit_val_batches") for value in ("null", "-1", "1.5")],
        *[(f"trainer.devices={value}", "trainer.devices") for value in ("auto", "0.5", "0", "-1", "null", "[0,1]", "true")],
        ("trainer.num_nodes=0", "trainer.num_nodes"),
        ("trainer.sft.gradient_clip_val=-1", "trainer.sft.gradient_clip_val"),
        *[(f"trainer.precision={value}", "trainer.precision") for value in ("fp32", "float32", "16", "16-mixed", "64", "null", "[32]")],
        ("trainer.max_steps=2", "trainer.max_steps=2 is not read; write trainer.sft.max_steps"),
        ("trainer.max_epochs=5", "trainer.max_epochs=5 is not read; write trainer.sft.max_epochs"),
        ("trainer.limit_val_batches=2", "trainer.limit_val_batches=2 is not read"),
        ("+trainer.accumulate_grad_batches=4", "trainer.accumulate_grad_batches: unknown key"),
        ("model.data.train_ds.file_path=[a,b]", "model.data.train_ds.file_path"),
        ("+model.data.train_ds.file_name=a", "model.data.train_ds.file_name: unknown key"),
        ("model.data.train_ds.file_names=a", "model.data.train_ds.file_names"),
        ("model.data.train_ds.file_names=[a]", "file_path and file_names are both given"),
        ("model.data.train_ds.weights=[1]", "write one for each of file_names"),
        ("model.data.train_ds.weights=[0]", "model.data.train_ds.weights"),
        ("model.data.validation_ds.file_names=[a]", "validation reads one file"),
        ("model.restore_from_path=[a]", "model.restore_from_path"),
        ("exp_manager.explicit_log_dir={a: 1}", "exp_manager.explicit_log_dir"),
        ("model.data.train_ds.micro_batch_size=null", "model.data.train_ds.micro_batch_size"),
        ("model.data.train_ds.global_batch_size=1.0", "model.data.train_ds.global_batch_size"),
        ("model.data.train_ds.max_seq_length=0", "model.data.train_ds.max_seq_length"),
        ("model.encoder_seq_length=0", "model.encoder_seq_length"),
        ("exp_manager.create_wandb_logger=true", "exp_manager.create_wandb_logger needs exp_manager.wandb_logger_kwargs.project"),
        ("exp_manager.create_mlflow_logger=true", "exp_manager.create_mlflow_logger: MLflow is not installed: pip install mlflow"),
        ("model.optim.name=nosuch", "model.optim.name=nosuch"),
        ("model.optim.name=adam", "model.optim.name=adam: did you mean adamw"),
        ("model.optim.sched.name=Cosine", "model.optim.sched.name=Cosine: known: "),
        ("model.optim.sched.name=ReduceLROnPlateau", "model.optim.sched.name"),
        ("model.optim.sched.warmup_steps=-1", "model.optim.sched.warmup_steps"),
        ("model.optim.lr=0", "model.optim.lr"),
        ("model.optim.lr=x", "model.optim.lr"),
        ("model.optim.lr=9e-7", "must be above"),
        ("model.optim.betas=0.9", "model.optim.betas"),
        ("model.optim.betas=[0.9,1.0]", "model.optim.betas"),
        ("model.optim.eps=0", "model.optim.eps"),
        ("model.seed=-1", "model.seed"),
        ("model.hidden_dropout=1", "model.hidden_dropout"),
        ("model.activations_checkpoint_granularity=full", "write model.activations_checkpoint_method=uniform"),
        ("model.activations_checkpoint_granularity=all", "write null, selective or full"),
        ("model.tensor_model_parallel_size=0", "model.tensor_model_parallel_size"),
        ("model.sequence_parallel=true", "there is one; write false"),
        ("model.context_parallel_size=2", "inside TransformerEngine's attention, which is not installed here; write 1"),
        ("model.peft.lora_tuning.adapter_dim=0", "model.peft.lora_tuning.adapter_dim"),
        ("model.peft.peft_scheme=ptuning", "write lora or none"),
        ("exp_manager.max_time_per_run=00:04", "write DD:HH:MM:SS"),
        ("exp_manager.checkpoint_callback_params.save_top_k=-1", "save_top_k"),
        ("steerlm.progress=yes please", "steerlm.progress"),
    ],
)
def test_what_cannot_work_is_refused_by_its_key(override: str, key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        checked(override)
    assert key in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 78


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("trainer.sft.max_steps=-1", "trainer.sft.max_epochs=3"),
        ("trainer.sft.val_check_interval=1.0", "trainer.sft.limit_val_batches=0.0"),
        ("trainer.sft.limit_val_batches=0", "trainer.sft.gradient_clip_val=null"),
        ("trainer.precision=bf16-mixed",),
        ("trainer.precision=32-true", "model.optim.sched=null"),
        ("trainer.max_steps=7", "trainer.sft.max_steps=7"),
        tuple(f"model.activations_checkpoint_{setting}" for setting in ("granularity=full", "method=uniform", "num_layers=1")),
        ("model.activations_checkpoint_granularity=selective", "model.activations_checkpoint_method=uniform"),
        ("trainer.devices=2", "model.tensor_model_parallel_size=2", "model.sequence_parallel=true"),
        ("exp_manager.max_time_per_run=00:04:00:00",),
    ],
)  # fmt: skip
def test_what_works_is_let_through(overrides: tuple[str, ...]) -> None:
    checked(*overrides)


def test_context_parallelism_divides_the_data_parallel_size_where_transformer_engine_computes_it() -> None:
    layout = checked("trainer.devices=8", "model.context_parallel_size=4", machine=NVIDIA)
    assert (layout.context, layout.data) == (4, 2)


@pytest.mark.megatron
def test_the_schedules_are_nemos_whose_rate_follows_from_the_step() -> None:
    from nemo.core.optim.lr_scheduler import AVAILABLE_SCHEDULERS, EPOCH_SCHEDULERS

    assert set(settings.SCHEDULES) == AVAILABLE_SCHEDULERS.keys() - EPOCH_SCHEDULERS - {"StepLR", "CyclicLR", "CosineAnnealingExp"}


@pytest.mark.parametrize(
    ("warmup", "constant", "steps", "fitted"),
    [(50, 50, 101, (50, 50)), (50, 50, 100, (10, 0)), (50, 50, 99, (9, 0)), (3, 1000, 100, (3, 0)), (None, None, 1, (None, None))],
)
def test_a_schedule_keeps_steps_between_its_warm_up_and_its_end(warmup, constant, steps, fitted) -> None:
    sched = OmegaConf.create({"warmup_steps": warmup, "constant_steps": constant})
    settings.fit_schedule(sched, steps)
    assert (sched.warmup_steps, sched.constant_steps, sched.max_steps) == (*fitted, steps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window_size": [128, 0]}, "only TransformerEngine computes"),
        ({"sequence_parallel": True, "normalization": "layernorm1p"}, "want whole sequences"),
        ({"mcore_gpt": False}, "only Megatron-Core models"),
    ],
)
def test_what_the_layers_here_do_not_compute_is_refused(change: dict[str, object], message: str) -> None:
    model = OmegaConf.merge(OmegaConf.load(DEFAULTS), change)
    with pytest.raises(ConfigError, match=message):
        check_architecture(model, Parallelism(world_size=1, tensor=1, pipeline=1))


@pytest.mark.parametrize(
    ("tensor", "transformer_engine", "message"),
    [(2, False, "tensor_model_parallel_size=2: an olmo2 model normalizes"), (1, True, "where TransformerEngine is not installed")],
)
def test_what_a_family_does_not_have_under_a_layout_is_refused(tensor: int, transformer_engine: bool, message: str) -> None:
    model = OmegaConf.merge(OmegaConf.load(DEFAULTS), {"hf_model_type": "olmo2", "qk_layernorm": True})
    with pytest.raises(ConfigError, match=message):
        check_architecture(model, Parallelism(world_size=2, tensor=tensor, pipeline=1), transformer_engine=transformer_engine)


@pytest.mark.parametrize("change", [{"qkv_bias": True, "qk_layernorm": True}, {"window_size": [128, 0]}, {"bias": True}])
def test_a_model_that_cannot_be_exported_is_not_trained_to_be(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        check_exportable(OmegaConf.merge(OmegaConf.load(DEFAULTS), change), 32000)
    check_exportable(OmegaConf.load(DEFAULTS), 32000)


def test_markers_that_are_spelled_are_refused(tmp_path: Path) -> None:
    from nemo_steerlm.core.template import ChatTokens
    from nemo_steerlm.core.tokenization import load_tokenizer
    from nemo_steerlm.formats.tokenizer_files import write_tokenizer_files
    from tests.inputs import STORIES

    bare = load_tokenizer(STORIES / "tokenizer.model")
    with pytest.raises(ConfigError, match=r"base\.nemo: chat token '<extra_id_0>' is no single token"):
        require_markers(bare, ChatTokens().markers, "base.nemo")
    require_markers(write_tokenizer_files(STORIES, tmp_path, ChatTokens().markers), ChatTokens().markers, "base.nemo")
    require_markers(bare, ("\x00", "\x11", "\x12"), "base.nemo")  # one byte is one token


@pytest.mark.parametrize(
    "override",
    [
        "model.resume_from_checkpoint=/runs/x/checkpoints/step=00000003",
        "model.restore_from_path=/models/a=b (1)/base.nemo",
        "model.data.train_ds.file_path=/data/{x}, y.jsonl",
        "exp_manager.explicit_log_dir=/runs/lr=1e-5",
        "steerlm.info=/runs/a=b/steerlm.json",
    ],
)
def test_paths_may_be_written_as_shells_pass_them(override: str) -> None:
    key, _, value = override.partition("=")
    assert OmegaConf.select(config.compose([override]), key) == value
