from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from omegaconf import DictConfig, OmegaConf

from nemo_steerlm.core.attributes import preset
from nemo_steerlm.core.errors import ConfigError, SteerLMError, UsageError
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.template import ChatTokens
from nemo_steerlm.training import checkpoints, settings
from nemo_steerlm.training import config as train_config
from nemo_steerlm.training.plan import Plan, plan_training
from tests.inputs import STORIES
from tests.training.records import Records


def overrides(train: Path, validation: Path | None = None, **more: object) -> list[str]:
    settings: dict[str, object] = {
        "model.restore_from_path": STORIES,
        "model.data.train_ds.file_path": train,
        "model.data.train_ds.global_batch_size": 8,
        "model.data.validation_ds.file_path": validation or train,
        "model.data.validation_ds.global_batch_size": 4,
        **{name.replace("__", "."): value for name, value in more.items()},
    }
    return [f"{name}={'null' if value is None else value}" for name, value in settings.items()]


LORA = {"model__peft__peft_scheme": "lora"}
SHARED_SEQUENCES = {"trainer__devices": 2, "model__tensor_model_parallel_size": 2, "model__sequence_parallel": "true"}


def planned(tmp_path: Path, arguments: list[str]) -> Plan:
    scratch = tmp_path / "tokenizer"
    scratch.mkdir(exist_ok=True)
    return plan_training(train_config.compose([*arguments, f"exp_manager.explicit_log_dir={tmp_path / 'log'}"]), scratch)


def test_an_unknown_key_names_the_nearest_one() -> None:
    with pytest.raises(UsageError, match=r"unknown key model\.data\.train_ds\.micro_batchsize; did you mean .*micro_batch_size"):
        train_config.compose(["model.data.train_ds.micro_batchsize=2"])


@pytest.mark.parametrize(
    ("written", "meant"), [("x11", "\x11"), ("\\x11", "\x11"), ("<extra_id_1>", "<extra_id_1>"), ("'<extra_id_1>'", "<extra_id_1>")]
)
def test_chat_tokens_may_be_written_as_shells_pass_them(written: str, meant: str) -> None:
    cfg = train_config.compose([f"model.data.chat_prompt_tokens.turn_start={written}"])
    assert train_config.chat_tokens(cfg, None).turn_start == meant


def test_a_plan_knows_steps_intervals_and_what_the_model_will_be(tmp_path: Path, records: Records) -> None:
    found = planned(tmp_path, overrides(records(40), trainer__sft__max_epochs=2, trainer__sft__val_check_interval=0.4))
    assert (found.steps, found.validate_every, found.save_every) == (10, 2, 2)
    assert found.info is not None
    assert (found.info.kind, found.info.attributes.name, found.info.system) == ("value", "oasst", "A chat.\n\n")
    assert (found.info.max_seq_length, found.info.labelled) == (512, ("Assistant", "User"))
    assert found.stage == "train-value"
    assert found.model_config.num_layers == 5  # the base model's, not the default


def test_several_files_are_mixed_by_their_weights(tmp_path: Path, records: Records) -> None:
    """Attributes of one file are known beside those of the other, and another weight is another training."""
    one, other = records(16), tmp_path / "other.jsonl"
    other.write_text(records(8, start=16).read_text().replace("toxicity", "humor"))
    arguments = [a for a in overrides(one, other) if "train_ds.file_path" not in a]
    files = f"model.data.train_ds.file_names=[{one},{other}]"
    found = planned(tmp_path, [*arguments, files, "model.data.train_ds.weights=[0.5,3]"])
    assert found.steps == (8 + 24) // 8
    assert found.info.attributes.name == "oasst"
    assert set(found.train.info.labels) == {"quality", "toxicity", "humor"}
    assert {v.attribute for i in range(24) for v in found.train.value_tokens(i)} == {"quality", "toxicity", "humor"}
    assert found.state.fingerprint["data"] != planned(tmp_path, [*arguments, files]).state.fingerprint["data"]
    kinds = f"model.data.train_ds.file_names=[{one},{records(8, 'VALUE_TO_TEXT')}]"
    with pytest.raises(ConfigError, match="train on one kind"):
        planned(tmp_path, [*arguments, kinds])


def test_max_steps_ends_a_training_early(tmp_path: Path, records: Records) -> None:
    assert planned(tmp_path, overrides(records(40), trainer__sft__max_epochs=2, trainer__sft__max_steps=3)).steps == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__data__train_ds__micro_batch_size": 3}, "no multiple of micro_batch_size=3"),
        ({"trainer__devices": 3}, "data parallel size 3"),
        ({"trainer__devices": 2, "model__tensor_model_parallel_size": 3}, "no multiple of tensor_model_parallel_size=3"),
        ({"trainer__devices": 2, "model__pipeline_model_parallel_size": 2}, "does not divide the model's num_layers=5"),
        ({"model__context_parallel_size": 2}, "context parallelism"),
        ({"model__data__train_ds__global_batch_size": 64}, "has 40 records, fewer than one batch"),
        ({"model__optim__sched__min_lr": 1}, "must be above"),
        ({"trainer__precision": 16}, "fp16 is not supported"),
        ({"model__peft__peft_scheme": "ptuning"}, "write lora or none"),
        ({**LORA, "model__peft__lora_tuning__target_modules": "[mlp,fc3]"}, "unknown fc3; known: attention_qkv"),
        ({**LORA, "model__peft__lora_tuning__layer_selection": "[5,6]"}, "no layer 6; they are numbered 1 to 5"),
        ({**LORA, "model__peft__lora_tuning__weight_tying": "true"}, "without weight_tying"),
        ({**LORA, **SHARED_SEQUENCES}, "adapters of shared sequences want TransformerEngine"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_a_model_is_loaded(
    tmp_path: Path, records: Records, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(tmp_path, overrides(records(40), **changes))


def test_adapters_of_a_mixture_of_experts_are_refused() -> None:
    model = train_config.compose(["model.peft.peft_scheme=lora"]).model
    OmegaConf.set_struct(model, False)
    with pytest.raises(ConfigError, match="the model has 4 experts a layer"):
        settings.check_adapters(OmegaConf.merge(model, {"num_moe_experts": 4}))


def test_records_and_description_have_to_agree(tmp_path: Path, records: Records) -> None:
    info = ModelInfo(kind="steer", attributes=preset("oasst"))
    info.save(tmp_path)
    with pytest.raises(ConfigError, match=r"describes a steer model, but .* teaches a value model"):
        planned(tmp_path, overrides(records(40), steerlm__info=tmp_path / "steerlm.json"))


def test_training_and_validation_are_of_one_kind(tmp_path: Path, records: Records) -> None:
    with pytest.raises(ConfigError, match="train on one kind"):
        planned(tmp_path, overrides(records(40), records(4, "VALUE_TO_TEXT")))


def test_tokens_given_twice_have_to_agree(tmp_path: Path) -> None:
    info = ModelInfo(kind="value", attributes=preset("oasst"), tokens=ChatTokens(turn_start="<t>"))
    cfg = train_config.compose(["model.data.chat_prompt_tokens.turn_start=<u>"])
    with pytest.raises(ConfigError, match=r"differ from the tokens of steerlm\.info"):
        train_config.chat_tokens(cfg, info)
    assert train_config.chat_tokens(train_config.compose([]), info) == info.tokens


def test_labels_outside_every_preset_make_a_schema_of_their_own(tmp_path: Path, records: Records) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(records(8).read_text().replace("quality", "wit").replace(",lang:en", ""))
    info = planned(tmp_path, overrides(path)).info
    assert info is not None
    assert info.attributes.names == ("wit", "toxicity")
    assert not info.attributes.languages


def write_checkpoint(tmp_path: Path, found: Plan) -> Path:
    path = tmp_path / "log" / "checkpoints" / "step=00000003"
    path.mkdir(parents=True)
    found.state.step = 3
    (path / checkpoints.STATE_FILE).write_bytes(msgspec.json.encode(found.state))
    return path


def test_only_the_same_training_goes_on_from_a_checkpoint(tmp_path: Path, records: Records) -> None:
    train = records(40)
    path = write_checkpoint(tmp_path, planned(tmp_path, overrides(train)))
    assert planned(tmp_path, overrides(train)).checkpoint == path
    assert planned(tmp_path, overrides(train, exp_manager__resume_if_exists=False)).checkpoint is None
    with pytest.raises(ConfigError, match=r"another training's checkpoint: it differs in stage \(train-value, not train-steer\) and data"):
        planned(tmp_path, overrides(records(40, "VALUE_TO_TEXT")))
    with pytest.raises(ConfigError, match="differs in data"):
        planned(tmp_path, overrides(records(40, start=1)))
    (path / checkpoints.STATE_FILE).unlink()  # killed while it was saved
    assert planned(tmp_path, overrides(train)).checkpoint is None


def test_refusals_come_before_nemo_is_imported_and_with_their_exit_codes(tmp_path: Path, records: Records) -> None:
    bare = tmp_path / "bare.jsonl"
    bare.write_text(json.dumps({**json.loads(records(1).read_text()), "conversations": [{"from": "User", "value": "x"}]}) + "\n")
    script = (
        "import sys, json\n"
        "from nemo_steerlm.training.train import main\n"
        "from nemo_steerlm.core.errors import SteerLMError\n"
        "codes = []\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        main(arguments)\n"
        "    except SteerLMError as error:\n"
        "        codes.append(error.exit_code)\n"
        "assert not {'nemo', 'megatron', 'lightning'} & set(sys.modules)\n"
        "print(codes)\n"
    )
    runs = [overrides(bare), overrides(records(9), model__data__train_ds__micro_batch_size=3), ["no.such.key=1"]]
    done = subprocess.run([sys.executable, "-c", script, json.dumps(runs)], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "[65, 78, 2]", done.stderr


def test_a_base_model_that_is_not_there_is_a_usage_error(tmp_path: Path, records: Records) -> None:
    with pytest.raises(UsageError, match="no such file"):
        planned(tmp_path, [*overrides(records(8)), f"model.restore_from_path={tmp_path / 'none.nemo'}"])
    (tmp_path / "torn.nemo").write_bytes(b"torn")
    with pytest.raises(SteerLMError, match=r"torn\.nemo: not a \.nemo"):
        planned(tmp_path, [*overrides(records(8)), f"model.restore_from_path={tmp_path / 'torn.nemo'}"])


def test_defaults_are_complete() -> None:
    assert isinstance(train_config.compose([]), DictConfig)
