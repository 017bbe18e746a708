"""The flags of NeMo's ``megatron_gpt_eval.py`` (v1.22.0 to v2.4.1, ``conf/megatron_gpt_inference.yaml``), as ``key=value``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from nemo_steerlm.core.errors import ConfigError, UsageError, nearest
from nemo_steerlm.inference.ranks import require_devices

DEFAULTS: dict[str, Any] = {
    "gpt_model_file": None,
    "server": False,
    "port": 5555,
    "host": None,
    "insecure": False,
    "web_server": False,
    "share": False,
    "username": "test",
    "password": "test2",
    "web_port": 9889,
    "chat": False,
    "prompts": None,
    "tensor_model_parallel_size": -1,
    "pipeline_model_parallel_size": -1,
    "pipeline_model_parallel_split_rank": -1,
    "megatron_amp_O2": False,
    "checkpoint_dir": None,
    "checkpoint_name": None,
    "hparams_file": None,
    "trainer.devices": 1,
    "trainer.num_nodes": 1,
    "trainer.accelerator": "gpu",
    "trainer.logger": False,
    "trainer.precision": 16,
    "trainer.use_distributed_sampler": False,
    "inference.greedy": False,
    "inference.top_k": 0,
    "inference.top_p": 0.9,
    "inference.temperature": 1.0,
    "inference.add_BOS": True,
    "inference.tokens_to_generate": 30,
    "inference.all_probs": False,
    "inference.repetition_penalty": 1.2,
    "inference.min_tokens_to_generate": 0,
    "inference.compute_logprob": False,
    "inference.end_strings": ["<|endoftext|>"],
    "chatbot_config.value": False,
    "chatbot_config.attributes": None,
    "chatbot_config.user": "User",
    "chatbot_config.assistant": "Assistant",
    "chatbot_config.system": "",
}
"""Every flag, and what it is when it is not given.

``host`` and ``insecure`` are this project's own. Upstream's server listens everywhere and asks nobody for a token; this one listens
everywhere where ``STEERLM_API_KEY`` has one or ``insecure=True`` says that none is meant, else on 127.0.0.1.
"""


def read_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """All flags. Raises UsageError for one that does not exist, ConfigError where the parallel sizes do not fit the devices."""
    flags = dict(DEFAULTS)
    for argument in arguments:
        key, equals, text = argument.partition("=")
        key = key.lstrip("+")
        if not equals:
            raise UsageError(f"{argument}: write key=value")
        if key not in DEFAULTS:
            raise UsageError(f"unknown flag {key}: {nearest(key, DEFAULTS)}known: {', '.join(DEFAULTS)}")
        try:
            flags[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"{argument}: cannot be read as a value") from error
    _check(flags)
    return flags


def _check(flags: dict[str, Any]) -> None:
    if not flags["gpt_model_file"]:
        raise UsageError("gpt_model_file=... is needed: a .nemo file or an exported model folder")
    if flags["server"] is not True:
        raise UsageError("server=True is needed: to generate without a server use steerlm answer")
    if not isinstance(flags["insecure"], bool):
        raise UsageError(f"insecure={flags['insecure']}: write True or False")
    numbers = ("port", "trainer.devices", "trainer.num_nodes", "tensor_model_parallel_size", "pipeline_model_parallel_size")
    for key in numbers:
        if not isinstance(flags[key], int) or isinstance(flags[key], bool):
            raise UsageError(f"{key}={flags[key]}: write a whole number")
    devices, nodes, *sizes = (flags[key] for key in numbers if key != "port")
    if min(devices, nodes) < 1:
        raise ConfigError("trainer.devices and trainer.num_nodes must be at least 1")
    # Below 0 means: as the checkpoint has it, which is known only when it is open.
    tensor, pipeline = (max(size, 1) for size in sizes)
    if min(sizes) > 0 or devices * nodes % (tensor * pipeline):
        require_devices(devices, nodes, tensor, pipeline)
