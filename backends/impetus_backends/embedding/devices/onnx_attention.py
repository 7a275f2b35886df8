"""Attention in ONNX: who sees whom, and the scores whole, or by blocks of queries where they would be too large.

A block has whole rows of scores, so its softmax is that of the whole. It is a turn of a `Loop`: what depends on the
queries is made in each turn anew, and nothing is ever as large as the square of a text's length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from impetus_backends.embedding.devices.onnx_graph import OnnxGraph
    from impetus_backends.embedding.folder.transformer.shapes import Attention

BLOCK = "block"
"""The graph's input that says how many tokens are in a block, a scalar int64."""
_BOOL, _FLOAT, _INT64 = 9, 1, 7  # onnx.TensorProto
_UNSEEN = -1e30


@dataclass(frozen=True, slots=True)
class _Queries:
    """Those whose scores are made at a time: their vectors (b, heads, n, size), their places in the row (n), and, where
    rows hold several texts, the numbers of their texts (b, n)."""

    vectors: str
    places: str
    numbers: str


class OnnxAttention:
    """`Ops.attention`, and what it is told beforehand."""

    def __init__(self, graph: OnnxGraph, *, by_blocks: bool) -> None:
        self._graph = graph
        self._by_blocks = by_blocks
        self._numbered = ""
        """Where rows hold several texts: the mask, which numbers them."""
        self._farthest: dict[str, int] = {}
        """Of each table of what the scores are told by distance: the distance at its ends."""

    def relative_bias(self, table: str, buckets: np.ndarray) -> str:
        """A row for each distance, and a column for each head: the scores are told from it when they are made."""
        by_distance = self._graph.node("Gather", self._graph.weight(table), self._int(buckets), axis=0)
        self._farthest[by_distance] = len(buckets) // 2
        return by_distance

    def toward_places(self, x: str, places: str, buckets: np.ndarray, how: Attention, *, of_keys: bool) -> str:
        """As `operations.PlaceOps` has it, of all queries at a time: families that hold tokens against places read no
        long texts."""
        node = self._graph.node
        each = node("Transpose", node("Reshape", x, self._int([0, 0, -1, how.head_size])), perm=[0, 2, 1, 3])
        rows = node("Transpose", node("Reshape", places, self._int([0, -1, how.head_size])), perm=[1, 2, 0])
        products = node("Mul", node("MatMul", each, rows), self._float(how.scale))

        def index() -> str:
            everyone = _Queries("", self._places(x), "")
            found = node("Gather", self._int(buckets), self._by_places(everyone, x, len(buckets) // 2), axis=0)
            found = node("Transpose", found, perm=[1, 0]) if of_keys else found
            # As many times as there are texts and heads.
            batch = node("Gather", node("Shape", x), self._int([0]), axis=0)
            shape = node("Concat", batch, self._int([how.heads]), node("Shape", found), axis=0)
            return node("Expand", found, shape)

        found = node("GatherElements", products, self._graph.once(f"places {of_keys}", index), axis=-1)
        return node("Transpose", found, perm=[0, 1, 3, 2]) if of_keys else found

    def apart(self, mask: str) -> str:
        self._numbered = mask
        return mask

    def attention(self, q: str, k: str, v: str, mask: str, how: Attention, bias: str | None) -> str:
        node = self._graph.node
        split = self._int([0, 0, -1, how.head_size])
        q, v = (node("Transpose", node("Reshape", x, split), perm=[0, 2, 1, 3]) for x in (q, v))
        k = node("Transpose", node("Reshape", k, split), perm=[0, 2, 3, 1])
        if how.key_value_heads != how.heads:
            served = self._int(np.repeat(np.arange(how.key_value_heads), how.heads // how.key_value_heads))
            k, v = (node("Gather", x, served, axis=1) for x in (k, v))
        places = self._places(mask)
        if not self._by_blocks:
            mixed = self._mixed(_Queries(q, places, mask), k, v, mask, how, bias)
            return node("Reshape", node("Transpose", mixed, perm=[0, 2, 1, 3]), self._int([0, 0, -1]))

        def of_block(places: str, fresh: str) -> str:
            numbers = node("Gather", mask, places, axis=1) if self._numbered else ""
            return self._mixed(_Queries(node("Gather", q, places, axis=2), places, numbers), k, v, mask, how, bias)

        whole = node("Transpose", self.in_blocks(mask, of_block, axes=4), perm=[1, 0, 3, 2, 4])
        flat = node("Reshape", whole, self._int([0, -1, how.heads * how.head_size]))
        return node("Slice", flat, self._int([0]), self._column(self._length(mask), 0), self._int([1]))

    def in_blocks(self, tokens: str, make: Callable[[str, str], str], *, axes: int) -> str:
        """(blocks, …): what `make` comes to, which has so many axes, of the places of each block of `tokens` (b, l, …).

        The last block repeats the last place until it is full: `make` is also told which are new, (n) float.
        """
        node, helper = self._graph.node, self._graph.helper
        length, one = self._length(tokens), self._int(1)
        turns = node("Div", node("Add", length, node("Sub", BLOCK, one)), BLOCK)
        turn, going, goes_on = (self._graph.named(name) for name in ("turn", "going", "goes_on"))
        with self._graph.inside() as nodes:
            begin = node("Mul", turn, BLOCK)
            counted = node("Range", begin, node("Add", begin, BLOCK), one)
            fresh = node("Cast", node("Less", counted, length), to=_FLOAT)
            made = make(node("Min", counted, node("Sub", length, one)), fresh)
            nodes.append(helper.make_node("Identity", [going], [goes_on]))
        value = helper.make_tensor_value_info
        inputs = [value(turn, _INT64, []), value(going, _BOOL, [])]
        outputs = [value(goes_on, _BOOL, []), value(made, _FLOAT, [None] * axes)]
        return node("Loop", turns, "", body=helper.make_graph(nodes, "block", inputs, outputs))

    def _mixed(self, queries: _Queries, k: str, v: str, mask: str, how: Attention, bias: str | None) -> str:
        """(b, heads, n, size)."""
        node = self._graph.node
        scores = node("Mul", node("MatMul", queries.vectors, k), self._float(how.scale))
        told = self._graph.once(f"told {how.causal} {how.window} {bias}", lambda: self._told(queries, mask, how, bias))
        return node("MatMul", node("Softmax", node("Add", scores, told), axis=-1), v)

    def _told(self, queries: _Queries, mask: str, how: Attention, bias: str | None) -> str:
        """What the scores are told of who sees whom, (b, 1, 1, l) or more: 0, and -1e30 for what is not seen; with
        `bias` added."""
        node, seen, where = self._graph.node, mask, [1, 2]
        if self._numbered:
            same = node("Equal", self._column(queries.numbers, 2), self._column(mask, 1))
            seen, where = node("Cast", same, to=_FLOAT), [1]
        missing = node("Mul", node("Sub", seen, self._float(1)), self._float(-_UNSEEN))
        told = node("Unsqueeze", missing, self._int(where))
        if how.causal or how.window:
            told = node("Add", told, self._within(queries, mask, how))
        return told if bias is None else node("Add", told, self._added(queries, mask, bias))

    def _added(self, queries: _Queries, mask: str, bias: str) -> str:
        """What of `bias` is these queries', by distance or whole."""
        if bias in self._farthest:
            return self._by_distance(queries, mask, bias)
        return self._graph.node("Gather", bias, queries.places, axis=2) if self._by_blocks else bias

    def _within(self, queries: _Queries, mask: str, how: Attention) -> str:
        """0 where a query may look, -1e30 elsewhere, (n, l)."""
        node, apart, seen = self._graph.node, self._distances(queries, mask), []
        if how.window:
            seen.append(node("LessOrEqual", node("Abs", apart), self._int(how.window)))
        if how.causal:
            seen.append(node("LessOrEqual", apart, self._int(0)))
        both = seen[0] if len(seen) == 1 else node("And", *seen)
        return node("Where", both, self._float(0), self._float(_UNSEEN))

    def _by_distance(self, queries: _Queries, mask: str, bias: str) -> str:
        """(heads, n, l)."""
        index = self._by_places(queries, mask, self._farthest[bias])
        return self._graph.node("Transpose", self._graph.node("Gather", bias, index, axis=0), perm=[2, 0, 1])

    def _by_places(self, queries: _Queries, mask: str, farthest: int) -> str:
        """As `reference.by_places`, (n, l) int64. What is farther apart than a table goes is of two texts that share a
        row, and does not count."""
        ends = (self._int(end) for end in (-farthest, farthest))
        node = self._graph.node
        return node("Add", node("Clip", self._distances(queries, mask), *ends), self._int(farthest))

    def _distances(self, queries: _Queries, mask: str) -> str:
        """How far after each query each key comes, (n, l) int64."""
        return self._graph.once(
            "distances", lambda: self._graph.node("Sub", self._places(mask), self._column(queries.places, 1))
        )

    def _places(self, mask: str) -> str:
        """0, 1, 2 to the end of a row, (l) int64."""
        return self._graph.once(
            "places", lambda: self._graph.node("Range", self._int(0), self._length(mask), self._int(1))
        )

    def _length(self, mask: str) -> str:
        """Of a row, a scalar int64."""
        return self._graph.once(
            "length",
            lambda: self._graph.node("Gather", self._graph.node("Shape", mask), self._int(1), axis=0),
        )

    def _column(self, x: str, axis: int) -> str:
        return self._graph.node("Unsqueeze", x, self._int([axis]))

    def _int(self, values: object) -> str:
        return self._graph.constant(values, np.int64)

    def _float(self, value: float) -> str:
        return self._graph.constant(value, np.float32)
