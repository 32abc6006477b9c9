"""Integer tables <-> bits, and the likelihoods used in training.

Every symbol is an integer drawn from one of `LEVELS` zero-mean distributions, chosen by its scale index.
In training an index is a real number and the distribution a logistic one, integrated over the unit
interval around the symbol (Balle et al. 2018). What is shipped are tables: the counts of each symbol for
each index, summing to 2^24, stored in the weights file, so that nothing is recomputed on load.

A group of symbols is coded index by index: those that share an index with one call of constriction's range
coder, in raster order. Two exceptions keep it fast and open-ended:

- index 0 stands for "zero, almost surely": these symbols are not coded one by one. Their number of
  non-zero ones, then the distance from each of those to the one before and its value, are.
- a symbol beyond its table is coded as the table's last entry (the escape) and its value as 32 raw bits.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .errors import ChecksumMismatch, InvalidLatent, TruncatedLatent

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = 64
SMALLEST, LARGEST = 0.06, 250.0
STEP = math.log(LARGEST / SMALLEST) / (LEVELS - 1)
"""sigma(index) = SMALLEST * exp(STEP * index), in units of the quantiser's step."""
TOTAL = 1 << 24
REACH = 1023
"""Symbols of a larger magnitude are escapes, whatever their table."""
LIMIT = (1 << 31) - 1

Array = np.ndarray


def bits(value: Tensor, index: Tensor) -> Tensor:
    """Bits that each `value` costs at its real-valued scale `index` in 0..63 (same shape, differentiable in both)."""
    import torch
    from torch.nn import functional as F

    sigma = SMALLEST * torch.exp(STEP * index)
    inverse = (math.pi / math.sqrt(3)) / sigma
    distance = value.abs()
    upper = F.logsigmoid((0.5 - distance) * inverse)
    lower = F.logsigmoid((-0.5 - distance) * inverse)
    # log(sigmoid(a) - sigmoid(b)) without cancellation, so that the gradient is right in the tails as well.
    return -(upper + torch.log(-torch.expm1((lower - upper).clamp(max=-1e-7)))) / math.log(2)


def logistic_tables(reach: int = REACH) -> Array:
    """Tables for logistic distributions: int32 `[LEVELS, 2 * reach + 2]`, each row summing to 2^24.

    Column `reach + s` counts symbol `s`, the last column is the escape. Symbols outside a row's support count 0.
    """
    symbols = np.arange(-reach, reach + 1, dtype=np.float64)
    rows = np.zeros((LEVELS, 2 * reach + 2), np.float64)
    for level in range(LEVELS):
        width = SMALLEST * math.exp(STEP * level) * math.sqrt(3) / math.pi
        # tanh form of the logistic distribution function: no overflow at either end
        edges = 0.5 * (1 + np.tanh((np.append(symbols, reach + 1) - 0.5) / (2 * width)))
        rows[level, :-1] = np.diff(edges)
        rows[level, -1] = 1 - rows[level, :-1].sum()
    return round_tables(rows)


def fit_tables(counts: Array, strength: float = 30.0) -> Array:
    """Tables from how often each symbol was seen at each index: `[LEVELS, 2 * REACH + 2]` as in `logistic_tables`.

    The distributions are taken to be symmetric, and the logistic ones count as `strength` symbols seen in advance.
    """
    prior = logistic_tables().astype(np.float64) / TOTAL
    both = counts.astype(np.float64)
    both[:, :-1] = 0.5 * (both[:, :-1] + both[:, -2::-1])
    return round_tables(both + strength * prior)


def round_tables(rows: Array) -> Array:
    """Probabilities `[LEVELS, 2 * most + 2]` as counts that sum to 2^24 a row, every symbol in support at least 1.

    The support of a row is cut where a symbol's probability falls under 2^-24; what is cut goes to the escape.
    """
    tables = np.zeros(rows.shape, np.int32)
    most = rows.shape[1] // 2 - 1
    for level, row in enumerate(rows):
        weights = row / row.sum()
        inside = np.nonzero(weights[:-1] * TOTAL >= 1)[0]
        reach = max(1, int(np.abs(inside - most).max(initial=0)))
        support = slice(most - reach, most + reach + 1)
        counts = np.maximum(1, np.floor(weights[support] * TOTAL)).astype(np.int64)
        escape = max(1, int(TOTAL * (1 - weights[support].sum())))
        # What rounding leaves over goes to the likeliest symbol, zero, where it costs the least.
        counts[reach] += TOTAL - counts.sum() - escape
        tables[level, support] = counts
        tables[level, -1] = escape
    return tables


def integer_tables(tables: Tensor) -> Array:
    """Returns tables of a weights file for `Tables`. Raises `ValueError` where they are no int32 of two dimensions."""
    found = tables.cpu().numpy() if tables.dim() == 2 and not tables.is_floating_point() else None
    if found is None or found.dtype != np.int32 or found.shape[1] > 2 * REACH + 2:
        raise ValueError("entropy tables: they must be int32 of two dimensions")
    return found


class Tables:
    """The distributions of a weights file, ready for the coder. Built once per model, read by many threads."""

    def __init__(self, tables: Array) -> None:
        """`tables`: int32 as `logistic_tables` describes them. Raises `ValueError` where they are malformed."""
        import constriction

        most = tables.shape[-1] // 2 - 1
        if (
            tables.shape != (LEVELS, 2 * most + 2)
            or not 1 <= most <= REACH
            or (tables < 0).any()
            or (tables.sum(1) != TOTAL).any()
        ):
            raise ValueError("entropy tables: wrong shape, or a row that does not sum to 2^24")
        self.reach: list[int] = []
        self.models: list[object] = []
        for row in tables:
            used = np.nonzero(row[:-1])[0]
            reach = int(np.abs(used - most).max())
            # Multiples of 2^-24 are exact in a float, so no rounding of ours can differ between machines.
            counts = np.append(row[most - reach : most + reach + 1], row[-1])
            if (counts <= 0).any():
                raise ValueError("entropy tables: a symbol inside a row's support has no count")
            self.reach.append(reach)
            model = constriction.stream.model.Categorical(counts.astype(np.float64) / TOTAL, perfect=False)
            self.models.append(model)


def _uniform(size: int) -> object:
    import constriction

    return constriction.stream.model.Uniform(size)


class Encoder:
    """Codes groups of symbols, in order, into one stream."""

    def __init__(self, tables: Tables) -> None:
        import constriction

        self._tables = tables
        self._coder = constriction.stream.queue.RangeEncoder()

    def _raw(self, values: Array) -> None:
        """Unsigned 32-bit numbers, as two halves each."""
        halves = np.stack([values >> 16, values & 0xFFFF], 1).astype(np.int32).ravel()
        if halves.size:
            self._coder.encode(halves, _uniform(1 << 16))

    def encode(self, symbols: Array, indexes: Array) -> None:
        """Codes `symbols` (int32) under `indexes` (0..63), both one-dimensional and of one length."""
        symbols = np.ascontiguousarray(symbols, np.int32)
        order = np.argsort(indexes.astype(np.uint8), kind="stable")  # of bytes: a radix sort
        sorted_symbols = symbols[order]
        bounds = np.searchsorted(indexes[order], np.arange(LEVELS + 1))
        zeros = sorted_symbols[: bounds[1]]
        places = np.nonzero(zeros)[0]
        self._raw(np.array([places.size], np.int64))
        self._raw(np.diff(places, prepend=0).astype(np.int64))
        self._raw(zeros[places].astype(np.int64) & 0xFFFFFFFF)
        for level in range(1, LEVELS):
            group = sorted_symbols[bounds[level] : bounds[level + 1]]
            if not group.size:
                continue
            reach = self._tables.reach[level]
            outside = np.abs(group.astype(np.int64)) > reach
            coded = np.where(outside, 2 * reach + 1, group + reach).astype(np.int32)
            self._coder.encode(coded, self._tables.models[level])
            self._raw(group[outside].astype(np.int64) & 0xFFFFFFFF)

    def finish(self) -> bytes:
        """The stream: 32-bit words, little-endian."""
        return bytes(self._coder.get_compressed().astype("<u4").tobytes())


class Decoder:
    """The mirror of `Encoder`: the same groups, in the same order, with the same indexes."""

    def __init__(self, tables: Tables, data: bytes) -> None:
        import constriction

        self._tables = tables
        self._coder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))

    def _raw(self, count: int) -> Array:
        if not count:
            return np.zeros(0, np.int64)
        halves = self._symbols(_uniform(1 << 16), 2 * count).astype(np.int64).reshape(-1, 2)
        return np.asarray((halves[:, 0] << 16) | halves[:, 1])

    def _symbols(self, model: object, count: int) -> Array:
        try:
            return np.asarray(self._coder.decode(model, count))
        except (AssertionError, ValueError) as error:
            raise ChecksumMismatch(f"the entropy-coded data is damaged ({error})") from error

    def decode(self, indexes: Array) -> Array:
        """The symbols (int32) for `indexes`. Raises `ChecksumMismatch` where the stream can't be one of ours."""
        order = np.argsort(indexes.astype(np.uint8), kind="stable")  # of bytes: a radix sort
        bounds = np.searchsorted(indexes[order], np.arange(LEVELS + 1))
        result = np.zeros(indexes.size, np.int32)
        (count,) = self._raw(1)
        if count > bounds[1]:
            raise ChecksumMismatch("more exceptions than symbols in the entropy-coded data")
        places = np.cumsum(self._raw(int(count)))
        values = self._raw(int(count))
        if count and places[-1] >= bounds[1]:
            raise ChecksumMismatch("an exception outside its group in the entropy-coded data")
        result[places] = values.astype(np.uint32).view(np.int32)
        for level in range(1, LEVELS):
            size = int(bounds[level + 1] - bounds[level])
            if not size:
                continue
            reach = self._tables.reach[level]
            group = self._symbols(self._tables.models[level], size) - reach
            outside = group > reach
            if outside.any():
                group[outside] = self._raw(int(outside.sum())).astype(np.uint32).view(np.int32)
            result[bounds[level] : bounds[level + 1]] = group
        symbols = np.empty_like(result)
        symbols[order] = result
        return symbols


def join_parts(parts: Sequence[tuple[bytes, int]]) -> bytes:
    """Streams of `Encoder` and a CRC of each one's symbols, as bytes: length and CRC of each, u32; then the streams."""
    return b"".join([struct.pack("<II", len(stream), crc) for stream, crc in parts] + [stream for stream, _ in parts])


def split_parts(data: bytes, count: int) -> list[tuple[bytes, int]]:
    """The mirror of `join_parts` for so many streams. Raises `InvalidLatent` where their lengths do not add up."""
    at = 8 * count
    if len(data) < at:
        raise TruncatedLatent("the coded data ends before its picture does")
    index = list(struct.iter_unpack("<II", data[:at]))
    expected = at + sum(length for length, _ in index)
    if len(data) < expected:
        raise TruncatedLatent("the coded data ends before its picture does")
    if len(data) > expected or any(length % 4 for length, _ in index):
        raise InvalidLatent("the coded data is longer than its picture, or its lengths are forged")
    parts = []
    for length, crc in index:
        parts.append((data[at : at + length], crc))
        at += length
    return parts
