"""The order of samples is a function of (seed, epoch) and of (seed, step)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffalign.core import DiffalignError
from diffalign.data import batch_rows, sample_order
from diffalign.data.order import _epoch

sizes = st.integers(1, 40)
seeds = st.integers(0, 2**40)


@settings(max_examples=50)
@given(num_rows=sizes, seed=seeds, epoch=st.integers(0, 1000))
def test_an_order_is_a_permutation_of_seed_and_epoch_alone(num_rows, seed, epoch):
    order = sample_order(num_rows, seed=seed, epoch=epoch)
    torch.manual_seed(seed)  # the global generator has no say
    assert torch.equal(order, sample_order(num_rows, seed=seed, epoch=epoch))
    assert sorted(order.tolist()) == list(range(num_rows))


def test_epochs_and_seeds_differ_and_never_drift():
    orders = {tuple(sample_order(20, seed=s, epoch=e).tolist()) for s in range(3) for e in range(3)}
    assert len(orders) == 9
    assert sample_order(6, seed=0, epoch=0).tolist() == [3, 4, 0, 1, 5, 2]


@settings(max_examples=50)
@given(num_rows=sizes, seed=seeds, batch_size=st.integers(1, 50), start=st.integers(0, 30), steps=st.integers(1, 6))
def test_batches_read_one_endless_sequence(num_rows, seed, batch_size, start, steps):
    """Steps start .. start + steps are the slice of the joined epochs that begins at start * batch_size."""
    epochs = [
        sample_order(num_rows, seed=seed, epoch=e).tolist() for e in range((start + steps) * batch_size // num_rows + 1)
    ]
    endless = [row for epoch in epochs for row in epoch]
    found = [
        row
        for i in range(start, start + steps)
        for row in batch_rows(num_rows, batch_size=batch_size, seed=seed, step=i)
    ]
    assert found == endless[start * batch_size : (start + steps) * batch_size]


@given(num_rows=sizes, seed=seeds, step=st.integers(0, 20), parts=st.integers(1, 8), size=st.integers(1, 8))
def test_accumulation_reads_the_same_rows(num_rows, seed, step, parts, size):
    whole = batch_rows(num_rows, batch_size=parts * size, seed=seed, step=step)
    pieces = [batch_rows(num_rows, batch_size=size, seed=seed, step=step * parts + i) for i in range(parts)]
    assert whole == [row for piece in pieces for row in piece]


def test_resuming_needs_only_the_step():
    uninterrupted = [batch_rows(7, batch_size=3, seed=5, step=step) for step in range(9)]
    _epoch.cache_clear()
    assert [batch_rows(7, batch_size=3, seed=5, step=step) for step in range(6, 9)] == uninterrupted[6:]


@pytest.mark.parametrize("wrong", [{"num_rows": 0}, {"batch_size": 0}, {"step": -1}])
def test_nonsense_is_refused(wrong):
    options = {"num_rows": 3, "batch_size": 2, "seed": 0, "step": 0, **wrong}
    with pytest.raises(DiffalignError):
        batch_rows(options.pop("num_rows"), **options)


def test_nonsensical_orders_are_refused():
    for num_rows, epoch in ((0, 0), (3, -1)):
        with pytest.raises(DiffalignError):
            sample_order(num_rows, seed=0, epoch=epoch)
