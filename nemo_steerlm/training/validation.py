"""How well a model does on held-out records: token-weighted loss, and for a value model how often and how far it misses each attribute."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from torch import Tensor

from nemo_steerlm.megatron.gpt_sft import SteerLMGPTSFTModel
from nemo_steerlm.megatron.micro_batch import MicroBatch
from nemo_steerlm.training.batches import Collator, Sizes
from nemo_steerlm.training.dataset import ChatDataset
from nemo_steerlm.training.mixture import Mixture

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class ValueTokens:
    """Which token stands for which value of an attribute, as the data sets spell them."""

    candidates: tuple[int, ...]
    """Every token that starts a value."""
    columns: dict[str, tuple[tuple[int, int], ...]]
    """Of each attribute: (column in ``candidates``, value). An attribute whose values start alike cannot be told by one token and is
    left out."""

    @classmethod
    def seen_in(cls, *datasets: ChatDataset | Mixture) -> ValueTokens:
        """Read them off the labels of ``datasets``."""
        spelled: dict[str, dict[int, set[int]]] = {}
        for data in datasets:
            for attribute, tokens in data.info.spelled.items():
                for token, values in tokens.items():
                    spelled.setdefault(attribute, {}).setdefault(token, set()).update(values)
        clear = {name: tokens for name, tokens in spelled.items() if all(len(values) == 1 for values in tokens.values())}
        for name in spelled.keys() - clear.keys():
            logger.info("attribute %s: its values start with the same token, so accuracy is not measured while training", name)
        candidates = sorted({token for tokens in clear.values() for token in tokens})
        column = {token: i for i, token in enumerate(candidates)}
        return cls(
            candidates=tuple(candidates),
            columns={
                name: tuple((column[token], value) for token, values in sorted(tokens.items()) for value in values)
                for name, tokens in clear.items()
            },
        )


@dataclasses.dataclass(slots=True)
class Validator:
    """One pass over the validation records. Every rank calls ``run``."""

    model: SteerLMGPTSFTModel
    collator: Collator
    sizes: Sizes
    limit_batches: int | float
    """Global batches, or as a float the fraction of them."""
    values: ValueTokens

    def run(self) -> dict[str, Any]:
        """``{"loss", "tokens", "records", "attributes": {name: {"accuracy", "mae", "count"}}}``, equal on every rank."""
        names = tuple(self.values.columns)
        totals = np.zeros(3 + 3 * len(names))  # loss, tokens, records; then for each attribute hits, errors, count
        counted = self.collator.context[0] == 0  # ranks that share a sequence have the same records
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            for indices in self._global_batches():
                batches = self.collator.micro_batches(indices, self.sizes)
                if not batches:
                    continue
                wanted = [self._with_values(batch) for batch in batches]
                results = self.model.run_micro_batches(batches, forward_only=True)
                for batch, result, values in zip(batches, results, wanted, strict=False):
                    totals[:3] += float(result["loss_sum"]), float(batch["loss_mask"].sum()), counted * sum(r >= 0 for r in batch.records)
                    if "value_logits" in result:
                        self._judge(result["value_logits"], values, names, totals)
        self.model.train(training)
        return self._summary(_summed(totals), names)

    def _global_batches(self) -> Iterable[np.ndarray[Any, np.dtype[np.int64]]]:
        records = np.arange(len(self.collator.dataset), dtype=np.int64)
        size = self.sizes.global_batch_size
        batches = [records[i : i + size] for i in range(0, len(records), size)]
        limit = self.limit_batches
        return batches[: max(1, round(len(batches) * limit)) if isinstance(limit, float) else limit]

    def _with_values(self, batch: MicroBatch) -> list[tuple[str, int]]:
        """Tell the forward pass at which learned positions a value is stated; returns attribute and value of each."""
        order = batch["loss_mask"].flatten().cumsum(0).view(batch["loss_mask"].shape) - 1
        rows, wanted = [], []
        for row, record in enumerate(batch.records):
            for value in self.collator.dataset.value_tokens(record) if record >= 0 else ():
                # A token is predicted at the one before it, which may be another rank's.
                column = (batch["position_ids"][row] == value.position - 1).nonzero()
                if value.attribute in self.values.columns and len(column) and batch["loss_mask"][row, int(column)]:
                    rows.append(int(order[row, int(column)]))
                    wanted.append((value.attribute, value.value))
        if rows:
            batch["value_rows"] = torch.tensor(rows)
            batch["candidates"] = torch.tensor(self.values.candidates)
        return wanted

    def _judge(self, logits: Tensor, wanted: list[tuple[str, int]], names: tuple[str, ...], totals: np.ndarray[Any, Any]) -> None:
        for scores, (name, value) in zip(logits, wanted, strict=True):
            columns = self.values.columns[name]
            predicted = columns[int(scores[[column for column, _ in columns]].argmax())][1]
            at = 3 + 3 * names.index(name)
            totals[at : at + 3] += predicted == value, abs(predicted - value), 1

    @staticmethod
    def _summary(totals: list[float], names: tuple[str, ...]) -> dict[str, Any]:
        attributes = {}
        for i, name in enumerate(names):
            hits, errors, count = totals[3 + 3 * i : 6 + 3 * i]
            if count:
                attributes[name] = {"accuracy": hits / count, "mae": errors / count, "count": int(count)}
        return {"loss": totals[0] / totals[1], "tokens": int(totals[1]), "records": int(totals[2]), "attributes": attributes}


def _summed(totals: np.ndarray[Any, Any]) -> list[float]:
    """Sum over ranks; of those that hold the same results only one counts."""
    counts = parallel_state.is_pipeline_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0
    everywhere = torch.tensor(totals if counts else np.zeros_like(totals), device="cuda")
    torch.distributed.all_reduce(everywhere)
    return everywhere.tolist()
