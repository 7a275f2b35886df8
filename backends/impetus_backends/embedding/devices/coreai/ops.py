"""The encoder in Core AI's authoring operations, for the graph that is open. Shapes are static.

Knows the encoder and Core AI. Weights and products are of the one precision asked for, but norms, softmax and pooling,
which are float32: squares and sums over 512 tokens leave float16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from impetus_backends.embedding.devices.reference import by_places, within

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from impetus_backends.embedding.devices.coreai.library import Library
    from impetus_backends.embedding.folder.transformer.shapes import Attention
    from impetus_backends.embedding.folder.weights import Weights

_UNSEEN = np.float32(-1e4)
"""Added to scores that do not count: its exponential is zero, and float16 holds it."""


class CoreAIOps:
    """`Ops` that write into one graph: a tensor is a Core AI value. A weight of several graphs is stored once.

    Pooled vectors stay (b, texts, h): with a reshape before them the library's own passes end the process.
    """

    def __init__(self, library: Library, weights: Weights, precision: str) -> None:
        """`precision`: `fp16` or `fp32`."""
        self._ai = library
        self._r = library.operations
        self._weights = weights
        self._dtype = np.float16 if precision == "fp16" else np.float32
        self._made: dict[str, Any] = {}

    def _once(self, name: str, make: Callable[[], np.ndarray], dtype: Any = None) -> Any:
        """A constant of the graph, written once however often it is used."""
        kind = np.dtype(dtype or self._dtype)
        key = f"{name} {kind}"
        if key not in self._made:
            self._made[key] = self._ai.constant(np.ascontiguousarray(make().astype(kind)))
        return self._made[key]

    def _weight(self, name: str, *, flipped: bool = False, dtype: Any = None) -> Any:
        return self._once(
            f"{name} flipped" if flipped else name,
            lambda: self._weights[name].T if flipped else self._weights[name],
            dtype,
        )

    def _full(self, x: Any) -> Any:
        return self._r.cast(x, np.float32) if self._dtype == np.float16 else x

    def _narrow(self, x: Any) -> Any:
        return self._r.cast(x, np.float16) if self._dtype == np.float16 else x

    def _shaped(self, x: Any, *shape: int) -> Any:
        return self._r.reshape(x, _integers(*shape))

    def _turned(self, x: Any, *axes: int) -> Any:
        return self._r.transpose(x, np.array(axes, np.uint32))

    def _cut(self, x: Any, axis: int, first: int, count: int) -> Any:
        shape = x.type.shape
        begin, end = [0] * len(shape), list(shape)
        begin[axis], end[axis] = first, first + count
        return self._r.slice_(x, _integers(*begin), _integers(*end), _integers(*[1] * len(shape)))

    def embed(self, table: str, ids: Any, rows: int) -> Any:
        return self._r.gather_nd(self._weight(table), self._r.expand_dims(ids, _integers(2)))

    def row(self, table: str, index: int) -> Any:
        return self._once(f"{table}[{index}]", lambda: self._weights[table][index])

    def add(self, a: Any, b: Any) -> Any:
        return self._r.broadcasting_add(a, b)

    def multiply(self, a: Any, b: Any) -> Any:
        return self._r.broadcasting_mul(a, b)

    def scale(self, x: Any, factor: float) -> Any:
        return self._r.broadcasting_mul(x, self._dtype(factor))

    def split(self, x: Any, parts: int) -> Sequence[Any]:
        axis = len(x.type.shape) - 1
        width = x.type.shape[axis] // parts
        return [self._cut(x, axis, part * width, width) for part in range(parts)]

    def linear(self, x: Any, name: str, width: int, *, bias: bool = True) -> Any:
        product = self._r.broadcasting_batch_matmul(x, self._weight(f"{name}.weight", flipped=True))
        return self._r.broadcasting_add(product, self._weight(f"{name}.bias")) if bias else product

    def layer_norm(self, x: Any, name: str, eps: float, *, bias: bool = True) -> Any:
        r, x = self._r, self._full(x)
        centred = r.broadcasting_sub(x, self._mean(x))
        normed = r.broadcasting_mul(self._over_length(centred, eps), self._weight(f"{name}.weight", dtype=np.float32))
        if bias:
            normed = r.broadcasting_add(normed, self._weight(f"{name}.bias", dtype=np.float32))
        return self._narrow(normed)

    def rms_norm(self, x: Any, name: str, eps: float, *, size: int = 0, centre: float = 0.0) -> Any:
        shape = x.type.shape
        size = size or shape[-1]
        each = self._full(self._shaped(x, *shape[:-1], shape[-1] // size, size))
        gain = self._once(f"{name} {centre}", lambda: self._weights[f"{name}.weight"] + np.float32(centre), np.float32)
        return self._narrow(self._shaped(self._r.broadcasting_mul(self._over_length(each, eps), gain), *shape))

    def _mean(self, x: Any) -> Any:
        return self._r.reduce_mean(x, _integers(len(x.type.shape) - 1))

    def _over_length(self, x: Any, eps: float) -> Any:
        square = self._mean(self._r.broadcasting_mul(x, x))
        return self._r.broadcasting_mul(x, self._r.rsqrt(self._r.broadcasting_add(square, np.float32(eps))))

    def activate(self, x: Any, kind: str) -> Any:
        r = self._r
        if kind.startswith("gelu"):
            return r.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")
        return {"silu": r.silu, "sigmoid": r.sigmoid, "tanh": self._ai.tanh, "relu": r.relu}[kind](x)

    def turn(self, x: Any, positions: Any, how: Attention) -> Any:
        r, (batch, length, width) = self._r, x.type.shape
        each = self._shaped(x, batch, length, width // how.head_size, how.head_size)
        cosine, sine = (self._angles(length, how, wave) for wave in (np.cos, np.sin))
        left, right = self.split(each, 2)
        turned = r.concat(
            np.int32(3),
            [
                r.broadcasting_sub(r.broadcasting_mul(left, cosine), r.broadcasting_mul(right, sine)),
                r.broadcasting_add(r.broadcasting_mul(right, cosine), r.broadcasting_mul(left, sine)),
            ],
        )
        return self._shaped(turned, batch, length, width)

    def _angles(self, length: int, how: Attention, wave: Any) -> Any:
        """Of the places in a row, (l, 1, half a head): only how far apart two tokens are counts."""
        return self._once(
            f"{wave.__name__} {length} {how.frequencies}",
            lambda: wave(np.arange(length, dtype=np.float32)[:, None] * np.array(how.frequencies, np.float32))[:, None],
        )

    def relative_bias(self, table: str, rows: int, buckets: np.ndarray, ids: Any) -> Any:
        length = ids.type.shape[1]
        places = by_places(buckets, length)
        return self._once(
            f"{table} {length}", lambda: self._weights[table][buckets][places].transpose(2, 0, 1), np.float32
        )

    def apart(self, mask: Any) -> Any:
        """(b, 1, queries, keys) float32: 0 for what is seen and -1e4 for the rest."""
        r, (batch, length) = self._r, mask.type.shape
        apart = r.broadcasting_sub(self._shaped(mask, batch, 1, length, 1), self._shaped(mask, batch, 1, 1, length))
        return r.broadcasting_mul(r.broadcasting_minimum(r.broadcasting_mul(apart, apart), np.float32(1)), _UNSEEN)

    def attention(self, q: Any, k: Any, v: Any, mask: Any, how: Attention, bias: Any = None) -> Any:
        r, (batch, length, _) = self._r, q.type.shape
        # Before the product and not after it, so that no score comes near float16's end.
        q = self._heads(self.scale(q, how.scale), how.heads, 1, (0, 2, 1, 3))
        served = how.heads // how.key_value_heads
        k = self._heads(k, how.key_value_heads, served, (0, 2, 3, 1))
        v = self._heads(v, how.key_value_heads, served, (0, 2, 1, 3))
        scores = r.broadcasting_add(self._full(r.batch_matmul(q, k)), self._bias(mask, how))
        if bias is not None:
            scores = r.broadcasting_add(scores, bias)
        mixed = r.batch_matmul(self._narrow(r.softmax(scores, np.int32(3))), v)
        return self._shaped(self._turned(mixed, 0, 2, 1, 3), batch, length, how.heads * how.head_size)

    def _heads(self, x: Any, heads: int, times: int, axes: Sequence[int]) -> Any:
        """(b, l, h) by head, each as many times as it is asked for, its axes in the order wanted."""
        batch, length, width = x.type.shape
        each = self._shaped(x, batch, length, heads, width // heads)
        if times > 1:
            again = self._r.concat(np.int32(3), [self._shaped(each, batch, length, heads, 1, width // heads)] * times)
            each = self._shaped(again, batch, length, heads * times, width // heads)
        return self._turned(each, *axes)

    def _bias(self, mask: Any, how: Attention) -> Any:
        """0 for what is seen and -1e4 for the rest, float32 (b, 1, 1 or queries, keys)."""
        key = f"bias {how.causal} {how.window}"
        if key not in self._made:
            made, length = mask, mask.type.shape[-1]
            if len(mask.type.shape) == 2:
                unseen = self._r.broadcasting_sub(self._shaped(mask, -1, 1, 1, length), np.float32(1))
                made = self._r.broadcasting_mul(unseen, -_UNSEEN)
            if how.causal or how.window:
                near = self._once(f"within {key}", lambda: np.where(within(how, length), 0, _UNSEEN), np.float32)
                made = self._r.broadcasting_add(made, near)
            self._made[key] = made
        return self._made[key]

    def pool(self, x: Any, shares: Any, mode: int) -> Any:
        batch, _, texts, length = shares.type.shape
        share = self._shaped(self._cut(shares, 1, mode, 1), batch, texts, length)
        return self._r.batch_matmul(share, self._full(x))

    def largest(self, x: Any, shares: Any, mode: int) -> Any:
        batch, length, _ = x.type.shape
        share = self._shaped(self._cut(shares, 1, mode, 1), batch, length, 1)
        unseen = self._r.broadcasting_mul(self._r.broadcasting_sub(share, np.float32(1)), -_UNSEEN)
        seen = self._r.broadcasting_add(self._full(x), unseen)
        return self._r.reduce_max(seen, _integers(1))

    def join(self, parts: Sequence[Any]) -> Any:
        return self._r.concat(np.int32(2), list(parts))

    def first(self, x: Any, count: int) -> Any:
        return self._cut(x, 2, 0, count)

    def project(self, x: Any, name: str, width: int, *, bias: bool) -> Any:
        return self._full(self.linear(self._narrow(x), name, width, bias=bias))

    def norm(self, x: Any, name: str, eps: float, *, bias: bool) -> Any:
        return self._full(self.layer_norm(x, name, eps, bias=bias))

    bend = activate

    def normalise(self, x: Any) -> Any:
        r = self._r
        square = r.reduce_sum(r.broadcasting_mul(x, x), _integers(2))
        return r.broadcasting_mul(x, r.rsqrt(r.broadcasting_maximum(square, np.float32(1e-24))))


def _integers(*values: int) -> np.ndarray:
    return np.array(values, np.int32)
