"""The encoder through MLX: on an Apple GPU in float16, elsewhere on the CPU in float32 (correct, and slow).

Knows the encoder and MLX. Operations follow https://ml-explore.github.io/mlx/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from impetus_backends.embedding.encoder import Inputs, embed, pad
from impetus_backends.embedding.weights import Weights
from impetus_backends.errors import BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from impetus_backends.embedding.config import EmbeddingConfig

_LENGTH_STEP = 16
_BATCH_STEP = 8
_CACHE_BYTES = 512 * 1024 * 1024


class MLXOps:
    """`Ops` on MLX arrays, in the one precision of the device."""

    def __init__(self, weights: Weights, mx: Any, dtype: Any) -> None:
        self._weights = weights
        self._mx = mx
        self._dtype = dtype
        self._cache: dict[str, Any] = {}

    def _weight(self, name: str) -> Any:
        if name not in self._cache:
            self._cache[name] = self._mx.array(self._weights[name]).astype(self._dtype)
        return self._cache[name]

    def embed(self, table: str, ids: Any) -> Any:
        return self._weight(table)[ids]

    def row(self, table: str, index: int) -> Any:
        return self._weight(table)[index]

    def add(self, a: Any, b: Any) -> Any:
        return a + b

    def linear(self, x: Any, name: str) -> Any:
        return self._mx.addmm(self._weight(f"{name}.bias"), x, self._weight(f"{name}.weight").T)

    def layer_norm(self, x: Any, name: str, eps: float) -> Any:
        return self._mx.fast.layer_norm(x, self._weight(f"{name}.weight"), self._weight(f"{name}.bias"), eps)

    def gelu(self, x: Any) -> Any:
        return x * (1 + self._mx.erf(x * 0.5**0.5)) * 0.5

    def attention(self, q: Any, k: Any, v: Any, mask: Any, heads: int) -> Any:
        batch, length, hidden = q.shape
        size = hidden // heads
        q, k, v = (x.reshape(batch, length, heads, size).transpose(0, 2, 1, 3) for x in (q, k, v))
        seen = (mask > 0)[:, None, None, :]
        mixed = self._mx.fast.scaled_dot_product_attention(q, k, v, scale=size**-0.5, mask=seen)
        return mixed.transpose(0, 2, 1, 3).reshape(batch, length, hidden)

    def pool(self, x: Any, mask: Any, mode: str) -> Any:
        # A sum over 512 tokens is beyond float16.
        x = x.astype(self._mx.float32)
        if mode == "cls":
            return x[:, 0]
        return (x * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)

    def normalise(self, x: Any) -> Any:
        return x / self._mx.maximum(self._mx.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class MLXEmbeddingBackend:
    """MLX on its default device. One thread must load and use it."""

    name = "mlx"
    device = "mlx"
    precision = "fp32"

    def __init__(self, config: EmbeddingConfig) -> None:
        self._config = config
        self._ops: MLXOps | None = None
        self._mx: Any = None

    def load(self) -> None:
        """Opens the weights; raises `BackendUnavailableError` without MLX."""
        try:
            import mlx.core as mx
        except ImportError as error:
            raise BackendUnavailableError(
                f"the mlx backend needs MLX ({error}): pip install 'impetus-batch[mlx]'"
            ) from error
        on_gpu = bool(mx.metal.is_available())
        self.device = f"gpu ({mx.device_info().get('device_name', 'Apple')})" if on_gpu else "cpu"
        self.precision = "fp16" if on_gpu else "fp32"
        # The pool keeps a buffer of every size ever used; without a limit it only grows.
        mx.set_cache_limit(_CACHE_BYTES)
        self._mx = mx
        self._ops = MLXOps(Weights(self._config.transformer), mx, mx.float16 if on_gpu else mx.float32)

    def embed(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """The vectors of token rows, in their order; raises `RequestError` for a row that the model cannot read."""
        assert self._ops is not None, "load() comes first"
        longest = max((len(row) for row in rows), default=1)
        batch = pad(
            self._config.encoder,
            rows,
            batch=round_batch(len(rows)),
            length=min(-(-longest // _LENGTH_STEP) * _LENGTH_STEP, self._config.encoder.longest),
        )
        inputs = Inputs(*(self._mx.array(array) for array in (batch.ids, batch.positions, batch.mask)))
        vectors = np.array(embed(self._ops, self._config, inputs), dtype=np.float32)
        return vectors[: len(rows)]


def round_batch(count: int) -> int:
    """The next power of two up to 8, then the next multiple of 8: few shapes, and little of each batch wasted."""
    return 1 << (count - 1).bit_length() if count <= _BATCH_STEP else -(-count // _BATCH_STEP) * _BATCH_STEP
