"""One training under many layouts, in real processes over gloo: each has the loss curve of one process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nemo_steerlm.formats.families import FAMILIES
from nemo_steerlm.megatron.cpu import multiplies_in_bf16
from tests.inputs import STORIES
from tests.training.records import Records
from tests.training.test_train import ENVIRONMENT, at, losses, metrics, settings

pytestmark = [pytest.mark.megatron, pytest.mark.distributed]

TP, PP = "model.tensor_model_parallel_size=2", "model.pipeline_model_parallel_size=2"
SHARDED = "model.optim.name=mcore_distributed_optim"
LORA = ["model.peft.peft_scheme=lora", "model.peft.lora_tuning.target_modules=[all]"]
NO_NEMO = "exp_manager.checkpoint_callback_params.save_nemo_on_train_end=false"
NOTHING_SAVED = [NO_NEMO, "exp_manager.create_checkpoint_callback=false"]
SECOND_SAVED = [NO_NEMO, "trainer.sft.save_interval=2", "exp_manager.checkpoint_callback_params.save_top_k=2"]
QWEN3 = "model.restore_from_path={out}/qwen3"
EXPORTED = ["steerlm.export_dir={out}/{name}/hf"]
UNCHANGED = ["trainer.sft.max_steps=1", "model.optim.lr=1e-12", "model.optim.sched.min_lr=0"]
DROPOUT = ["model.hidden_dropout=0.5", "model.attention_dropout=0.5", "trainer.sft.max_steps=2", *NOTHING_SAVED]

LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "one": (1, NOTHING_SAVED),
    "tp": (2, [TP, "exp_manager.create_checkpoint_callback=false", "steerlm.nemo_folder_above_gb=0"]),
    "tp with its sequence shared": (2, [TP, "model.sequence_parallel=true", *NOTHING_SAVED]),
    "pp": (2, [PP, *NOTHING_SAVED]),
    "dp": (2, NOTHING_SAVED),
    "tp and pp": (4, [TP, PP, *NOTHING_SAVED]),
    "pp in bf16": (2, [PP, "trainer.precision=bf16", *NOTHING_SAVED]),
    "tp in bf16": (2, [TP, "trainer.precision=bf16", *NOTHING_SAVED]),
    "qk norms": (1, [QWEN3, *NOTHING_SAVED]),
    "qk norms tp": (2, [QWEN3, TP, *NOTHING_SAVED]),
    "qk norms tp with its sequence shared": (2, [QWEN3, TP, "model.sequence_parallel=true", *NOTHING_SAVED]),
    "lora one": (1, [*LORA, *EXPORTED, *NOTHING_SAVED]),
    "lora tp": (2, [TP, *LORA, *EXPORTED, *NOTHING_SAVED]),
    "lora pp": (2, [PP, *LORA, *EXPORTED, *NOTHING_SAVED]),
    "lora unchanged": (1, [*LORA, *EXPORTED, *UNCHANGED, *NOTHING_SAVED]),
    "tp to pp": (2, [PP, "model.restore_from_path={out}/tp/checkpoints/megatron_gpt_sft.nemo", *UNCHANGED, *NOTHING_SAVED]),
    "dropout tp": (2, [TP, *DROPOUT]),
    "dropout tp with its sequence shared": (2, [TP, *DROPOUT, "model.sequence_parallel=true"]),
    "dropout dp": (2, DROPOUT),
    "sharded one": (1, [SHARDED, *NOTHING_SAVED]),
    "sharded dp": (2, [SHARDED, *SECOND_SAVED]),
    "sharded dp to tp": (2, [SHARDED, TP, "model.resume_from_checkpoint={out}/sharded dp/checkpoints/step=00000002", *NOTHING_SAVED]),
}
"""How many processes, and the settings beside those that all trainings share."""

CONFIGS: dict[str, dict[str, Any]] = {
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": None},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"]},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"]},
    "phi3": {"architectures": ["Phi3ForCausalLM"]},
    "granite": {
        "architectures": ["GraniteForCausalLM"],
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.4,
        "residual_multiplier": 0.8,
        "logits_scaling": 2.0,
    },
    "olmo2": {"architectures": ["Olmo2ForCausalLM"]},
    "smollm3": {"architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [1, 0]},
}
"""What is theirs in ``config.json``, of every family but Llama, which the other trainings are of."""

for family in CONFIGS:
    adapted = [f"model.restore_from_path={{out}}/{family}", *LORA, *NOTHING_SAVED]
    LAYOUTS |= {f"{family} one": (1, adapted), f"{family} tp": (2, [TP, *adapted]), f"{family} pp": (2, [PP, *adapted])}

Trained = Callable[[str], Path]


@pytest.fixture(scope="module")
def trained(records: Records, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """Trains under the layout of this name, once, when it is first asked for; where it was done."""
    out = tmp_path_factory.mktemp("layouts")
    base = two_layers(tmp_path_factory.mktemp("base"))
    for name in CONFIGS:
        as_family(name, base, out / name)
    common = [
        *settings(base, records(24), records(5, start=24), out / "x", "exp_manager.create_tensorboard_logger=false"),
        "model.optim.sched.warmup_steps=1",
        "model.optim.sched.constant_steps=0",
        f"steerlm.token_dir={out}/tokens",
    ]
    done: set[str] = set()
    with (out / "log").open("w") as log:
        command = [sys.executable, str(Path(__file__).with_name("layouts.py"))]
        process = subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdin is not None
        assert process.stdout is not None

        def train(name: str) -> Path:
            if name not in done:
                size, own = LAYOUTS[name]
                arguments = [
                    *common,
                    f"trainer.devices={size}",
                    *at(out / name),
                    *(argument.format(out=out, name=name) for argument in own),
                ]
                draws = str(out / name) if name.startswith("dropout") else None
                process.stdin.write(json.dumps({"size": size, "arguments": arguments, "draws": draws}) + "\n")
                process.stdin.flush()
                codes = process.stdout.readline()
                assert codes, (out / "log").read_text()[-5000:]
                assert not any(json.loads(codes)), (codes, (out / "log").read_text()[-5000:])
                done.add(name)
            return out / name

        yield train
        process.kill()
        process.wait()


def two_layers(folder: Path) -> Path:
    """The first two layers of the smallest model there is: every pipeline stage has one."""
    weights = load_file(STORIES / "model.safetensors")
    left_out = tuple(f"model.layers.{layer}." for layer in range(2, 5))
    save_file({name: tensor for name, tensor in weights.items() if not name.startswith(left_out)}, folder / "model.safetensors")
    config = json.loads((STORIES / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    (folder / "tokenizer.model").write_bytes((STORIES / "tokenizer.model").read_bytes())
    return folder


def as_family(family: str, base: Path, folder: Path) -> None:
    """The same layers as another family's, whose own norms and biases have weights that differ from each other."""
    shutil.copytree(base, folder)
    config = {**json.loads((base / "config.json").read_text()), "model_type": family, **CONFIGS[family]}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(base / "model.safetensors")

    def vector(size: int) -> Any:
        return np.linspace(0.5, 1.5, size, dtype=np.float32)

    for layer in ("model.layers.0.", "model.layers.1."):
        if family == "qwen2":
            weights |= {f"{layer}self_attn.{x}_proj.bias": vector(64 if x == "q" else 32) for x in "qkv"}
        elif family == "qwen3":
            weights |= {f"{layer}self_attn.{x}_norm.weight": vector(8) for x in "qk"}
        elif family == "olmo2":
            del weights[f"{layer}input_layernorm.weight"]
            weights |= {f"{layer}self_attn.q_norm.weight": vector(64), f"{layer}self_attn.k_norm.weight": vector(32)}
            weights[f"{layer}post_feedforward_layernorm.weight"] = vector(64)
        elif family == "phi3":
            for parts, fused in ((("q", "k", "v"), "self_attn.{}_proj"), (("gate", "up"), "mlp.{}_proj")):
                found = [weights.pop(f"{layer}{fused.format(part)}.weight") for part in parts]
                name = "qkv" if len(parts) == 3 else "gate_up"
                weights[f"{layer}{fused.format(name)}.weight"] = np.concatenate(found)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize("layout", ["tp", "tp with its sequence shared", "pp", "dp", "tp and pp"])
def test_a_layout_has_the_loss_curve_of_one_process(trained: Trained, layout: str) -> None:
    one, spread = trained("one"), trained(layout)
    assert len(losses(one)) == 3
    assert losses(spread) == pytest.approx(losses(one), abs=1e-5)
    assert metrics(spread)["validation_loss"] == pytest.approx(metrics(one)["validation_loss"], abs=1e-5)


@pytest.mark.parametrize("layout", ["qk norms tp", "qk norms tp with its sequence shared"])
def test_norms_of_queries_and_keys_learn_from_every_ranks_heads(trained: Trained, layout: str) -> None:
    one, spread = metrics(trained("qk norms"))["train"], metrics(trained(layout))["train"]
    assert [e["loss"] for e in spread] == pytest.approx([e["loss"] for e in one], abs=1e-5)
    assert [e["grad_norm"] for e in spread] == pytest.approx([e["grad_norm"] for e in one], rel=1e-4)


@pytest.mark.parametrize("layout", ["lora pp", "lora tp"])
def test_adapters_and_marker_rows_learn_under_each_layout(trained: Trained, layout: str) -> None:
    """Adapters start at other random numbers under another layout, so the curves are near each other and no more."""
    one, spread = losses(trained("lora one")), losses(trained(layout))
    assert spread[0] == pytest.approx(one[0], abs=1e-5)
    assert spread == pytest.approx(one, rel=2e-2)
    assert spread[-1] < spread[0]


@pytest.mark.parametrize("layout", ["lora one", "lora pp", "lora tp"])
def test_the_rows_of_added_chat_tokens_are_learned_beside_adapters_and_no_other_rows(trained: Trained, layout: str) -> None:
    """In the exported model: the gradient alone, which another test compares, does not show that a step changes anything."""
    before, after = (load_file(trained(name) / "hf/model.safetensors")["model.embed_tokens.weight"] for name in ("lora unchanged", layout))
    moved = np.abs(after - before).max(axis=1)
    assert moved[:-3].max() == 0
    assert moved[-3:].min() > 1e-4


def test_every_family_is_here() -> None:
    assert CONFIGS.keys() == FAMILIES.keys() - {"llama"}


IN_MAKE_TEST = {("qwen2", "tp"), ("phi3", "tp"), ("granite", "pp"), ("olmo2", "pp"), ("smollm3", "pp")}
"""What is a family's own, where a layout divides it: the others are ``slow``."""


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        pytest.param(family, layout, marks=() if (family, layout) in IN_MAKE_TEST else pytest.mark.slow)
        for family in CONFIGS
        for layout in ("tp", "pp")
        if (family, layout) != ("olmo2", "tp")
    ],
)
def test_every_family_says_the_same_under_each_layout_and_learns_by_adapters(trained: Trained, family: str, layout: str) -> None:
    """Before the first step adapters add nothing, so the loss is that of the base's logits. ``test_settings.py`` has OLMo 2 under TP."""
    one, spread = losses(trained(f"{family} one")), losses(trained(f"{family} {layout}"))
    assert one[-1] < one[0]
    assert spread[0] == pytest.approx(one[0], abs=1e-5)
    assert spread[-1] < spread[0]


@pytest.mark.parametrize("layout", ["tp in bf16", "pp in bf16"])
def test_bf16_is_computed_under_each_layout_too(trained: Trained, layout: str) -> None:
    exact, rough = losses(trained("one")), losses(trained(layout))
    assert rough == pytest.approx(exact, rel=1e-2)
    assert (rough != pytest.approx(exact, abs=1e-5)) == multiplies_in_bf16()


def test_a_nemo_of_one_layout_loads_under_another(trained: Trained) -> None:
    """What TP 2 saved, as a folder, says the same under PP 2, where it is trained at a rate that changes nothing."""
    saved, loaded = trained("tp"), trained("tp to pp")
    assert sorted(path.name for path in (saved / "checkpoints").iterdir()) == ["megatron_gpt_sft.nemo"]
    assert (saved / "checkpoints" / "megatron_gpt_sft.nemo" / "model_weights" / "metadata.json").is_file()
    assert metrics(loaded)["validation_loss"] == pytest.approx(metrics(saved)["validation_loss"], abs=1e-5)
    assert abs(metrics(loaded)["validation_loss"] - losses(saved)[0]) > 1e-3  # the weights are not the base model's


@pytest.mark.parametrize(
    ("layout", "hidden_alike"), [("dropout tp", True), ("dropout tp with its sequence shared", False), ("dropout dp", False)]
)
def test_dropout_hits_the_same_places_where_ranks_hold_the_same_and_others_elsewhere(
    trained: Trained, layout: str, hidden_alike: bool
) -> None:
    """Tensor-parallel ranks have the same hidden states, unless they share the sequence out, and other heads."""
    folder = trained(layout)
    one, other = (json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))
    assert len(one["dropout"]) == len(other["dropout"]) > 4
    assert len(one["scaled_dot_product_attention"]) == len(other["scaled_dot_product_attention"]) > 4
    alike = {name: [a == b for a, b in zip(states, other[name], strict=True)] for name, states in one.items()}
    assert set(alike["dropout"]) == {hidden_alike}
    assert set(alike["scaled_dot_product_attention"]) == {False}
    assert len(set(one["dropout"])) == len(one["dropout"])


@pytest.mark.slow
def test_the_sharded_optimizer_steps_as_torchs_and_resumes_under_another_layout(trained: Trained) -> None:
    """What two data-parallel ranks saved after two steps is gone on from under TP 2."""
    alone = trained("sharded one")
    steps, of_torch = metrics(alone)["train"], metrics(trained("one"))["train"]
    assert [e["loss"] for e in steps] == pytest.approx([e["loss"] for e in of_torch], rel=1e-4)
    assert [e["grad_norm"] for e in steps] == pytest.approx([e["grad_norm"] for e in of_torch], rel=1e-2)
    assert losses(trained("sharded dp")) == pytest.approx(losses(alone), abs=1e-5)
    resumed = trained("sharded dp to tp")
    assert losses(resumed) == pytest.approx(losses(alone), abs=1e-5)
    assert metrics(resumed)["validation_loss"] == pytest.approx(metrics(alone)["validation_loss"], abs=1e-5)
