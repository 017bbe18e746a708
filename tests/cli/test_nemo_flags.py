"""The flags of NeMo's server: known ones are taken, wrong ones refused, and those that do nothing here named once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_steerlm.cli.nemo_flags import DEFAULTS, EFFECTIVE, ignored_flags, read_flags
from nemo_steerlm.core.errors import ConfigError, UsageError

EXAMPLE = Path(__file__).parents[2] / "examples" / "megatron_gpt_eval.py"
NEEDED = ("gpt_model_file=m.nemo", "server=True")


def test_flags_are_read_over_their_defaults() -> None:
    flags = read_flags([*NEEDED, "port=1424", "+trainer.devices=2", "tensor_model_parallel_size=2", "pipeline_model_parallel_size=1"])
    assert flags == DEFAULTS | {
        "gpt_model_file": "m.nemo",
        "server": True,
        "port": 1424,
        "trainer.devices": 2,
        "tensor_model_parallel_size": 2,
        "pipeline_model_parallel_size": 1,
    }


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("prot=1", "unknown flag prot: did you mean port"),
        ("port", "write key=value"),
        ("port=x", "port=x: write a whole number"),
        ("server=False", "server=True is needed"),
        ("insecure=1", "write True or False"),
    ],
)
def test_a_wrong_flag_is_a_sentence(flag: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_flags([*NEEDED, flag])


def test_sizes_that_do_not_fit_the_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match="should equal tensor_model_parallel_size"):
        read_flags([*NEEDED, "tensor_model_parallel_size=2", "pipeline_model_parallel_size=1"])


def test_every_flag_with_an_effect_is_a_flag() -> None:
    assert set(EFFECTIVE) < set(DEFAULTS)
    assert ignored_flags([*NEEDED, "+inference.greedy=True", "inference.greedy=False", "web_server=False"]) == [
        "inference.greedy",
        "web_server",
    ]


def test_flags_without_effect_are_named_once_in_the_log(tmp_path: Path) -> None:
    flags = (f"gpt_model_file={tmp_path}", "server=True", "port=0", "trainer.accelerator=cpu", "inference.top_p=0.5", "share=False")
    done = subprocess.run([sys.executable, str(EXAMPLE), *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 2, "there is no model in that folder"
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    named = [line for line in lines if "without effect" in line["message"]]
    assert [(line["level"], line["message"]) for line in named] == [
        ("warning", "flags without effect on this server: inference.top_p, share")
    ]
