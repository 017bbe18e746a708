from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_steerlm.core.errors import ConfigError
from nemo_steerlm.training.batches import Collator, Sizes, TrainingOrder
from nemo_steerlm.training.dataset import ChatDataset
from nemo_steerlm.training.mixture import Mixture
from tests.training.records import dataset_of


def dataset(lengths: list[int]) -> ChatDataset:
    """Record ``i`` is the token ``i + 1`` repeated; all but its first half are learned."""
    return dataset_of([[i + 1] * n for i, n in enumerate(lengths)], [[j >= n // 2 for j in range(n)] for n in lengths])


records = st.lists(st.integers(2, 40), min_size=4, max_size=40)


@given(records=st.integers(1, 200), batch=st.integers(1, 20), seed=st.integers(0, 9))
def test_an_epoch_visits_each_record_at_most_once_and_epochs_differ(records: int, batch: int, seed: int) -> None:
    order = TrainingOrder(records, batch, seed, shuffle=True)
    if not order.steps_per_epoch:
        return
    epoch = np.concatenate([order.batch(i) for i in range(order.steps_per_epoch)])
    assert len(set(epoch.tolist())) == len(epoch) == order.steps_per_epoch * batch
    again = np.concatenate([order.batch(order.steps_per_epoch + i) for i in range(order.steps_per_epoch)])
    assert records < 8 or epoch.tolist() != again.tolist()
    assert order.batch(0).tolist() == TrainingOrder(records, batch, seed, shuffle=True).batch(0).tolist()


@given(
    files=st.lists(
        st.tuples(st.lists(st.integers(2, 9), min_size=1, max_size=9), st.sampled_from([0.3, 1, 1.5, 2])), min_size=1, max_size=4
    ),
    shuffle=st.booleans(),
)
def test_an_epoch_of_several_files_has_each_as_often_as_its_weight_says(files: list[tuple[list[int], float]], shuffle: bool) -> None:
    mixture = Mixture([dataset(lengths) for lengths, _ in files], [weight for _, weight in files])
    order = TrainingOrder.of(mixture, 1, 7, shuffle=shuffle)
    for epoch in range(2):
        seen = np.concatenate([order.batch(epoch * order.steps_per_epoch + i) for i in range(order.steps_per_epoch)] or [[]]).astype(int)
        start = 0
        for lengths, weight in files:
            counts = np.bincount(seen, minlength=len(mixture))[start : start + len(lengths)]
            assert counts.sum() == round(len(lengths) * weight)
            assert counts.max() - counts.min() <= 1
            start += len(lengths)
    all_lengths = [n for lengths, _ in files for n in lengths]
    everything = np.arange(len(mixture))
    assert (mixture.lengths(everything) + 1).tolist() == [len(mixture.record(i)[0]) for i in everything] == all_lengths
    assert mixture.learned_tokens(everything) == sum(int(mixture.record(i)[1][1:].sum()) for i in everything)


def test_one_file_of_weight_one_is_that_file() -> None:
    data = dataset([3, 4, 5, 6, 7])
    alone, mixed = TrainingOrder.of(data, 2, 7, shuffle=True), TrainingOrder.of(Mixture([data], [1]), 2, 7, shuffle=True)
    assert [alone.batch(i).tolist() for i in range(4)] == [mixed.batch(i).tolist() for i in range(4)]


@given(lengths=records, micro=st.sampled_from([1, 2]), ranks=st.sampled_from([1, 2]), same=st.booleans(), multiple=st.sampled_from([1, 8]))
def test_ranks_share_a_global_batch_and_weigh_every_learned_token_alike(
    lengths: list[int], micro: int, ranks: int, same: bool, multiple: int
) -> None:
    data = dataset(lengths)
    count = len(lengths) // 4 * 4
    indices = np.random.default_rng(0).permutation(count)
    collator = Collator(data, pad_id=0, multiple_of=multiple, same_length=same)
    rows, weights = [], 0.0
    for rank in range(ranks):
        sizes = Sizes(micro_batch_size=micro, global_batch_size=count, data_parallel_size=ranks, data_parallel_rank=rank)
        batches = collator.micro_batches(indices, sizes)
        assert len(batches) == sizes.micro_batches
        assert not same or len({b["tokens"].shape for b in batches}) == 1
        for batch in batches:
            assert batch["tokens"].shape[1] % multiple == 0
            # Megatron divides by micro batches, NeMo averages over ranks.
            weights += float(batch["loss_mask"].sum() * batch["loss_scale"]) / len(batches) / ranks
            for row, index in enumerate(batch.records):
                ids, learned = data.record(index)
                length = len(ids) - 1
                assert batch["tokens"][row, :length].tolist() == ids[:-1].tolist()
                assert batch["labels"][row, :length].tolist() == ids[1:].tolist()
                assert batch["loss_mask"][row].tolist() == [*learned[1:].tolist(), *[False] * (batch["tokens"].shape[1] - length)]
                rows.append(index)
    assert sorted(rows) == list(range(count))
    assert weights == pytest.approx(1.0, abs=1e-5)


def test_a_last_validation_batch_is_filled_with_rows_that_teach_nothing() -> None:
    collator = Collator(dataset([5, 6, 7]), pad_id=0)
    batches = collator.micro_batches(np.arange(3), Sizes(micro_batch_size=2, global_batch_size=4))
    assert [b.records for b in batches] == [(0, 1), (2, -1)]
    assert not batches[1]["loss_mask"][1].any()


def test_sizes_that_do_not_fit_say_what_would() -> None:
    with pytest.raises(ConfigError, match=r"train_ds\.global_batch_size=10 is no multiple of .*; write 8 or 12") as raised:
        Sizes(micro_batch_size=2, global_batch_size=10, data_parallel_size=2).check("model.data.train_ds")
    assert raised.value.exit_code == 78


@given(lengths=records, size=st.sampled_from([2, 4]))
def test_ranks_that_share_sequences_have_every_position_once_and_weigh_tokens_alike(lengths: list[int], size: int) -> None:
    data = dataset(lengths)
    indices = np.arange(len(lengths) // 2 * 2)
    sizes = Sizes(micro_batch_size=2, global_batch_size=len(indices))
    whole = Collator(data, pad_id=0, multiple_of=2 * size).micro_batches(indices, sizes)
    parts = [Collator(data, pad_id=0, multiple_of=2 * size, context=(rank, size)).micro_batches(indices, sizes) for rank in range(size)]
    weights = 0.0
    for number, batch in enumerate(whole):
        mine = [part[number] for part in parts]
        positions = np.concatenate([part["position_ids"].numpy() for part in mine], axis=1)
        order = np.argsort(positions[0])
        for name in ("tokens", "labels", "loss_mask", "position_ids"):
            joined = np.concatenate([part[name].numpy() for part in mine], axis=1)
            assert joined[:, order].tolist() == batch[name].tolist()
        weights += sum(float(part["loss_mask"].sum() * part["loss_scale"]) for part in mine) / len(whole) / size
    assert weights == pytest.approx(1.0, abs=1e-5)
