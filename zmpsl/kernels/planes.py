"""Order-0 canonical Huffman code of byte planes, in NumPy: the specification of that stage.

A plane of n bytes (at most 65,536) is nothing at all when n is 0, else a mode and what belongs to it:

    0 raw        n bytes
    1 constant   the one byte that fills the plane
    2 Huffman    code lengths, sizes of the four streams (u16 each), the streams; only where it takes at most n bytes

Lengths are nibbles, low half first, for the symbols 0 to 255 in order: 0 to 11 is a length (0: absent), 13 and a nibble
r are r + 2 absent symbols, 14 and two nibbles (low first) are r + 18 absent ones. Stream i holds the i-th quarter of
the symbols, ceil(n / 4) of them, the last ones what is left. Codes are canonical, by length and then by symbol, at most
11 bits, and stand in the stream with their first bit lowest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK", "Reader", "encode_plane"]

BLOCK = 65536
LONGEST = 11
FULL = 1 << LONGEST
RAW, CONSTANT, HUFFMAN = range(3)

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]


def _tree_depths(weights: list[int]) -> list[int]:
    """Gives the leaves' depths in Huffman's tree, for rising weights; by two queues, leaves first among equals."""
    leaves = len(weights)
    weight = [*weights, *([0] * (leaves - 1))]
    parent = [0] * len(weight)
    leaf, node = 0, leaves
    for following in range(leaves, len(weight)):
        for _ in range(2):
            if leaf < leaves and (node >= following or weight[leaf] <= weight[node]):
                child, leaf = leaf, leaf + 1
            else:
                child, node = node, node + 1
            weight[following] += weight[child]
            parent[child] = following
    depth = [0] * len(weight)
    for at in range(len(weight) - 2, -1, -1):
        depth[at] = depth[parent[at]] + 1
    return depth[:leaves]


def _limited(depths: list[int]) -> list[int]:
    """Cuts depths at 11: the rarest symbols grow until the code fits, the most frequent shrink until it is complete."""
    depths = [min(depth, LONGEST) for depth in depths]
    used = sum(FULL >> depth for depth in depths)
    at = 0
    while used > FULL:
        if depths[at] < LONGEST:
            depths[at] += 1
            used -= FULL >> depths[at]
        else:
            at += 1
    for at in range(len(depths) - 1, -1, -1):
        while depths[at] > 1 and used + (FULL >> depths[at]) <= FULL:
            used += FULL >> depths[at]
            depths[at] -= 1
    return depths


def code_lengths(plane: U8) -> I64:
    """Gives the length of every symbol's code, 0 for absent ones; the plane holds two symbols at least."""
    counts = np.bincount(plane, minlength=256)
    order = [symbol for symbol in np.argsort(counts, kind="stable") if counts[symbol]]
    lengths = np.zeros(256, np.int64)
    lengths[order] = _limited(_tree_depths([int(counts[symbol]) for symbol in order]))
    return lengths


def _codes(lengths: I64) -> I64:
    """Gives canonical codes, first bit lowest."""
    codes = np.zeros(256, np.int64)
    value = 0
    for length in range(1, LONGEST + 1):
        for symbol in np.flatnonzero(lengths == length):
            codes[symbol] = int(f"{value:0{length}b}"[::-1], 2)
            value += 1
        value <<= 1
    return codes


def _write_lengths(lengths: I64) -> U8:
    nibbles: list[int] = []
    symbol = 0
    while symbol < 256:
        run = int(np.argmax(np.append(lengths[symbol:], 1) != 0))
        if run >= 18:
            nibbles += [14, (run - 18) & 15, (run - 18) >> 4]
        elif run >= 2:
            nibbles += [13, run - 2]
        else:
            nibbles.append(int(lengths[symbol]))
            run = 1
        symbol += run
    nibbles += [0] * (len(nibbles) % 2)
    pairs = np.array(nibbles, np.uint8)
    return (pairs[::2] | pairs[1::2] << 4).astype(np.uint8)


def _write_stream(symbols: U8, lengths: I64, codes: I64) -> U8:
    spans = lengths[symbols]
    ends = np.cumsum(spans)
    bits = np.zeros(int(ends[-1]) if ends.size else 0, np.uint8)
    starts, values = ends - spans, codes[symbols]
    for place in range(LONGEST):
        used = spans > place
        bits[starts[used] + place] = values[used] >> place & 1
    return np.packbits(bits, bitorder="little")


def _quarters(n: int) -> list[slice]:
    each = -(-n // 4)
    return [slice(min(i * each, n), min((i + 1) * each, n)) for i in range(4)]


def encode_plane(plane: U8) -> U8:
    """Gives a plane in the fewest bytes that its three modes allow, at most one more than it has.

    Args:
        plane: At most 65,536 bytes.
    """
    if plane.size == 0:
        return plane
    if (plane == plane[0]).all():
        return np.array([CONSTANT, plane[0]], np.uint8)
    lengths = code_lengths(plane)
    codes = _codes(lengths)
    streams = [_write_stream(plane[quarter], lengths, codes) for quarter in _quarters(plane.size)]
    sizes = np.frombuffer(np.array([stream.size for stream in streams], "<u2").tobytes(), np.uint8)
    packed = np.concatenate([np.array([HUFFMAN], np.uint8), _write_lengths(lengths), sizes, *streams])
    if packed.size <= plane.size:
        return packed
    return np.concatenate([np.array([RAW], np.uint8), plane])


class Reader:
    """Takes an encoding apart; every step beyond what is there raises ValueError.

    Args:
        data: One whole encoding.
        room: Bytes of the destination, for messages.
    """

    def __init__(self, data: U8, room: int) -> None:
        self._data = data
        self._at = 0
        self._room = room

    def _error(self, problem: str) -> ValueError:
        return ValueError(f"an encoding of {self._data.size} bytes cannot be unpacked into {self._room}: {problem}")

    def contradiction(self) -> ValueError:
        """Gives the error for counts that contradict each other."""
        return self._error("its counts contradict each other")

    def take(self, size: int) -> U8:
        """Gives the next bytes.

        Raises:
            ValueError: There are not that many.
        """
        if size > self._data.size - self._at:
            raise self._error("it ends too early")
        self._at += size
        return self._data[self._at - size : self._at]

    def finish(self) -> None:
        """Checks that nothing is left.

        Raises:
            ValueError: Something is.
        """
        if self._at != self._data.size:
            raise self._error("bytes are left over")

    def plane(self, n: int) -> U8:
        """Gives the next plane of n bytes.

        Raises:
            ValueError: The encoding is truncated or contradicts itself.
        """
        if n == 0:
            return np.zeros(0, np.uint8)
        mode = int(self.take(1)[0])
        if mode == RAW:
            return self.take(n)
        if mode == CONSTANT:
            return np.full(n, self.take(1)[0], np.uint8)
        if mode != HUFFMAN:
            raise self.contradiction()
        lengths = self._lengths()
        sizes = np.frombuffer(self.take(8).tobytes(), "<u2")
        streams = [self.take(int(size)) for size in sizes]
        table = _table(lengths)
        parts = [self._stream(s, table, q.stop - q.start) for s, q in zip(streams, _quarters(n), strict=True)]
        return np.concatenate(parts)

    def _lengths(self) -> I64:
        left = self._data[self._at :]
        nibbles = np.stack([left[:260] & 15, left[:260] >> 4], axis=1).ravel().tolist()
        lengths: list[int] = []
        at = 0
        while len(lengths) < 256:
            if at + 3 > len(nibbles):  # streams follow, so a sound encoding has three more
                raise self._error("it ends too early")
            token = nibbles[at]
            if token <= LONGEST:
                lengths.append(token)
                at += 1
            elif token == 13:
                lengths += [0] * (nibbles[at + 1] + 2)
                at += 2
            elif token == 14:
                lengths += [0] * ((nibbles[at + 1] | nibbles[at + 2] << 4) + 18)
                at += 3
            else:
                raise self._error("its code lengths are no complete prefix code")
        self.take((at + 1) // 2)
        if len(lengths) > 256 or sum(FULL >> length for length in lengths if length) != FULL:
            raise self._error("its code lengths are no complete prefix code")
        return np.array(lengths, np.int64)

    def _stream(self, stream: U8, table: tuple[U8, U8], count: int) -> U8:
        """Decodes one stream: what each bit position would decode to is looked up at once, then walked through."""
        bits = np.append(np.unpackbits(stream, bitorder="little"), np.zeros(LONGEST, np.uint8)).astype(np.uint16)
        places = 8 * stream.size + 1
        windows = np.zeros(places, np.uint16)
        for place in range(LONGEST):
            windows |= bits[place : place + places] << np.uint16(place)
        symbols, lengths = table[0][windows], table[1][windows].tolist()
        path = [0] * count
        at = 0
        for i in range(count):
            if at >= places:
                raise self.contradiction()
            path[i] = at
            at += lengths[at]
        if (at + 7) // 8 != stream.size:
            raise self.contradiction()
        return symbols[path]


def _table(lengths: I64) -> tuple[U8, U8]:
    """Gives symbol and length for each of the next 11 bits."""
    codes = _codes(lengths)
    symbols, spans = np.zeros(FULL, np.uint8), np.zeros(FULL, np.uint8)
    for symbol in np.flatnonzero(lengths):
        symbols[codes[symbol] :: 1 << lengths[symbol]] = symbol
        spans[codes[symbol] :: 1 << lengths[symbol]] = lengths[symbol]
    return symbols, spans
