"""The encoder in Core ML's intermediate language (MIL), laid out as the Neural Engine wants it.

Knows the encoder and MIL. A tensor is (b, h, 1, l) and not (b, l, h), linear layers are 1x1 convolutions and attention
goes head by head: https://machinelearning.apple.com/research/neural-engine-transformers. Everything is float16 but the
last scaling of a few numbers a text, which would overflow. Shapes are static.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from impetus_backends.embedding.coreml.quantize import Dense, Int8, Stored, store

if TYPE_CHECKING:
    from impetus_backends.embedding.weights import Weights

_LEAST_EPS = 1e-5
"""BERT's own 1e-12 is nothing in float16."""
_MASKED = 1e4
"""Taken off the scores of padding. Finite in float16, and its exponential is zero."""
_PRODUCT = "nchw,nwhu->nchu"
"""The one contraction that the Neural Engine runs as it stands."""


class Parameters:
    """The weights of a model in the form a package stores them, each made once for all functions."""

    def __init__(self, weights: Weights, mode: str = "none") -> None:
        self._weights = weights
        self._mode = mode
        self._stored: dict[str, Stored] = {}

    def __getitem__(self, name: str) -> Stored:
        if name not in self._stored:
            self._stored[name] = store(self._weights[name], self._mode)
        return self._stored[name]

    def row(self, name: str, index: int) -> np.ndarray:
        row: np.ndarray = self._weights[name][index].astype(np.float16)
        return row


class MilOps:
    """`Ops` that write MIL into the function that is open: one instance a function. A tensor is a MIL variable.

    The mask is (b, l) float32. Weights of one name are stored once, however many functions use them.
    """

    def __init__(self, parameters: Parameters, mb: Any, types: Any) -> None:
        self._parameters = parameters
        self._mb = mb
        self._types = types
        self._made: dict[str, Any] = {}

    def _constant(self, name: str, values: np.ndarray) -> Any:
        variable = self._mb.const(val=values)
        # What makes constants of several functions one in the file.
        variable.op.weight_id = name
        return variable

    def _weight(self, name: str, *, kernel: bool = False) -> Any:
        if name not in self._made:
            self._made[name] = self._stored(name, self._parameters[name], (..., None, None) if kernel else ...)
        return self._made[name]

    def _stored(self, name: str, stored: Stored, shape: Any) -> Any:
        if isinstance(stored, Dense):
            return self._constant(name, stored.values[shape])
        if isinstance(stored, Int8):
            return self._mb.constexpr_blockwise_shift_scale(
                data=self._constant(name, stored.values[shape]),
                scale=self._constant(f"{name}.scale", stored.scales[shape]),
            )
        indices = stored.indices[shape].astype(self._types.np_uint6_dtype)
        table = stored.table.reshape(*[1] * indices.ndim, len(stored.table), 1)
        return self._mb.constexpr_lut_to_dense(
            indices=self._constant(name, indices), lut=self._constant(f"{name}.table", table)
        )

    def embed(self, table: str, ids: Any) -> Any:
        # The look-up runs on the CPU, and so does the turn into the other layout.
        rows = self._mb.gather(x=self._weight(table), indices=ids, axis=0, validate_indices=False)
        return self._mb.expand_dims(x=self._mb.transpose(x=rows, perm=[0, 2, 1]), axes=[2])

    def row(self, table: str, index: int) -> Any:
        row = self._parameters.row(table, index)[None, :, None, None]
        return self._constant(f"{table}[{index}]", row)

    def add(self, a: Any, b: Any) -> Any:
        return self._mb.add(x=a, y=b)

    def linear(self, x: Any, name: str) -> Any:
        weight, bias = self._weight(f"{name}.weight", kernel=True), self._weight(f"{name}.bias")
        return self._mb.conv(x=x, weight=weight, bias=bias, pad_type="valid")

    def layer_norm(self, x: Any, name: str, eps: float) -> Any:
        gamma, beta = self._weight(f"{name}.weight"), self._weight(f"{name}.bias")
        return self._mb.layer_norm(x=x, axes=[1], gamma=gamma, beta=beta, epsilon=np.float16(max(eps, _LEAST_EPS)))

    def gelu(self, x: Any) -> Any:
        return self._mb.gelu(x=x, mode="EXACT")

    def attention(self, q: Any, k: Any, v: Any, mask: Any, heads: int) -> Any:
        mb = self._mb
        # Before the product and not after it, so that no score comes near float16's end.
        q = mb.mul(x=q, y=np.float16((q.shape[1] // heads) ** -0.5))
        queries = mb.split(x=q, num_splits=heads, axis=1)
        keys = mb.split(x=mb.transpose(x=k, perm=[0, 3, 2, 1]), num_splits=heads, axis=3)
        values = mb.split(x=v, num_splits=heads, axis=1)
        bias = self._bias(mask)
        mixed = []
        for query, key, value in zip(queries, keys, values, strict=True):
            scores = mb.add(x=mb.einsum(values=(key, query), equation=_PRODUCT), y=bias)
            mixed.append(mb.einsum(values=(value, mb.softmax(x=scores, axis=1)), equation=_PRODUCT))
        return mb.concat(values=mixed, axis=1)

    def _tall(self, mask: Any) -> Any:
        """(b, l, 1, 1) float16: a token a row."""
        if "tall" not in self._made:
            self._made["tall"] = self._mb.cast(x=self._mb.expand_dims(x=mask, axes=[2, 3]), dtype="fp16")
        return self._made["tall"]

    def _bias(self, mask: Any) -> Any:
        """0 for tokens and -1e4 for padding, (b, l, 1, 1)."""
        if "bias" not in self._made:
            missing = self._mb.sub(x=self._tall(mask), y=np.float16(1))
            self._made["bias"] = self._mb.mul(x=missing, y=np.float16(_MASKED))
        return self._made["bias"]

    def pool(self, x: Any, mask: Any, mode: str) -> Any:
        mb = self._mb
        if mode == "cls":
            pooled = mb.slice_by_size(x=x, begin=[0, 0, 0, 0], size=[x.shape[0], x.shape[1], 1, 1])
        else:
            # Divided before the sum, which over 512 tokens could overflow.
            tall = self._tall(mask)
            shares = mb.real_div(x=tall, y=mb.reduce_sum(x=tall, axes=[1], keep_dims=True))
            pooled = mb.einsum(values=(x, shares), equation=_PRODUCT)
        return mb.cast(x=mb.squeeze(x=pooled, axes=[2, 3]), dtype="fp32")

    def normalise(self, x: Any) -> Any:
        norm = self._mb.reduce_l2_norm(x=x, axes=[-1], keep_dims=True)
        return self._mb.real_div(x=x, y=self._mb.maximum(x=norm, y=np.float32(1e-12)))
