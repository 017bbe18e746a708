"""What this project's adapters do otherwise than NeMo's, against NeMo's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.megatron


def test_an_adapter_scaled_in_its_middle_is_nemos() -> None:
    from nemo_steerlm.megatron.lora import NarrowlyScaledAdapter, ParallelLinearAdapter

    inner, outer = torch.randn(4, 6), torch.randn(12, 4)
    adapter = SimpleNamespace(
        linear_in=lambda x: (x @ inner.T, None),
        linear_out=lambda x: (x @ outer.T, None),
        activation=torch.nn.Identity(),
        alpha=6,
        dim=4,
        is_expert=False,
        input_is_parallel=False,
        dropout=None,
        layer_norm=None,
        norm_position=None,
        _sequence_parallel=False,
        config=SimpleNamespace(cpu_offloading=False),
    )
    x = torch.randn(3, 2, 6)
    torch.testing.assert_close(NarrowlyScaledAdapter.forward(adapter, x), ParallelLinearAdapter.forward(adapter, x))
