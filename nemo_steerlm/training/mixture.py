"""Several files of records in one training, each with a weight: how often an epoch has its records."""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nemo_steerlm.core.conversation import Mode
from nemo_steerlm.core.errors import ConfigError
from nemo_steerlm.training.dataset import ChatDataset, DatasetInfo, ValueToken


class Mixture:
    """Data sets one after the other, each with its weight; to batches it is like one of them.

    A weight of 2 has every record twice in an epoch, one of 0.5 half of them, drawn anew for each epoch.
    """

    def __init__(self, datasets: Sequence[ChatDataset], weights: Sequence[float]) -> None:
        """Raises ConfigError where the files teach different things."""
        first = datasets[0]
        for other in datasets[1:]:
            if other.mode != first.mode:
                raise ConfigError(f"{other.file} has type {other.mode}, {first.file} has type {first.mode}; train on one kind")
        self._datasets = tuple(datasets)
        self._ends = np.cumsum([len(data) for data in datasets])
        self.parts = tuple(zip(map(len, datasets), map(float, weights), strict=True))
        self.file = ", ".join(data.file for data in datasets)
        told = "".join(f"{data.digest} {weight}\n" for data, (_, weight) in zip(datasets, self.parts, strict=True))
        self.digest = f"sha256:{hashlib.sha256(told.encode()).hexdigest()}"
        self.info = functools.reduce(_joined, (data.info for data in datasets))

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def mode(self) -> Mode | None:
        """What its records teach."""
        return self.info.mode

    def record(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """See ChatDataset."""
        data, within = self._place(index)
        return data.record(within)

    def value_tokens(self, index: int) -> list[ValueToken]:
        """See ChatDataset."""
        data, within = self._place(index)
        return data.value_tokens(within)

    def learned_tokens(self, indices: npt.NDArray[np.int64]) -> int:
        """See ChatDataset."""
        return sum(data.learned_tokens(indices[mine] - start) for data, start, mine in self._among(indices))

    def lengths(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """See ChatDataset."""
        found = np.empty(len(indices), dtype=np.int64)
        for data, start, mine in self._among(indices):
            found[mine] = data.lengths(indices[mine] - start)
        return found

    def _place(self, index: int) -> tuple[ChatDataset, int]:
        part = bisect.bisect_right(self._ends, index)
        return self._datasets[part], index - int(self._ends[part - 1] if part else 0)

    def _among(self, indices: npt.NDArray[np.int64]) -> list[tuple[ChatDataset, int, npt.NDArray[np.bool_]]]:
        """Each data set, where its records begin, and which of ``indices`` are its."""
        starts = [0, *self._ends[:-1].tolist()]
        parts = np.searchsorted(self._ends, indices, side="right")
        return [(data, start, parts == i) for i, (data, start) in enumerate(zip(self._datasets, starts, strict=True))]


def _joined(a: DatasetInfo, b: DatasetInfo) -> DatasetInfo:
    """What the records of both say together."""
    spelled = {name: {**tokens} for name, tokens in a.spelled.items()}
    for name, tokens in b.spelled.items():
        mine = spelled.setdefault(name, {})
        for token, values in tokens.items():
            mine[token] = mine.get(token, set()) | values
    return DatasetInfo(
        mode=a.mode,
        systems={name: a.systems.get(name, 0) + b.systems.get(name, 0) for name in [*a.systems, *b.systems]},
        labels={name: a.labels.get(name, set()) | b.labels.get(name, set()) for name in [*a.labels, *b.labels]},
        languages=a.languages | b.languages,
        spelled=spelled,
        attributes=list(dict.fromkeys(itertools.chain(a.attributes, b.attributes))),
        max_seq_length=a.max_seq_length,
        longest=max(a.longest, b.longest),
        most_learned=max(a.most_learned, b.most_learned),
        cut=a.cut + b.cut,
        left_out=a.left_out + b.left_out,
    )
