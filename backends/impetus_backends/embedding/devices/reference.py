"""The encoder in numpy, float32: the reference by which every other device is judged, and a device of last resort."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from impetus_backends.embedding.devices.operations import NOTHING
from impetus_backends.embedding.encoder import embed, pad, vectors_of, weigh
from impetus_backends.embedding.folder.fitting import open_weights
from impetus_backends.embedding.sparse import vectors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from impetus_backends.embedding.devices.operations import Inputs
    from impetus_backends.embedding.folder.config import EmbeddingConfig
    from impetus_backends.embedding.folder.transformer.shapes import Attention, Experts
    from impetus_backends.embedding.folder.weights import Weights
    from impetus_backends.protocol import Spans, SparseVector

    Floats = npt.NDArray[np.float32]

# A rational approximation of erf on [-4, 4], as in Eigen's generic_fast_erf (MPL-2.0) and XLA; within 5e-7 of math.erf.
_ERF_P = (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
          -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02)  # fmt: skip
_ERF_Q = (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
          -1.42647390514189e-02)  # fmt: skip
SCORES_BYTES = 256 * 1024 * 1024
"""Of one layer's attention, beyond which scores are made by blocks of about so many. Batches of the usual size, of
texts of up to 512 tokens and with up to 16 heads, do not come to it: blocks took up to a third longer there."""
_LEAST_SCORES_BYTES = 8 * 1024 * 1024
"""Those of a text of 418 tokens and 12 heads: smaller blocks would save nothing beside what else a text takes."""


def erf(x: Floats) -> Floats:
    """The error function in float32, to 5e-7 of the exact value everywhere."""
    x = np.clip(x, -4, 4)
    square = x * x
    p = np.full_like(x, _ERF_P[0])
    for coefficient in _ERF_P[1:]:
        p *= square
        p += np.float32(coefficient)
    q = np.full_like(x, _ERF_Q[0])
    for coefficient in _ERF_Q[1:]:
        q *= square
        q += np.float32(coefficient)
    return x * p / q


class NumpyOps:
    """`Ops` on numpy arrays."""

    def __init__(self, weights: Weights, *, scores_bytes: int = SCORES_BYTES) -> None:
        """`scores_bytes`: as much as the scores of a layer may take at a time."""
        self._weights = weights
        self._scores_bytes = scores_bytes
        self._cache: dict[str, Floats] = {}

    def _weight(self, name: str) -> Floats:
        if name not in self._cache:
            self._cache[name] = self._weights[name]
        return self._cache[name]

    def embed(self, table: str, ids: np.ndarray, rows: int) -> Floats:
        result: Floats = self._weight(table)[ids]
        return result

    def row(self, table: str, index: int) -> Floats:
        result: Floats = self._weight(table)[index]
        return result

    def add(self, a: Floats, b: Floats) -> Floats:
        return a + b

    def multiply(self, a: Floats, b: Floats) -> Floats:
        return a * b

    def scale(self, x: Floats, factor: float) -> Floats:
        return x * np.float32(factor)

    def split(self, x: Floats, parts: int) -> Sequence[Floats]:
        return np.split(x, parts, axis=-1)

    def linear(self, x: Floats, name: str, width: int, *, bias: bool = True) -> Floats:
        weight = self._weight(f"{name}.weight")
        # One flat product: numpy would otherwise make one for each text.
        product = x.reshape(-1, weight.shape[1]) @ weight.T
        if bias:
            product += self._weight(f"{name}.bias")
        return product.reshape(*x.shape[:-1], width)

    project = linear

    def layer_norm(self, x: Floats, name: str, eps: float, *, bias: bool = True) -> Floats:
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(eps))
        result: Floats = centred / spread * self._weight(f"{name}.weight")
        if bias:
            result += self._weight(f"{name}.bias")
        return result

    norm = layer_norm

    def rms_norm(self, x: Floats, name: str, eps: float, *, size: int = 0, centre: float = 0.0) -> Floats:
        each = x.reshape(*x.shape[:-1], -1, size or x.shape[-1])
        length = np.sqrt((each * each).mean(axis=-1, keepdims=True) + np.float32(eps))
        result: Floats = each / length * (self._weight(f"{name}.weight") + np.float32(centre))
        return result.reshape(x.shape)

    def activate(self, x: Floats, kind: str) -> Floats:
        half = np.float32(0.5)
        result: Floats
        if kind == "gelu":
            result = half * x * (1 + erf(x * np.float32(0.5**0.5)))
        elif kind == "gelu_tanh":
            result = half * x * (1 + np.tanh(np.float32((2 / np.pi) ** 0.5) * (x + np.float32(0.044715) * x * x * x)))
        elif kind == "silu":
            # By the hyperbolic tangent, which overflows nowhere.
            result = half * x * (1 + np.tanh(half * x))
        elif kind == "sigmoid":
            result = half * (1 + np.tanh(half * x))
        elif kind == "log1p":
            result = np.log1p(x)
        else:
            result = np.tanh(x) if kind == "tanh" else np.maximum(x, 0)
        return result

    bend = activate

    def turn(self, x: Floats, positions: np.ndarray, how: Attention) -> Floats:
        each = x.reshape(*x.shape[:-1], -1, how.head_size)
        half = how.head_size // 2
        angles = (positions[..., None].astype(np.float32) * np.array(how.frequencies, np.float32))[..., None, :]
        cosine, sine = np.cos(angles), np.sin(angles)
        left, right = each[..., :half], each[..., half:]
        turned = np.concatenate([left * cosine - right * sine, right * cosine + left * sine], axis=-1)
        return turned.reshape(x.shape)

    def relative_bias(self, table: str, rows: int, buckets: np.ndarray, ids: np.ndarray) -> Floats:
        """A row for each distance, and a column for each head: the scores are told from it when they are made."""
        by_distance: Floats = self._weight(table)[buckets]
        return by_distance

    def table(self, name: str, rows: int) -> Floats:
        return self._weight(name)

    def toward_places(
        self, x: Floats, places: Floats, buckets: np.ndarray, how: Attention, *, of_keys: bool = False
    ) -> Floats:
        batch, length, _ = x.shape
        each = x.reshape(batch, length, -1, how.head_size).transpose(0, 2, 1, 3)
        products = each @ places.reshape(len(places), -1, how.head_size).transpose(1, 2, 0) * np.float32(how.scale)
        index = by_places(buckets, length)
        index = buckets[index.T if of_keys else index]
        found = np.take_along_axis(products, np.broadcast_to(index, (*products.shape[:2], *index.shape)), axis=-1)
        result: Floats = found.swapaxes(-1, -2) if of_keys else found
        return result

    def experts(self, x: Floats, name: str, experts: Experts, width: int, activation: str) -> Floats:
        tokens = x.reshape(-1, x.shape[-1])
        logits = tokens @ self._weight(f"{name}.router.layer.weight").T
        shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        chosen = np.argsort(-shares, axis=-1, kind="stable")[:, : experts.chosen]
        first, second = (
            self._weight(f"{name}.experts.mlp.{part}").reshape(experts.count, width, -1) for part in ("w1", "w2")
        )
        made = np.zeros_like(tokens)
        for expert in range(experts.count):
            mine = np.flatnonzero((chosen == expert).any(axis=-1))
            wide = self.activate(tokens[mine] @ first[expert].T, activation)
            made[mine] += shares[mine, expert, None] * (wide @ second[expert])
        result: Floats = (made + self._weight(f"{name}.experts.bias")).reshape(x.shape)
        return result

    def apart(self, mask: Floats) -> Floats:
        """The texts' numbers (b, 1, l)."""
        return mask[:, None]

    def attention(
        self, q: Floats, k: Floats, v: Floats, mask: Floats, how: Attention, bias: Floats | None = None
    ) -> Floats:
        batch, length, _ = q.shape
        q, k, v = (x.reshape(batch, length, -1, how.head_size).transpose(0, 2, 1, 3) for x in (q, k, v))
        if how.key_value_heads != how.heads:
            k, v = (np.repeat(x, how.heads // how.key_value_heads, axis=1) for x in (k, v))
        k = k.transpose(0, 1, 3, 2)
        mixed = np.empty_like(q)
        step = queries_a_block(how.heads, batch, length, self._scores_bytes) or length
        for begin in range(0, length, step):
            queries = slice(begin, min(begin + step, length))
            scores = q[:, :, queries] @ k * np.float32(how.scale)
            if bias is not None:
                scores += _added(bias, length, queries)
            # Of several texts in a row a token sees those with the number of its own.
            same = mask[:, :, None, :] == mask[:, :, queries, None] if mask.ndim == 3 else mask[:, None, None] > 0
            seen = same & within(how, length, queries) if how.causal or how.window else same
            np.copyto(scores, np.float32(-1e30), where=~seen)
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=-1, keepdims=True)
            mixed[:, :, queries] = scores @ v
        result: Floats = mixed.transpose(0, 2, 1, 3).reshape(batch, length, how.heads * how.head_size)
        return result

    def pool(self, x: Floats, shares: Floats, mode: int) -> Floats:
        result: Floats = (shares[:, mode] @ x).reshape(-1, x.shape[-1])
        return result

    def largest(self, x: Floats, shares: Floats, mode: int) -> Floats:
        result: Floats = np.where(shares[:, mode, 0, :, None] > 0, x, np.float32(NOTHING)).max(axis=1)
        return result

    def by_parts(
        self, x: Floats, shares: Floats, width: int, make: Callable[[Floats, Floats], Floats], *, summed: bool
    ) -> Floats:
        combine = np.add if summed else np.maximum
        return reduce(combine, (make(*part) for part in parts_of(x, shares, width, self._scores_bytes)))

    def join(self, parts: Sequence[Floats]) -> Floats:
        return np.concatenate(parts, axis=-1)

    def first(self, x: Floats, count: int) -> Floats:
        return x[:, :count]

    def normalise(self, x: Floats) -> Floats:
        result: Floats = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.float32(1e-12))
        return result


def _added(bias: Floats, length: int, queries: slice) -> Floats:
    """What of `bias` is these queries', by distance or whole."""
    if bias.ndim == 4:
        return bias[:, :, queries]
    by_distance: Floats = bias[by_places(bias, length, queries)].transpose(2, 0, 1)
    return by_distance


def scores_bytes(heads: int, most_tokens: int) -> int:
    """What the scores of a batch of so many tokens take at most, which is where they are all in one row; within what
    is worth a bound."""
    return max(_LEAST_SCORES_BYTES, min(SCORES_BYTES, 4 * heads * most_tokens**2))


def queries_a_block(heads: int, batch: int, length: int, most_bytes: int) -> int:
    """Of how many queries the scores are made at a time, so that they take about `most_bytes` in float32 at most; 0
    where all of them do not take more."""
    return tokens_a_block(heads * length, batch, length, most_bytes)


def tokens_a_block(width: int, batch: int, length: int, most_bytes: int) -> int:
    """The same where each token of a text has so many numbers."""
    one = 4 * width * batch
    if one * length <= most_bytes:
        return 0
    blocks = -(-length // max(1, most_bytes // one))
    return -(-length // blocks)


def parts_of(x: Any, shares: Any, width: int, most_bytes: int) -> Iterator[tuple[Any, Any]]:
    """Some tokens of `x` (b, l, h) at a time, and their shares."""
    batch, length, _ = x.shape
    step = tokens_a_block(width, batch, length, most_bytes) or length
    for begin in range(0, length, step):
        yield x[:, begin : begin + step], shares[..., begin : begin + step]


def distances(length: int, queries: slice = slice(None)) -> np.ndarray:
    """How far after each query, or after each of those, each key comes, (queries, l)."""
    places = np.arange(length, dtype=np.int32)
    return places[None, :] - places[queries, None]


def by_places(buckets: np.ndarray, length: int, queries: slice = slice(None)) -> np.ndarray:
    """Which of `buckets`, those of the distances -n to n, each query and key are in, (queries, l). What is farther
    apart is of two texts that share a row, and does not count."""
    farthest = len(buckets) // 2
    return distances(length, queries).clip(-farthest, farthest) + farthest


def within(how: Attention, length: int, queries: slice = slice(None)) -> np.ndarray:
    """Which keys each query may see, (queries, l), padding left aside."""
    apart = distances(length, queries)
    return (apart <= (0 if how.causal else how.window or length)) & (apart >= -(how.window or length))


class NumpyEmbeddingBackend:
    """The reference. `embed` returns float32 (n, d), as all devices do."""

    name = "numpy"
    device = "cpu"
    precision = "fp32"

    def __init__(self, config: EmbeddingConfig) -> None:
        self._config = config
        self._ops: NumpyOps | None = None

    def load(self) -> None:
        """Opens the weights; raises `ModelError` where they do not fit the configuration."""
        self._ops = NumpyOps(open_weights(self._config))

    def embed(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """The vectors of token rows, in their order; raises `RequestError` for a row that the model cannot read."""
        return self._run(pad(self._config, rows))

    def embed_chunks(self, rows: Sequence[np.ndarray], chunks: Sequence[Spans]) -> np.ndarray:
        found: np.ndarray = self._run(pad(self._config, rows, chunks=chunks))[vectors_of(chunks)]
        return found

    def _run(self, batch: Inputs[np.ndarray]) -> Floats:
        assert self._ops is not None, "load() comes first"
        return embed(self._ops, self._config, batch).astype(np.float32, copy=False)

    def weigh(self, rows: Sequence[np.ndarray]) -> list[SparseVector]:
        """Of a model with a sparse head: the sparse vectors of token rows, in their order; raises as `embed`."""
        assert self._ops is not None, "load() comes first"
        return vectors(self._config, rows, weigh(self._ops, self._config, pad(self._config, rows)))
