"""The encoder in Core ML's intermediate language (MIL), laid out as the Neural Engine wants it.

Knows the encoder and MIL. A tensor is (b, h, 1, l) and not (b, l, h), linear layers are 1x1 convolutions and attention
goes head by head: https://machinelearning.apple.com/research/neural-engine-transformers. Everything is float16 but the
last scaling of a few numbers a text, which would overflow. Shapes are static.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from impetus_backends.embedding.devices.coreml.quantize import Dense, Int8, Stored, store
from impetus_backends.embedding.devices.reference import by_places, within

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from impetus_backends.embedding.folder.transformer.shapes import Attention
    from impetus_backends.embedding.folder.weights import Weights

_LEAST_EPS = 1e-5
"""BERT's own 1e-12 is nothing in float16."""
_MASKED = 1e4
"""Taken off the scores of padding. Finite in float16, and its exponential is zero."""
_PRODUCT = "nchw,nwhu->nchu"
"""The one contraction that the Neural Engine runs as it stands."""


class Parameters:
    """The weights of a model in the form a package stores them, each made once for all functions."""

    def __init__(self, weights: Weights, mode: str = "none", ranges: Mapping[str, float] | None = None) -> None:
        """`ranges`: how far the inputs of linear layers reach that are to be in eight bits."""
        self.ranges = ranges or {}
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

    def array(self, name: str) -> np.ndarray:
        """As it is, float32."""
        return self._weights[name]


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

    def embed(self, table: str, ids: Any, rows: int) -> Any:
        # The look-up runs on the CPU, and so does the turn into the other layout.
        found = self._mb.gather(x=self._weight(table), indices=ids, axis=0, validate_indices=False)
        return self._mb.expand_dims(x=self._mb.transpose(x=found, perm=[0, 2, 1]), axes=[2])

    def row(self, table: str, index: int) -> Any:
        row = self._parameters.row(table, index)[None, :, None, None]
        return self._constant(f"{table}[{index}]", row)

    def add(self, a: Any, b: Any) -> Any:
        return self._mb.add(x=a, y=b)

    def multiply(self, a: Any, b: Any) -> Any:
        return self._mb.mul(x=a, y=b)

    def scale(self, x: Any, factor: float) -> Any:
        return self._mb.mul(x=x, y=np.float16(factor))

    def split(self, x: Any, parts: int) -> Sequence[Any]:
        return self._split(x, parts, 1)

    def _split(self, x: Any, parts: int, axis: int) -> list[Any]:
        # One part comes back alone, and not as a list of one.
        return [x] if parts == 1 else list(self._mb.split(x=x, num_splits=parts, axis=axis))

    def linear(self, x: Any, name: str, width: int, *, bias: bool = True) -> Any:
        more = {"bias": self._weight(f"{name}.bias")} if bias else {}
        x = self._in_eight_bits(x, self._parameters.ranges.get(name, 0.0))
        return self._mb.conv(x=x, weight=self._weight(f"{name}.weight", kernel=True), pad_type="valid", **more)

    def _in_eight_bits(self, x: Any, furthest: float) -> Any:
        """There and back: with int8 weights a convolution after it is a product of eight bits on an M4 and later."""
        scale = np.float16(furthest / 127)
        if not scale:
            return x
        name = f"{x.name} in steps of {scale}"
        if name not in self._made:
            small = self._mb.quantize(input=x, scale=scale, output_dtype="int8")
            self._made[name] = self._mb.dequantize(input=small, scale=scale)
        return self._made[name]

    def layer_norm(self, x: Any, name: str, eps: float, *, bias: bool = True) -> Any:
        more = {"beta": self._weight(f"{name}.bias")} if bias else {}
        gamma = self._weight(f"{name}.weight")
        return self._mb.layer_norm(x=x, axes=[1], gamma=gamma, epsilon=np.float16(max(eps, _LEAST_EPS)), **more)

    def rms_norm(self, x: Any, name: str, eps: float, *, size: int = 0, centre: float = 0.0) -> Any:
        """As the first half of a layer norm of x and -x, whose mean is 0: squares would leave float16."""
        mb, shape = self._mb, x.shape
        size = size or shape[1]
        each = mb.reshape(x=x, shape=[shape[0], shape[1] // size, size, shape[3]])
        both = mb.concat(values=[each, mb.mul(x=each, y=np.float16(-1))], axis=2)
        gamma = np.tile(self._parameters.array(f"{name}.weight") + np.float32(centre), 2).astype(np.float16)
        normed = mb.layer_norm(
            x=both,
            axes=[2],
            gamma=self._constant(f"{name}.weight twice", gamma),
            epsilon=np.float16(max(eps, _LEAST_EPS)),
        )
        half = mb.slice_by_size(x=normed, begin=[0, 0, 0, 0], size=list(each.shape))
        return mb.reshape(x=half, shape=list(shape))

    def activate(self, x: Any, kind: str) -> Any:
        mb = self._mb
        if kind.startswith("gelu"):
            return mb.gelu(x=x, mode="TANH_APPROXIMATION" if kind == "gelu_tanh" else "EXACT")
        return {"silu": mb.silu, "tanh": mb.tanh, "relu": mb.relu}[kind](x=x)

    bend = activate

    def turn(self, x: Any, positions: Any, how: Attention) -> Any:
        mb, length = self._mb, x.shape[3]
        heads = x.shape[1] // how.head_size
        angles = np.array(how.frequencies, np.float32)[:, None] * np.arange(length, dtype=np.float32)
        # Of a head's two halves each takes its share of the other: the first with the sine's sign changed.
        cosine = np.tile(np.concatenate([np.cos(angles), np.cos(angles)]), (heads, 1))[None, :, None]
        sine = np.tile(np.concatenate([-np.sin(angles), np.sin(angles)]), (heads, 1))[None, :, None]
        halves = self._split(x, 2 * heads, 1)
        other = mb.concat(values=[halves[index ^ 1] for index in range(2 * heads)], axis=1)
        name = f"{how.frequencies} {heads} {length}"
        return mb.add(
            x=mb.mul(x=x, y=self._once(f"cosine {name}", cosine)), y=mb.mul(x=other, y=self._once(f"sine {name}", sine))
        )

    def relative_bias(self, table: str, rows: int, buckets: np.ndarray, ids: Any) -> list[Any]:
        """One a head, (1, keys, 1, queries)."""
        length = ids.shape[1]
        places = by_places(buckets, length).T
        by_head = self._parameters.array(table)[buckets][places].transpose(2, 0, 1)
        return [self._once(f"{table}[{head}] {length}", values[None, :, None]) for head, values in enumerate(by_head)]

    def apart(self, mask: Any) -> Any:
        """(b, keys, 1, queries) float16: 0 for what is seen and -1e4 for the rest."""
        mb = self._mb
        numbers = mb.cast(x=mask, dtype="fp16")
        apart = mb.sub(x=mb.expand_dims(x=numbers, axes=[2, 3]), y=mb.expand_dims(x=numbers, axes=[1, 2]))
        return mb.mul(x=mb.minimum(x=mb.mul(x=apart, y=apart), y=np.float16(1)), y=np.float16(-_MASKED))

    def attention(self, q: Any, k: Any, v: Any, mask: Any, how: Attention, bias: list[Any] | None = None) -> Any:
        mb, shared = self._mb, how.key_value_heads
        # Before the product and not after it, so that no score comes near float16's end.
        q = mb.mul(x=q, y=np.float16(how.scale))
        queries, values = self._split(q, how.heads, 1), self._split(v, shared, 1)
        keys = self._split(mb.transpose(x=k, perm=[0, 3, 2, 1]), shared, 3)
        unseen = self._bias(mask, how)
        mixed = []
        for head, query in enumerate(queries):
            served = head * shared // how.heads
            scores = mb.add(x=mb.einsum(values=(keys[served], query), equation=_PRODUCT), y=unseen)
            if bias is not None:
                scores = mb.add(x=scores, y=bias[head])
            mixed.append(mb.einsum(values=(values[served], mb.softmax(x=scores, axis=1)), equation=_PRODUCT))
        return mb.concat(values=mixed, axis=1)

    def _bias(self, mask: Any, how: Attention) -> Any:
        """0 for what is seen and -1e4 for the rest, (b, keys, 1, 1 or queries)."""
        name = f"bias {how.causal} {how.window}"
        if name not in self._made:
            made = mask
            if len(mask.shape) == 2:
                tall = self._mb.cast(x=self._mb.expand_dims(x=mask, axes=[2, 3]), dtype="fp16")
                made = self._mb.mul(x=self._mb.sub(x=tall, y=np.float16(1)), y=np.float16(_MASKED))
            if how.causal or how.window:
                length = mask.shape[1]
                unseen = np.where(within(how, length).T, 0, -_MASKED)[None, :, None]
                made = self._mb.add(x=made, y=self._once(f"{name} {length}", unseen))
            self._made[name] = made
        return self._made[name]

    def _once(self, name: str, values: np.ndarray) -> Any:
        """A constant of the program, stored once however often it is used."""
        if name not in self._made:
            self._made[name] = self._constant(name, values.astype(np.float16))
        return self._made[name]

    def pool(self, x: Any, shares: Any, mode: int) -> Any:
        tall = self._mb.transpose(x=self._shares(shares, mode), perm=[0, 3, 1, 2])
        return self._flat(self._mb.einsum(values=(x, tall), equation=_PRODUCT))

    def largest(self, x: Any, shares: Any, mode: int) -> Any:
        mb = self._mb
        missing = mb.mul(x=mb.sub(x=self._shares(shares, mode), y=np.float16(1)), y=np.float16(_MASKED))
        return self._flat(mb.reduce_max(x=mb.add(x=x, y=missing), axes=[3], keep_dims=True))

    def _shares(self, shares: Any, mode: int) -> Any:
        """One mode's, (b, 1, texts, l) float16."""
        mb, (batch, _, texts, length) = self._mb, shares.shape
        row = mb.slice_by_size(x=shares, begin=[0, mode, 0, 0], size=[batch, 1, texts, length])
        return mb.cast(x=row, dtype="fp16")

    def _tall(self, x: Any) -> Any:
        """(b, h) to (b, h, 1, 1) float16."""
        return self._mb.cast(x=self._mb.expand_dims(x=x, axes=[2, 3]), dtype="fp16")

    def _flat(self, x: Any) -> Any:
        """(b, h, 1, texts) to (b * texts, h) float32."""
        mb, (batch, width, _, texts) = self._mb, x.shape
        flat = mb.squeeze(x=x, axes=[2, 3]) if texts == 1 else mb.transpose(x=mb.squeeze(x=x, axes=[2]), perm=[0, 2, 1])
        return mb.cast(x=flat if texts == 1 else mb.reshape(x=flat, shape=[batch * texts, width]), dtype="fp32")

    def join(self, parts: Sequence[Any]) -> Any:
        return self._mb.concat(values=list(parts), axis=1)

    def first(self, x: Any, count: int) -> Any:
        return self._mb.slice_by_size(x=x, begin=[0, 0], size=[x.shape[0], count])

    def project(self, x: Any, name: str, width: int, *, bias: bool) -> Any:
        return self._flat(self.linear(self._tall(x), name, width, bias=bias))

    def norm(self, x: Any, name: str, eps: float, *, bias: bool) -> Any:
        return self._flat(self.layer_norm(self._tall(x), name, eps, bias=bias))

    def normalise(self, x: Any) -> Any:
        norm = self._mb.reduce_l2_norm(x=x, axes=[-1], keep_dims=True)
        return self._mb.real_div(x=x, y=self._mb.maximum(x=norm, y=np.float32(1e-12)))
