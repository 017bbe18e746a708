"""How vLLM has to serve an exported model so that a server of this package can stand before it, here and in a pod alike."""

from __future__ import annotations

OPTIONS = (
    "--served-model-name", "upstream",
    # Sampling settings are the request's own; a generation_config.json beside the weights must not change them.
    "--generation-config", "vllm",
    "--max-logprobs", "100",
)  # fmt: skip
"""Options of ``vllm serve``."""

ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
"""Its environment: it asks nobody outside for anything."""

API_KEY = "VLLM_API_KEY"
"""The variable with the token that it asks for."""
