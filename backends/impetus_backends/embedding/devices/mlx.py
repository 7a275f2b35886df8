"""The encoder through MLX: on an Apple GPU in float16, elsewhere on the CPU in float32 (correct, and slow).

Knows the encoder and MLX. Operations follow https://ml-explore.github.io/mlx/.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from impetus_backends.embedding.devices.compiled import Compiled, run
from impetus_backends.embedding.devices.operations import NOTHING, Inputs, inputs_of
from impetus_backends.embedding.devices.packages.form import lay
from impetus_backends.embedding.devices.reference import SCORES_BYTES, by_places, parts_of, within
from impetus_backends.embedding.devices.sharing import rows_of
from impetus_backends.embedding.encoder import embed, pad, vectors_of, weigh
from impetus_backends.embedding.folder.fitting import open_weights
from impetus_backends.embedding.sparse import vectors
from impetus_backends.errors import BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from impetus_backends.embedding.folder.config import EmbeddingConfig
    from impetus_backends.embedding.folder.transformer.shapes import Attention, Experts
    from impetus_backends.embedding.folder.weights import Weights
    from impetus_backends.protocol import Spans, SparseVector

_UNSEEN = -1e4
"""Added to scores that do not count: its exponential is zero, and float16 holds it."""
_CACHE_BYTES = 512 * 1024 * 1024


class MLXOps:
    """`Ops` on MLX arrays, in the one precision of the device."""

    def __init__(self, weights: Weights, mx: Any, dtype: Any, *, scores_bytes: int = SCORES_BYTES) -> None:
        """`scores_bytes`: as much as logits of a vocabulary may take at a time, in float32."""
        self._weights = weights
        self._scores_bytes = scores_bytes
        self._mx = mx
        self._dtype = dtype
        self._cache: dict[str, Any] = {}
        on_gpu = mx.default_device().type == mx.DeviceType.gpu
        self._gelu = mx.compile(self._plain_gelu, shapeless=True) if on_gpu else self._plain_gelu

    def _weight(self, name: str, centre: float = 0.0) -> Any:
        if name not in self._cache:
            self._cache[name] = self._mx.array(self._weights[name] + np.float32(centre)).astype(self._dtype)
        return self._cache[name]

    def _packed(self, name: str) -> tuple[list[Any], dict[str, int]] | None:
        """What MLX's operations on quantised matrices take, of one that is."""
        found = self._weights.packed(name)
        if found is None:
            return None
        if name not in self._cache:
            scales = [self._mx.array(each).astype(self._dtype) for each in (found.scales, found.biases)]
            self._cache[name] = [self._mx.array(np.ascontiguousarray(found.words)), *scales]
        return self._cache[name], {"group_size": found.packing.group_size, "bits": found.packing.bits}

    def embed(self, table: str, ids: Any, rows: int) -> Any:
        packed = self._packed(table)
        if packed is None:
            return self._weight(table)[ids]
        arrays, packing = packed
        return self._mx.dequantize(*(each[ids] for each in arrays), **packing)

    def row(self, table: str, index: int) -> Any:
        return self.embed(table, self._mx.array([index]), 0)[0]

    def add(self, a: Any, b: Any) -> Any:
        return a + b

    def multiply(self, a: Any, b: Any) -> Any:
        return a * b

    def scale(self, x: Any, factor: float) -> Any:
        return x * factor

    def split(self, x: Any, parts: int) -> Sequence[Any]:
        found: Sequence[Any] = self._mx.split(x, parts, axis=-1)
        return found

    def linear(self, x: Any, name: str, width: int, *, bias: bool = True) -> Any:
        packed = self._packed(f"{name}.weight")
        if packed is not None:
            arrays, packing = packed
            product = self._mx.quantized_matmul(x, *arrays, transpose=True, **packing)
            return product + self._weight(f"{name}.bias") if bias else product
        weight = self._weight(f"{name}.weight").T
        return self._mx.addmm(self._weight(f"{name}.bias"), x, weight) if bias else x @ weight

    project = linear

    def layer_norm(self, x: Any, name: str, eps: float, *, bias: bool = True) -> Any:
        added = self._weight(f"{name}.bias") if bias else None
        return self._mx.fast.layer_norm(x, self._weight(f"{name}.weight"), added, eps)

    norm = layer_norm

    def rms_norm(self, x: Any, name: str, eps: float, *, size: int = 0, centre: float = 0.0) -> Any:
        each = x.reshape(*x.shape[:-1], -1, size or x.shape[-1])
        return self._mx.fast.rms_norm(each, self._weight(f"{name}.weight", centre), eps).reshape(x.shape)

    def activate(self, x: Any, kind: str) -> Any:
        mx = self._mx
        if kind == "gelu":
            return self._gelu(x)
        if kind == "gelu_tanh":
            return 0.5 * x * (1 + mx.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x * x * x)))
        if kind == "silu":
            return x * mx.sigmoid(x)
        if kind == "sigmoid":
            return mx.sigmoid(x)
        if kind == "log1p":
            return mx.log1p(x)
        return mx.tanh(x) if kind == "tanh" else mx.maximum(x, 0)

    def _plain_gelu(self, x: Any) -> Any:
        return x * (1 + self._mx.erf(x * 0.5**0.5)) * 0.5

    bend = activate

    def turn(self, x: Any, positions: Any, how: Attention) -> Any:
        batch, length, width = x.shape
        each = x.reshape(batch, length, -1, how.head_size).transpose(0, 2, 1, 3)
        # What the kernel calls frequencies is in how many positions a pair is turned by one.
        periods = self._mx.array(1 / np.array(how.frequencies, np.float32))
        # Every row begins at position 0, which is what the kernel takes positions to be.
        turned = self._mx.fast.rope(
            each, how.head_size, traditional=False, base=None, scale=1.0, offset=0, freqs=periods
        )
        return turned.transpose(0, 2, 1, 3).reshape(batch, length, width)

    def relative_bias(self, table: str, rows: int, buckets: np.ndarray, ids: Any) -> Any:
        places = self._mx.array(buckets[by_places(buckets, ids.shape[1])])
        return self._weight(table)[places].transpose(2, 0, 1)

    def table(self, name: str, rows: int) -> Any:
        return self._weight(name)

    def toward_places(self, x: Any, places: Any, buckets: np.ndarray, how: Attention, *, of_keys: bool = False) -> Any:
        batch, length, _ = x.shape
        each = x.reshape(batch, length, -1, how.head_size).transpose(0, 2, 1, 3)
        products = each @ places.reshape(places.shape[0], -1, how.head_size).transpose(1, 2, 0) * how.scale
        index = by_places(buckets, length)
        index = self._mx.array(buckets[index.T if of_keys else index])
        index = self._mx.broadcast_to(index, (*products.shape[:2], length, length))
        found = self._mx.take_along_axis(products, index, axis=-1)
        return found.swapaxes(-1, -2) if of_keys else found

    def experts(self, x: Any, name: str, experts: Experts, width: int, activation: str) -> Any:
        mx = self._mx
        shares = mx.softmax((x @ self._weight(f"{name}.router.layer.weight").T).astype(mx.float32), axis=-1)
        chosen = mx.argpartition(-shares, kth=experts.chosen - 1, axis=-1)[..., : experts.chosen]
        first, second = (
            self._weight(f"{name}.experts.mlp.{part}").reshape(experts.count, width, -1) for part in ("w1", "w2")
        )
        # Each token beside each of its experts: (b, l, chosen, 1, h).
        wide = mx.gather_mm(x[..., None, None, :], first.swapaxes(1, 2), rhs_indices=chosen)
        narrow = mx.gather_mm(self.activate(wide, activation), second, rhs_indices=chosen)[..., 0, :]
        weights = mx.take_along_axis(shares, chosen, axis=-1)[..., None].astype(x.dtype)
        return (narrow * weights).sum(axis=-2) + self._weight(f"{name}.experts.bias")

    def apart(self, mask: Any) -> Any:
        return mask[:, :, None] == mask[:, None, :]

    def attention(self, q: Any, k: Any, v: Any, mask: Any, how: Attention, bias: Any = None) -> Any:
        batch, length, _ = q.shape
        q, k, v = (x.reshape(batch, length, -1, how.head_size).transpose(0, 2, 1, 3) for x in (q, k, v))
        seen = mask[:, None] if mask.ndim == 3 else (mask > 0)[:, None, None, :]
        if how.causal or how.window:
            seen = seen & self._mx.array(within(how, length))
        if how.window or bias is not None:
            # A token that sees no key would come to nothing that is a number if its scores were all left out.
            seen = self._mx.where(seen, 0 if bias is None else bias, _UNSEEN).astype(q.dtype)
        mixed = self._mx.fast.scaled_dot_product_attention(q, k, v, scale=how.scale, mask=seen)
        return mixed.transpose(0, 2, 1, 3).reshape(batch, length, how.heads * how.head_size)

    def pool(self, x: Any, shares: Any, mode: int) -> Any:
        # A sum over 512 tokens is beyond float16.
        return (shares[:, mode] @ x.astype(self._mx.float32)).reshape(-1, x.shape[-1])

    def largest(self, x: Any, shares: Any, mode: int) -> Any:
        seen = shares[:, mode, 0][:, :, None] > 0
        return self._mx.where(seen, x.astype(self._mx.float32), NOTHING).max(axis=1)

    def by_parts(self, x: Any, shares: Any, width: int, make: Callable[[Any, Any], Any], *, summed: bool) -> Any:
        made = None
        for part in parts_of(x, shares, width, self._scores_bytes):
            found = make(*part)
            made = found if made is None else made + found if summed else self._mx.maximum(made, found)
            self._mx.eval(made)  # or the logits of several parts would be held at a time
        return made

    def join(self, parts: Sequence[Any]) -> Any:
        return self._mx.concatenate(list(parts), axis=-1)

    def first(self, x: Any, count: int) -> Any:
        return x[:, :count]

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
        self.run_by: dict[bool, Callable[[Sequence[Any]], np.ndarray]] = {}
        """By whether rows are of several texts each."""

    def load(self) -> None:
        """Opens the weights; raises `BackendUnavailableError` without MLX."""
        try:
            import mlx.core as mx
        except ImportError as error:
            raise BackendUnavailableError(
                f"the mlx backend needs MLX ({error}): pip install 'impetus-batch[mlx]'"
            ) from error
        # Metal's on a Mac, or CUDA's: MLX's default device says which kind this is, whoever made it.
        on_gpu = mx.default_device().type == mx.DeviceType.gpu
        self.device = f"gpu ({mx.device_info().get('device_name', 'Apple')})" if on_gpu else "cpu"
        self.precision = "fp16" if on_gpu else "fp32"
        # The pool keeps a buffer of every size ever used; without a limit it only grows.
        mx.set_cache_limit(_CACHE_BYTES)
        self._mx = mx
        self._ops = MLXOps(open_weights(self._config), mx, mx.float16 if on_gpu else mx.float32)
        for packed in (False, True):
            function = self.function(packed=packed)
            # On a CPU, MLX's compiler calls a C++ compiler, which need not be there.
            self.run_by[packed] = (
                Compiled(function, mx.compile, mx.get_active_memory) if on_gpu else partial(run, function)
            )

    def function(self, *, packed: bool) -> Callable[..., Any]:
        """The model, of the arrays that `inputs_of` names."""
        ops, config, names = self._ops, self._config, inputs_of(self._config.encoder)
        assert ops is not None, "load() comes first"
        return lambda *arrays: embed(ops, config, Inputs(**dict(zip(names, arrays, strict=True)), packed=packed))

    def embed(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """The vectors of token rows, in their order; raises `RequestError` for a row that the model cannot read."""
        call = rows_of(self._config, [len(row) for row in rows])
        made = self._run(lay(self._config, call, rows))
        found = np.empty((len(rows), made.shape[1]), np.float32)
        found[list(call.rows)] = made[call.places]
        return found

    def embed_chunks(self, rows: Sequence[np.ndarray], chunks: Sequence[Spans]) -> np.ndarray:
        found: np.ndarray = self._run(pad(self._config, rows, chunks=chunks))[vectors_of(chunks)]
        return found

    def _run(self, batch: Inputs[np.ndarray]) -> np.ndarray:
        return self.run_by[batch.packed](self._arrays(batch))

    def weigh(self, rows: Sequence[np.ndarray]) -> list[SparseVector]:
        """Of a model with a sparse head: the sparse vectors of token rows, in their order; raises as `embed`."""
        assert self._ops is not None, "load() comes first"
        batch = lay(self._config, rows_of(self._config, [len(row) for row in rows], shared=False), rows)
        arrays = dict(zip(inputs_of(self._config.encoder), self._arrays(batch), strict=True))
        made = weigh(self._ops, self._config, Inputs(**arrays, packed=batch.packed))
        return vectors(self._config, rows, np.array(made.astype(self._mx.float32)))

    def _arrays(self, batch: Inputs[np.ndarray]) -> list[Any]:
        return [self._mx.array(getattr(batch, name)) for name in inputs_of(self._config.encoder)]
