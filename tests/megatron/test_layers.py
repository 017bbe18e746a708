from __future__ import annotations

import logging

import pytest

from nemo_steerlm.megatron import compat
from tests.inputs import STORIES

pytestmark = pytest.mark.megatron


@pytest.fixture(scope="module")
def model():
    import torch

    torch.set_num_threads(1)
    from nemo_steerlm.megatron.gpt_sft import build_model

    section = {"library": "sentencepiece", "model": str(STORIES / "tokenizer.model")}
    return build_model({"tokenizer": section, "encoder_seq_length": 64, "make_vocab_size_divisible_by": 96}).eval()


def test_core_attention_equals_megatrons_own(model) -> None:
    import torch
    from megatron.core.transformer.dot_product_attention import DotProductAttention
    from megatron.core.transformer.enums import AttnMaskType

    ours = model.model.decoder.layers[0].self_attention.core_attention
    theirs = DotProductAttention(model.transformer_config, 1, AttnMaskType.causal, "self").eval()
    query, key, value = torch.randn(12, 3, 4, 16), torch.randn(12, 3, 2, 16), torch.randn(12, 3, 2, 16)  # [s, b, heads, head dim]
    hidden = torch.ones(1, 1, 12, 12, dtype=torch.bool).triu(1)
    expected = theirs(query, key, value, hidden)
    torch.testing.assert_close(ours(query, key, value, None), expected, atol=1e-5, rtol=1e-5)
    # One query at the end of a cache of keys, and several.
    torch.testing.assert_close(ours(query[-1:], key, value, None, attn_mask_type=AttnMaskType.no_mask), expected[-1:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours(query[-5:], key, value, None), expected[-5:], atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(compat.HAVE_CUDA, reason="grouped keys are repeated on GPUs")
def test_grouped_keys_and_values_are_read_in_place_with_the_gradients_of_repeated_ones(model) -> None:
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attention

    ours = model.model.decoder.layers[0].self_attention.core_attention
    shapes = ((12, 3, 4, 16), (12, 3, 2, 16), (12, 3, 2, 16))  # [s, b, heads, head dim]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    query, key, value = (t.permute(1, 2, 0, 3) for t in inputs)
    repeated = attention(query, key.repeat_interleave(2, dim=1), value.repeat_interleave(2, dim=1), is_causal=True)
    weights = torch.randn(12, 3, 64)
    with torch.profiler.profile() as profile:
        found = ours(*inputs, None)
    assert not any("repeat" in event.key for event in profile.key_averages())
    gradients = [torch.autograd.grad((context * weights).sum(), inputs) for context in (found, repeated.permute(2, 0, 1, 3).flatten(2))]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_losses_at_learned_positions_equal_those_of_the_whole_and_so_do_gradients(model) -> None:
    import torch
    from torch.nn.functional import cross_entropy

    torch.manual_seed(0)
    tokens, labels = torch.randint(0, 512, (2, 10)), torch.randint(0, 512, (2, 10))
    mask = torch.rand(2, 10) < 0.4
    inputs = {"input_ids": tokens, "position_ids": torch.arange(10).expand(2, 10), "attention_mask": None}
    whole = cross_entropy(model.model(**inputs).flatten(0, 1), labels.flatten(), reduction="none").view(2, 10)[mask]
    few = model.model(**inputs, labels=labels, loss_mask=mask)
    torch.testing.assert_close(few, whole, atol=1e-5, rtol=1e-5)
    weight = model.model.decoder.layers[1].mlp.linear_fc1.weight
    expected, found = (torch.autograd.grad(loss.sum(), weight)[0] for loss in (whole, few))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_products_in_bf16_leave_all_else_in_fp32(model, monkeypatch) -> None:
    import torch

    from nemo_steerlm.training.batches import MicroBatch

    tokens = torch.arange(3, 43).view(2, 20)
    batch = MicroBatch(
        tokens=tokens,
        labels=tokens.roll(-1, 1),
        position_ids=torch.arange(20).expand(2, 20),
        loss_mask=torch.ones(2, 20, dtype=torch.bool),
        loss_scale=torch.tensor(1 / 40),
    )
    weight = model.model.decoder.layers[0].mlp.linear_fc1.weight
    found = []
    for products in (False, True):
        monkeypatch.setattr(model, "bf16_products", products)
        weight.grad = None
        (result,) = model.run_micro_batches([batch], forward_only=False)
        found.append((result["loss_sum"].item(), weight.grad))
    (loss, gradient), (rough_loss, rough_gradient) = found
    assert rough_loss == pytest.approx(loss, rel=1e-3)
    assert rough_loss != loss
    assert rough_gradient.dtype == torch.float32
    assert 0 < (rough_gradient - gradient).norm() < 0.03 * gradient.norm()


def test_padding_of_the_vocabulary_is_no_token(model) -> None:
    import torch

    logits = model.model(input_ids=torch.zeros(1, 2, dtype=torch.long), position_ids=torch.arange(2)[None], attention_mask=None)
    assert logits.shape[-1] == 576
    assert bool((logits[..., 512:] == float("-inf")).all())
    assert bool(logits[..., :512].isfinite().all())


@pytest.mark.skipif(compat.HAVE_CUDA, reason="nothing is missing here")
def test_each_missing_piece_is_named_once(model, monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: messages.append(record.getMessage()))
    monkeypatch.setattr(compat.logger, "handlers", [handler])
    monkeypatch.setattr(compat.logger, "disabled", False)
    compat.logger.setLevel(logging.INFO)
    compat.activate.cache_clear()
    compat.activate()
    compat.activate()
    for piece in ("apex", "TransformerEngine", "CUDA"):
        assert sum(message.startswith(f"{piece} is missing") for message in messages) == 1
