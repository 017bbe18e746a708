"""Packed micro batches against padded ones: the same losses and the same gradients, of fewer tokens."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from nemo_steerlm.megatron.packing import MULTIPLE_OF, MULTIPLE_OF_ROWS, WORTHWHILE
from nemo_steerlm.training.batches import Collator, MicroBatch
from nemo_steerlm.training.dataset import ChatDataset
from tests.inputs import STORIES
from tests.training.records import dataset_of

pytestmark = pytest.mark.megatron

TOKENS = st.integers(3, 511)


@st.composite
def datasets(draw: st.DrawFn) -> ChatDataset:
    """Records that begin alike, or not; some are equal, or the beginning of another. Any token may be learned."""
    beginning = draw(st.lists(TOKENS, max_size=12))
    ends = draw(st.lists(st.lists(TOKENS, min_size=2, max_size=20), min_size=1, max_size=4))
    repeated = [ends[0]] * draw(st.integers(0, 1))
    records = [beginning + end for end in [*ends, *repeated]]
    return dataset_of(records, [draw(st.lists(st.booleans(), min_size=len(r), max_size=len(r))) for r in records])


def micro_batch(data: ChatDataset, *, packed: bool) -> MicroBatch:
    """All records, and a row of padding."""
    return Collator(data, pad_id=0, packed=packed)._collate(np.arange(len(data)), len(data) + 1, 0, 1.0)


@pytest.fixture(scope="module", params=["all weights", "adapters"])
def model(request: pytest.FixtureRequest):
    torch.set_num_threads(1)
    from nemo_steerlm.megatron import lora
    from nemo_steerlm.megatron.gpt_sft import build_model
    from nemo_steerlm.training.config import CONF

    section = {"library": "sentencepiece", "model": str(STORIES / "tokenizer.model")}
    model = build_model({"tokenizer": section, "encoder_seq_length": 64, "peft": OmegaConf.load(CONF / "gpt_sft.yaml").model.peft})
    if request.param == "adapters":
        lora.add(model)
        for name, parameter in model.model.named_parameters():
            if ".linear_out." in name:  # they start as zero, and the gradient of what lies before them with it
                torch.nn.init.normal_(parameter, std=0.1)
    assert model.packs
    return model


@settings(max_examples=40)
@given(data=datasets())
def test_losses_and_gradients_are_those_of_the_padded_batch(model, data) -> None:
    found = []
    for packed in (False, True):
        model.model.zero_grad(set_to_none=True)
        (result,) = model.run_micro_batches([micro_batch(data, packed=packed)], forward_only=False)
        found.append((result["loss_sum"], {name: p.grad for name, p in model.model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


@given(data=datasets())
def test_each_token_is_there_once_and_a_common_beginning_once_for_all(data) -> None:
    batch = micro_batch(data, packed=True)
    packing, flat = batch.packing, batch["tokens"].flatten()
    rows = [data.record(i)[0][:-1].tolist() for i in range(len(data))]
    beginning = 0
    while all(len(row) > beginning and row[beginning] == rows[0][beginning] for row in rows):
        beginning += 1
    tokens = beginning + sum(len(row) - beginning for row in rows)
    if packing is None:
        assert tokens > WORTHWHILE * len(flat)
        return
    assert packing.shared == beginning
    assert packing.tokens == tokens <= WORTHWHILE * len(flat)
    assert len(packing.kept) == -(-packing.tokens // MULTIPLE_OF) * MULTIPLE_OF
    assert packing.kept[: packing.tokens].unique().numel() == packing.tokens
    for row, places in zip(rows, packing.place, strict=False):
        assert flat[packing.kept[places[: len(row)]]].tolist() == row


def test_an_objectives_loss_is_what_is_minimised_and_reported(model, monkeypatch) -> None:
    batch = micro_batch(dataset_of([[5, 6, 7, 8]], [[False, False, True, True]]), packed=False)
    gradients, sums = [], []
    for loss_of in (model.loss_of, lambda losses: losses.sum() * 3):
        monkeypatch.setattr(model, "loss_of", loss_of)
        model.model.zero_grad(set_to_none=True)
        (result,) = model.run_micro_batches([batch], forward_only=False)
        sums.append(result["loss_sum"])
        gradients.append({name: p.grad.clone() for name, p in model.model.named_parameters() if p.grad is not None})
    assert sums[1] == 3 * sums[0]
    torch.testing.assert_close(gradients[1], {name: 3 * gradient for name, gradient in gradients[0].items()}, atol=1e-5, rtol=1e-4)


class AttentionByRows(torch.nn.Module):
    """What TransformerEngine's attention computes of ``thd`` rows, row by row."""

    def forward(self, query, key, value, attention_mask, packed_seq_params, **_options):  # type: ignore[no-untyped-def]
        assert packed_seq_params.qkv_format == "thd"
        ends = packed_seq_params.cu_seqlens_q.tolist()
        assert max(end - start for start, end in itertools.pairwise(ends)) == packed_seq_params.max_seqlen_q
        rows = []
        for start, end in itertools.pairwise(ends):
            q, k, v = (t[start:end].transpose(0, 1) for t in (query, key, value))
            rows.append(torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(0, 1))
        return torch.cat(rows).flatten(1)


@settings(max_examples=20)
@given(data=datasets())
def test_rows_one_after_the_other_have_the_losses_and_gradients_of_the_padded_batch(model, data) -> None:
    """With Megatron-Core's rotation by ``cu_seqlens``, and attention that reads rows as TransformerEngine's does."""
    found = []
    for apart in (False, True):
        batch = Collator(data, pad_id=0, packed=apart, rows_apart=True)._collate(np.arange(len(data)), len(data) + 1, 0, 1.0)
        model.model.zero_grad(set_to_none=True)
        with pytest.MonkeyPatch.context() as patch:
            if batch.packing is not None:
                assert len(batch.packing.kept) % MULTIPLE_OF_ROWS == 0
                patch.setattr(model.transformer_config, "apply_rope_fusion", False)
                for layer in model.model.decoder.layers:
                    patch.setattr(layer.self_attention.config, "apply_rope_fusion", False)
                    patch.setitem(layer.self_attention._modules, "core_attention", AttentionByRows())
            (result,) = model.run_micro_batches([batch], forward_only=False)
        found.append((result["loss_sum"], {name: p.grad for name, p in model.model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


def test_transformer_engines_rows_stay_whole_and_may_drop_out(model) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "transformer_engine", True)
        patch.setattr(model.transformer_config, "hidden_dropout", 0.1)
        assert model.packs
        assert model.packs_rows_apart


def test_what_spares_little_is_not_packed() -> None:
    data = dataset_of([[*range(3, 15)], [*range(20, 32)]], [[True] * 12] * 2)
    assert Collator(data, pad_id=0, packed=True)._collate(np.arange(2), 2, 0, 1.0).packing is None


def test_what_a_model_cannot_pack_it_pads(model) -> None:
    config = model.transformer_config
    for setting, value in {"hidden_dropout": 0.1, "attention_dropout": 0.1, "sequence_parallel": True, "num_moe_experts": 2}.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(config, setting, value)
            assert not model.packs, setting
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "pipeline_model_parallel_size", 2)
        assert not model.packs
