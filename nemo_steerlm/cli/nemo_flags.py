"""``examples/megatron_gpt_eval.py``: this project's server under the flags of NeMo's script (v1.22.0 to v2.4.1).

Upstream: ``examples/nlp/language_modeling/conf/megatron_gpt_inference.yaml``, flags as ``key=value``.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from nemo_steerlm.core import environment
from nemo_steerlm.core.errors import ConfigError, UsageError, nearest
from nemo_steerlm.core.model_info import BASE_LENGTH
from nemo_steerlm.inference.ranks import rank_of, require_devices
from nemo_steerlm.inference.registry import EngineOptions
from nemo_steerlm.pipeline.artifacts import served_model

logger = logging.getLogger(__name__)

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
"""Every flag and its default.

``host`` and ``insecure`` are this project's own. Upstream's server listens on all interfaces and asks for no token. This one listens on
all interfaces only if ``STEERLM_API_KEY`` has a token or ``insecure=True`` waives it, else on 127.0.0.1.
"""

EFFECTIVE = (
    "gpt_model_file",
    "server",
    "port",
    "host",
    "insecure",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.accelerator",
)
"""The flags that this server reads. It accepts the others, so that upstream's command lines work, and names them in its log."""


def serve_with_nemo_flags(arguments: Sequence[str]) -> None:
    """Serve a model until SIGTERM. On ranks other than 0, take part in serving it.

    Args:
        arguments: The command line's ``key=value`` flags.

    Raises:
        UsageError: For an unknown flag, a malformed value or a model that is not there.
        ConfigError: If the parallel sizes do not fit the devices.
    """
    flags = read_flags(arguments)
    folder = served_model(Path(str(flags["gpt_model_file"])))
    options = EngineOptions(
        max_model_len=BASE_LENGTH,  # as upstream, whose clients may send what no training record was as long as
        device="cpu" if flags["trainer.accelerator"] == "cpu" else None,
        tensor=flags["tensor_model_parallel_size"],
        pipeline=flags["pipeline_model_parallel_size"],
        devices=flags["trainer.devices"],
        nodes=flags["trainer.num_nodes"],
    )
    from nemo_steerlm.serving.server import listen
    from nemo_steerlm.serving.service import Settings
    from nemo_steerlm.serving.startup import local_model, run_server

    load = functools.partial(local_model, folder, options)
    if rank_of(os.environ, devices=options.devices, nodes=options.nodes):
        load()  # follows rank 0 and does not return
        return
    api_key = os.environ.get(environment.API_KEY, "").strip() or None
    host = str(flags["host"] or ("0.0.0.0" if api_key or flags["insecure"] else "127.0.0.1"))  # noqa: S104
    listener = listen(host, flags["port"], api_key, insecure=flags["insecure"])
    if ignored := ignored_flags(arguments):
        logger.warning("flags without effect on this server: %s", ", ".join(ignored))
    run_server(load, Settings(name=folder.stem, api_key=api_key), listener)


def ignored_flags(arguments: Sequence[str]) -> list[str]:
    """The flags among ``arguments`` that have no effect, each once, in the order given."""
    return [key for key in dict.fromkeys(_key(argument) for argument in arguments) if key not in EFFECTIVE]


def _key(argument: str) -> str:
    return argument.partition("=")[0].lstrip("+")


def read_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """Every flag's value: the one given, else its default.

    Raises:
        UsageError: For an unknown flag or a malformed value.
        ConfigError: If the parallel sizes do not fit the devices.
    """
    flags = dict(DEFAULTS)
    for argument in arguments:
        _, equals, text = argument.partition("=")
        key = _key(argument)
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
    # A size below 0 stands for the checkpoint's, which is known only once the file is open.
    tensor, pipeline = (max(size, 1) for size in sizes)
    if min(sizes) > 0 or devices * nodes % (tensor * pipeline):
        require_devices(devices, nodes, tensor, pipeline)
