"""Integers in, bits out, the same integers back: whatever they are, and at the price the tables say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aeimg import InvalidLatent
from aeimg.entropy import LEVELS, REACH, TOTAL, Decoder, Encoder, Tables, bits, fit_tables, logistic_tables

TABLES = Tables(logistic_tables())


def coded(groups):
    encoder = Encoder(TABLES)
    for symbols, indexes in groups:
        encoder.encode(np.array(symbols, np.int32), np.array(indexes, np.int32))
    return encoder.finish()


def test_every_table_sums_to_two_to_the_24_and_leaves_no_hole():
    for tables in (logistic_tables(), fit_tables(np.zeros((LEVELS, 2 * REACH + 2)))):
        assert (tables.sum(1) == TOTAL).all()
        Tables(tables)
    broken = logistic_tables()
    broken[3, REACH] -= 1
    with pytest.raises(ValueError, match="does not sum"):
        Tables(broken)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(-(2**31), 2**31 - 1) | st.integers(-3, 3), st.integers(0, LEVELS - 1)))))
def test_any_symbols_come_back_from_one_stream_of_several_groups(groups):
    groups = [([s for s, _ in group], [i for _, i in group]) for group in groups]
    data = coded(groups)
    assert len(data) % 4 == 0
    decoder = Decoder(TABLES, data)
    for symbols, indexes in groups:
        assert decoder.decode(np.array(indexes, np.int32)).tolist() == symbols


def test_the_stream_is_within_a_thousandth_of_the_entropy():
    rng = np.random.default_rng(0)
    indexes = rng.integers(8, 50, 200_000).astype(np.int32)
    sigma = 0.06 * np.exp(np.log(250 / 0.06) / 63 * indexes)
    symbols = np.rint(rng.logistic(0, sigma * np.sqrt(3) / np.pi)).astype(np.int32)
    ideal = float(bits(torch.from_numpy(symbols).double(), torch.from_numpy(indexes).double()).sum())
    size = 8 * len(coded([(symbols, indexes)]))
    assert size == pytest.approx(ideal, rel=1e-3)


def test_symbols_at_index_zero_cost_next_to_nothing():
    zeros = np.zeros(100_000, np.int32)
    assert len(coded([(zeros, zeros)])) <= 8
    zeros[[5, 70_000]] = [-1, 300]
    data = coded([(zeros, np.zeros(100_000, np.int32))])
    assert len(data) <= 24
    np.testing.assert_array_equal(Decoder(TABLES, data).decode(np.zeros(100_000, np.int32)), zeros)


def test_tables_fitted_to_symbols_code_them_in_fewer_bits():
    rng = np.random.default_rng(1)
    symbols = np.rint(rng.laplace(0, 1.0, 50_000)).astype(np.int32)
    indexes = np.full(50_000, 30, np.int32)
    counts = np.zeros((LEVELS, 2 * REACH + 2), np.int64)
    np.add.at(counts, (indexes, symbols + REACH), 1)
    encoder = Encoder(Tables(fit_tables(counts)))
    encoder.encode(symbols, indexes)
    assert len(encoder.finish()) < 0.98 * len(coded([(symbols, indexes)]))


def test_damaged_streams_give_symbols_or_a_named_error():
    rng = np.random.default_rng(2)
    symbols = rng.integers(-3, 4, 500).astype(np.int32)
    indexes = rng.integers(0, 40, 500).astype(np.int32)
    data = coded([(symbols, indexes)])
    for _ in range(300):
        mutated = bytearray(data)
        mutated[rng.integers(len(mutated))] ^= int(rng.integers(1, 256))
        try:
            assert Decoder(TABLES, bytes(mutated)).decode(indexes).shape == symbols.shape
        except InvalidLatent:
            pass
