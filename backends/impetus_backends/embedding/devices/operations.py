"""What a device supplies, and what it is given: the coarse operations that every model here is written in.

Weights are referenced by name, so that a device may keep them in whatever form it likes; no operation asks for a shape,
so that shapes may be static or dynamic.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from impetus_backends.embedding.folder.transformer.shapes import Attention, EncoderConfig, Experts

T = TypeVar("T")


class Ops(Protocol[T]):
    """What a device supplies. T is its tensor: an array, a graph node, a name. b texts, l tokens, h units."""

    def embed(self, table: str, ids: T, rows: int) -> T:
        """Rows of the weight `table`, which has so many: (b, l) integers to (b, l, h)."""
        ...

    def row(self, table: str, index: int) -> T:
        """One row of the weight `table`, to be added to (b, l, h)."""
        ...

    def add(self, a: T, b: T) -> T: ...

    def multiply(self, a: T, b: T) -> T: ...

    def scale(self, x: T, factor: float) -> T: ...

    def split(self, x: T, parts: int) -> Sequence[T]:
        """Equal parts of the last axis."""
        ...

    def linear(self, x: T, name: str, width: int, *, bias: bool = True) -> T:
        """x W^T + bias, with `name.weight` (width, in) and `name.bias` (width)."""
        ...

    def layer_norm(self, x: T, name: str, eps: float, *, bias: bool = True) -> T:
        """Over the last axis, with `name.weight` and `name.bias`."""
        ...

    def rms_norm(self, x: T, name: str, eps: float, *, size: int = 0, centre: float = 0.0) -> T:
        """x / sqrt(mean(x^2) + eps) * (centre + `name.weight`), over the last axis, or over every `size` of it."""
        ...

    def activate(self, x: T, kind: str) -> T:
        """`gelu` (with the error function), `gelu_tanh` (its approximation), `relu`, `silu`, `tanh`, `sigmoid`, or
        `log1p`, the logarithm of 1 + x."""
        ...

    def turn(self, x: T, positions: T, how: Attention) -> T:
        """Each head's share of (b, l, h) turned by the angles of its position (arXiv:2104.09864): halves, not pairs."""
        ...

    def relative_bias(self, table: str, rows: int, buckets: np.ndarray, ids: T) -> T:
        """What is added to the scores, a head each: the weight `table` (rows, heads), at the bucket of the distance
        from the query to the key. `buckets` holds those of the distances -n to n; `ids` tells how many tokens."""
        ...

    def apart(self, mask: T) -> T:
        """What `attention` takes for a mask where a row holds several texts: `mask` (b, l) is then the number of the
        text that each token is of, and tokens see those of their own."""
        ...

    def attention(self, q: T, k: T, v: T, mask: T, how: Attention, bias: T | None = None) -> T:
        """softmax(q k^T * scale + bias) v in each head; (b, l, h) each; keys whose mask is 0 weigh nothing. `bias` is
        (heads, l, l) or (b, heads, l, l).

        `mask` is (b, l), or what `apart` made of one.

        Whatever a token that sees no key comes to is finite, for padding is such a token, and multiplied by 0 later.
        """
        ...

    def pool(self, x: T, shares: T, mode: int) -> T:
        """(b, l, h) to (b * texts, h) in float32: the sums of the tokens by `shares` (b, mode, texts, l)."""
        ...

    def largest(self, x: T, shares: T, mode: int) -> T:
        """(b, l, h) to (b, h) in float32: of each unit the largest, among tokens whose share is more than 0. Of rows
        of one text alone."""
        ...

    def join(self, parts: Sequence[T]) -> T:
        """Vectors (b, h) end to end."""
        ...

    def first(self, x: T, count: int) -> T:
        """So many of the first units of (b, h)."""
        ...

    def project(self, x: T, name: str, width: int, *, bias: bool) -> T:
        """`linear` on pooled vectors, (b, h)."""
        ...

    def bend(self, x: T, kind: str) -> T:
        """`activate` on pooled vectors, (b, h)."""
        ...

    def norm(self, x: T, name: str, eps: float, *, bias: bool) -> T:
        """`layer_norm` on pooled vectors, (b, h)."""
        ...

    def normalise(self, x: T) -> T:
        """Rows of (b, h) scaled to length 1, a row of zeros left as it is."""
        ...


@runtime_checkable
class PlaceOps(Ops[T], Protocol[T]):
    """What some devices supply besides, for families that hold tokens against places."""

    def table(self, name: str, rows: int) -> T:
        """All of the weight `name`, which has so many rows, (rows, h)."""
        ...

    def toward_places(self, x: T, places: T, buckets: np.ndarray, how: Attention, *, of_keys: bool = False) -> T:
        """What is added to the scores, (b, heads, l, l): in each head the product, scaled, of the query's `x` (of the
        key's, if `of_keys`) with the row of `places` (rows, h) at the bucket of the distance from the query to the key.
        `buckets` holds those of the distances -n to n."""
        ...


@runtime_checkable
class ExpertOps(Ops[T], Protocol[T]):
    """What some devices supply besides, for families with experts."""

    def experts(self, x: T, name: str, experts: Experts, width: int, activation: str) -> T:
        """Of every token the wide layers that it chooses, (b, l, h): those with the largest of a softmax of x R^T, each
        weighed by it, activation(x A^T) B, and `name.experts.bias` added to their sum.

        R is `name.router.layer.weight` (count, h), and A and B are an expert's rows of `name.experts.mlp.w1` and `w2`
        (count * width, h).
        """
        ...


@runtime_checkable
class SparseOps(Ops[T], Protocol[T]):
    """What some devices supply besides, for heads that weigh every token of a vocabulary."""

    def by_parts(self, x: T, shares: T, width: int, make: Callable[[T, T], T], *, summed: bool) -> T:
        """`make` of (b, l, h) and its `shares`, (b, width): some of the tokens at a time where `width` numbers for each
        of them would take too much, and of what these come to the sum, or the largest."""
        ...


@dataclass(frozen=True)
class Inputs(Generic[T]):
    """One padded batch: `ids` and `positions` are (b, l) integers, `mask` is (b, l), 1 for tokens and 0 for padding;
    `shares` is (b, modes, texts, l), how much of each token is in a pooled vector; `types` is (b, l), integers, for
    models that tell two texts apart by them: of which each token is. `packed`: a row may hold several texts, which
    `mask` numbers from 1 on."""

    ids: T
    positions: T
    mask: T
    shares: T
    types: T | None = None
    packed: bool = field(default=False, kw_only=True)


NOTHING = -1e9
"""The largest of no tokens, as sentence-transformers has it; in float32 it still has a length."""
INPUTS = ("ids", "positions", "mask", "shares")


def inputs_of(config: EncoderConfig) -> tuple[str, ...]:
    """The names of what this model is given."""
    return (*INPUTS, "types") if config.types else INPUTS
