"""Marker rows have the gradient that the whole embedding would have, and the model reads what they learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.inputs import STORIES

pytestmark = pytest.mark.megatron
MARKERS = (5, 300, 511)


def model_and_batch(*, tied: bool) -> tuple[Any, Any]:
    from nemo_steerlm.megatron.gpt_sft import build_model
    from nemo_steerlm.megatron.micro_batch import MicroBatch

    tokenizer = {"library": "sentencepiece", "model": str(STORIES / "tokenizer.model")}
    torch.manual_seed(1)
    model = build_model({"tokenizer": tokenizer, "num_layers": 2, "share_embeddings_and_output_weights": tied})
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(3, 512, (2, 25), generator=generator)
    tokens[0, 3], tokens[1, 7], tokens[1, 20], tokens[0, 12] = 5, 5, 300, 511
    batch = MicroBatch(
        tokens=tokens[:, :-1],
        labels=tokens[:, 1:],
        position_ids=torch.arange(24).expand(2, -1),
        loss_mask=torch.rand(2, 24, generator=generator) < 0.6,
        loss_scale=torch.tensor(1.0),
    )
    return model, batch


@pytest.mark.parametrize("tied", [True, False])
def test_rows_have_the_gradient_of_the_whole_matrix(tied: bool) -> None:
    from nemo_steerlm.megatron.hf_import import gpt_modules
    from nemo_steerlm.megatron.marker_rows import MarkerRows

    model, batch = model_and_batch(tied=tied)
    (gpt,) = gpt_modules(model)
    embedding = gpt.embedding.word_embeddings.weight
    output = embedding if tied else gpt.output_layer.weight
    model.run_micro_batches([batch], forward_only=False)
    wanted = {"input": embedding.grad[list(MARKERS)].clone(), "output": output.grad[list(MARKERS)].clone()}
    before = embedding.detach().clone()
    for parameter in gpt.parameters():
        parameter.grad = None
        parameter.requires_grad = False
    gpt.marker_rows = model.marker_rows = rows = MarkerRows(gpt, MARKERS)
    model.run_micro_batches([batch], forward_only=False)
    rows.reduce()
    for name, gradient in wanted.items():
        torch.testing.assert_close(getattr(rows, name).grad, gradient, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for name, parameter in gpt.named_parameters() if "marker_rows" not in name)
    with torch.no_grad():
        rows.input.add_(1.0)
        rows.output.copy_(rows.input if tied else rows.output)
    rows.write()
    torch.testing.assert_close(embedding[list(MARKERS)], before[list(MARKERS)] + 1.0)
    others = [i for i in range(512) if i not in MARKERS]
    assert torch.equal(embedding[others], before[others])
