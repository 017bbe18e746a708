"""What the model takes in one forward pass."""

from __future__ import annotations

from torch import Tensor

from nemo_steerlm.megatron.packing import Packing


class MicroBatch(dict[str, Tensor]):
    """What one forward pass takes: ``tokens``, ``labels``, ``position_ids`` and ``loss_mask``, each ``[micro_batch, seq]``.

    And the scalar ``loss_scale``; see ``SteerLMGPTSFTModel.get_forward_output_and_loss_func``.
    """

    records: tuple[int, ...] = ()
    """Index of each row's record in the data set; -1 for a row of padding."""
    packing: Packing | None = None
    """How the model packs it; None where it computes with padding."""
