"""What is one autograd node against Megatron-Core's and torch's own chains, values and gradients."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from nemo_steerlm.megatron.fused import RMSNorm, SwiGLU, linear, multiplied, rotate

pytestmark = pytest.mark.megatron


@pytest.mark.parametrize("rotary", [16, 8])
@pytest.mark.parametrize("rows", [1, 3])
def test_rotation_is_megatrons(rotary, rows):
    from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd

    angles = torch.rand(5, rows, 1, rotary // 2, dtype=torch.float64).mul(6).repeat(1, 1, 1, 2)
    mixed = torch.randn(5, 3, 4, 48, dtype=torch.float64)  # queries are a view into queries, keys and values
    grown = [mixed.clone().requires_grad_() for _ in range(2)]
    results = [turned(t[..., 16:32], angles) for turned, t in zip((rotate, _apply_rotary_pos_emb_bshd), grown, strict=True)]
    torch.testing.assert_close(*results)
    weights = torch.randn_like(results[0])
    for result in results:
        (result * weights).sum().backward()
    torch.testing.assert_close(*(t.grad for t in grown))


@pytest.mark.parametrize("learned", [True, False])
def test_norm_is_torchs(learned):
    torch.manual_seed(0)
    norms = [RMSNorm(SimpleNamespace(sequence_parallel=False), 24, eps=1e-5), torch.nn.RMSNorm(24, eps=1e-5)]
    weight, inputs, weights = torch.rand(24), torch.randn(7, 2, 24), torch.randn(7, 2, 24)
    seen = []
    for norm in norms:
        norm.weight.data.copy_(weight)
        norm.weight.requires_grad_(learned)
        x = inputs.clone().requires_grad_()
        result = norm(x)
        (result * weights).sum().backward()
        seen.append((result.detach(), x.grad, norm.weight.grad))
    torch.testing.assert_close(*seen)
    assert (seen[0][2] is not None) == learned


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("features", [41, 12])
def test_linear_layer_is_torchs_at_any_width(features, learned):
    inputs, weight, weights = torch.randn(5, 2, 8), torch.randn(features, 8), torch.randn(5, 2, features)
    seen, nodes = [], []
    for product in (linear, torch.nn.functional.linear):
        x, w = inputs.clone().requires_grad_(), weight.clone().requires_grad_(learned)
        result = product(x, w, None)
        nodes.append(result.grad_fn.name())
        (result * weights).sum().backward()
        seen.append((result.detach(), x.grad, w.grad))
    torch.testing.assert_close(*seen)
    assert (nodes[0] == nodes[1]) == (features < 4 * 8), "what is not wide is torch's"


def test_a_frozen_weight_is_converted_once_and_the_product_is_autocasts():
    x = torch.randn(3, 2, 8, requires_grad=True)
    frozen, learned = torch.randn(16, 8), torch.randn(16, 8, requires_grad=True)
    assert multiplied(frozen) is frozen
    with torch.autocast("cpu", torch.bfloat16):
        assert multiplied(learned) is learned
        assert multiplied(frozen).dtype == torch.bfloat16
        assert multiplied(frozen) is multiplied(frozen)
        found, expected = linear(x, frozen, None), torch.nn.functional.linear(x, frozen)
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(y.float().square().sum(), x)[0] for y in (found, expected)))


def test_gated_activation_is_what_autograd_makes_of_it():
    inputs, weights = torch.randn(5, 2, 12, dtype=torch.float64), torch.randn(5, 2, 6, dtype=torch.float64)
    seen = []
    for activated in (lambda y: SwiGLU.apply(y, False, False), lambda y: torch.nn.functional.silu(y[..., :6]) * y[..., 6:]):
        y = inputs.clone().requires_grad_()
        result = activated(y)
        (result * weights).sum().backward()
        seen.append((result.detach(), y.grad))
    torch.testing.assert_close(*seen)
