"""The encoder in numpy, float32: the reference by which every other device is judged, and a device of last resort."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from impetus_backends.embedding.encoder import embed, pad
from impetus_backends.embedding.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from impetus_backends.embedding.config import EmbeddingConfig

    Floats = npt.NDArray[np.float32]

# A rational approximation of erf on [-4, 4], as in Eigen's generic_fast_erf (MPL-2.0) and XLA; within 5e-7 of math.erf.
_ERF_P = (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
          -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02)  # fmt: skip
_ERF_Q = (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
          -1.42647390514189e-02)  # fmt: skip


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

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._cache: dict[str, Floats] = {}

    def _weight(self, name: str) -> Floats:
        if name not in self._cache:
            self._cache[name] = self._weights[name]
        return self._cache[name]

    def embed(self, table: str, ids: np.ndarray) -> Floats:
        result: Floats = self._weight(table)[ids]
        return result

    def row(self, table: str, index: int) -> Floats:
        result: Floats = self._weight(table)[index]
        return result

    def add(self, a: Floats, b: Floats) -> Floats:
        return a + b

    def linear(self, x: Floats, name: str) -> Floats:
        weight = self._weight(f"{name}.weight")
        # One flat product: numpy would otherwise make one for each text.
        product = x.reshape(-1, weight.shape[1]) @ weight.T
        product += self._weight(f"{name}.bias")
        return product.reshape(*x.shape[:-1], weight.shape[0])

    def layer_norm(self, x: Floats, name: str, eps: float) -> Floats:
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(eps))
        result: Floats = centred / spread * self._weight(f"{name}.weight") + self._weight(f"{name}.bias")
        return result

    def gelu(self, x: Floats) -> Floats:
        return np.float32(0.5) * x * (1 + erf(x * np.float32(0.5**0.5)))

    def attention(self, q: Floats, k: Floats, v: Floats, mask: Floats, heads: int) -> Floats:
        batch, length, hidden = q.shape
        q, k, v = (x.reshape(batch, length, heads, hidden // heads).transpose(0, 2, 1, 3) for x in (q, k, v))
        scores = q @ k.transpose(0, 1, 3, 2) * np.float32((hidden // heads) ** -0.5)
        scores = np.where(mask[:, None, None, :] > 0, scores, np.float32(-np.inf))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        result: Floats = (weights @ v).transpose(0, 2, 1, 3).reshape(batch, length, hidden)
        return result

    def pool(self, x: Floats, mask: Floats, mode: str) -> Floats:
        if mode == "cls":
            return x[:, 0]
        summed: Floats = (x * mask[:, :, None]).sum(axis=1)
        result: Floats = summed / mask.sum(axis=1, keepdims=True)
        return result

    def normalise(self, x: Floats) -> Floats:
        result: Floats = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.float32(1e-12))
        return result


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
        self._ops = NumpyOps(Weights(self._config.transformer))

    def embed(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """The vectors of token rows, in their order; raises `RequestError` for a row that the model cannot read."""
        assert self._ops is not None, "load() comes first"
        return embed(self._ops, self._config, pad(self._config.encoder, rows)).astype(np.float32, copy=False)
