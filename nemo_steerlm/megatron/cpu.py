"""What this machine's CPU is good at."""

from __future__ import annotations

import torch


def multiplies_in_bf16() -> bool:
    """Whether it has instructions for that. With them products take half the time, without them several times that of fp32."""
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))
