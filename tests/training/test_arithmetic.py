"""Which precision, masters and optimizer a plan asks for, for every base, precision, scheme and machine. No numbers are computed here."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from nemo_steerlm.core.errors import ConfigError
from nemo_steerlm.core.template import ChatTokens
from nemo_steerlm.formats.tokenizer_files import nemo_tokenizer_config, write_tokenizer_files
from nemo_steerlm.megatron.machine import Machine, fitted, portable
from nemo_steerlm.megatron.model_config import DEFAULTS
from nemo_steerlm.training import config
from nemo_steerlm.training.arithmetic import check_optimizer
from nemo_steerlm.training.base_model import load_base_config, model_config
from tests.inputs import STORIES

CPU = Machine(cuda=False)
PIP = Machine(cuda=True)
"""A GPU and what pip installs."""
TE = Machine(cuda=True, transformer_engine=True)
NVIDIA = Machine(cuda=True, apex=True, transformer_engine=True)

FULL, LORA = "none", "lora"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[str], DictConfig]]:
    """Base models of each kind; the unpacked .nemo says what one converted from fp16 on a machine without a GPU would say."""
    nemo = tmp_path_factory.mktemp("base.nemo")
    write_tokenizer_files(STORIES, nemo, ChatTokens().markers)
    tokenizer = nemo_tokenizer_config(nemo)
    tokenizer = {key: Path(v).name if isinstance(v, str) and Path(v).exists() else v for key, v in tokenizer.items()}
    stored = fitted(OmegaConf.merge(OmegaConf.load(DEFAULTS), {"tokenizer": tokenizer}), CPU)
    OmegaConf.save(OmegaConf.merge(stored, {"precision": "16"}), nemo / "model_config.yaml")
    random = [f"+model.tokenizer={{library: sentencepiece, model: {nemo / 'tokenizer.model'}}}", "model.restore_from_path=null"]
    given = {"folder": [f"model.restore_from_path={STORIES}"], "nemo": [f"model.restore_from_path={nemo}"], "random": random}
    scratch = tmp_path_factory.mktemp("tokenizer")
    return {kind: (base, load_base_config(config.compose(base), ChatTokens(), scratch)[0]) for kind, base in given.items()}


@pytest.mark.parametrize("base", ["folder", "nemo", "random"])
@pytest.mark.parametrize(
    ("machine", "precision", "scheme", "name", "wanted"),
    [
        # precision, O2, optimizer
        (CPU, "bf16", FULL, None, ("32", False, "adamw")),
        (CPU, "32", FULL, None, ("32", False, "adamw")),
        (CPU, "32", FULL, "mcore_distributed_optim", ("32", False, "mcore_distributed_optim")),
        (CPU, "bf16", LORA, None, ("32", False, "adamw")),
        (PIP, "bf16", FULL, None, ("bf16", True, "mcore_distributed_optim")),
        (PIP, "bf16-mixed", FULL, None, ("bf16", True, "mcore_distributed_optim")),
        (PIP, "32", FULL, None, ("32", False, "mcore_distributed_optim")),
        (PIP, "bf16", FULL, "adamw", ("bf16", False, "adamw")),
        (PIP, "bf16", LORA, None, ("bf16", False, "adamw")),
        (PIP, "32", LORA, "mcore_distributed_optim", ("32", False, "adamw")),
        (TE, "bf16", FULL, None, ("bf16", True, "mcore_distributed_optim")),
        (NVIDIA, "bf16", FULL, None, ("bf16", False, "distributed_fused_adam")),
        (NVIDIA, "bf16", FULL, "mcore_distributed_optim", ("bf16", True, "mcore_distributed_optim")),
        (NVIDIA, "32", FULL, None, ("32", False, "distributed_fused_adam")),
        (NVIDIA, "bf16", LORA, None, ("bf16", False, "adamw")),
    ],
)
def test_a_plan_asks_for_what_was_configured(
    bases: dict[str, tuple[list[str], DictConfig]],
    base: str,
    machine: Machine,
    precision: str,
    scheme: str,
    name: str | None,
    wanted: tuple[str, bool, str],
) -> None:
    arguments, stored = bases[base]
    given = [*arguments, f"trainer.precision={precision}", f"model.peft.peft_scheme={scheme}"]
    model = model_config(stored, config.compose(given + ([f"model.optim.name={name}"] if name else [])), machine)
    assert (model.precision, model.megatron_amp_O2, model.optim.name) == wanted
    assert model.transformer_engine == machine.transformer_engine
    assert model.use_cpu_initialization != machine.cuda
    assert model.batch_p2p_comm == machine.cuda
    assert model.masked_softmax_fusion == machine.transformer_engine


@pytest.mark.parametrize(
    ("tensor", "scheme", "wanted"), [(1, FULL, "distributed_fused_adam"), (2, FULL, "mcore_distributed_optim"), (2, LORA, "adamw")]
)
def test_norms_of_queries_and_keys_need_an_optimizer_that_adds_them_up(tensor: int, scheme: str, wanted: str) -> None:
    arguments = [f"model.tensor_model_parallel_size={tensor}", f"model.peft.peft_scheme={scheme}"]
    base = OmegaConf.create({"qk_layernorm": True, "tokenizer": {"library": "sentencepiece"}})
    assert model_config(base, config.compose(arguments), NVIDIA).optim.name == wanted


def test_o2_with_an_optimizer_that_has_no_masters_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"write model\.optim\.name=mcore_distributed_optim"):
        check_optimizer("adamw", o2=True)


@pytest.mark.parametrize("machine", [CPU, PIP, TE, NVIDIA], ids=["cpu", "pip", "te", "nvidia"])
def test_what_is_stored_says_nothing_of_the_machine(machine: Machine) -> None:
    defaults = OmegaConf.load(DEFAULTS)
    assert {**portable(fitted(defaults, machine)), "precision": "32"} == {**portable(fitted(defaults, NVIDIA)), "precision": "32"}
    stored = portable(fitted(defaults, CPU))
    again, anew = fitted(stored, machine), fitted(defaults, machine)
    assert {key: again[key] for key in anew if key != "precision"} == {key: anew[key] for key in anew if key != "precision"}
    assert not {"use_cpu_initialization", "batch_p2p_comm"} & set(portable(fitted(defaults, machine)))
