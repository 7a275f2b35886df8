"""Writing an ONNX graph: nodes, constants and weights, each value by its name."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from impetus_backends.embedding.folder.weights import Weights

_FLOAT = 1  # onnx.TensorProto


class OnnxGraph:
    """What is written so far. Weights are left out of it, as external data handed to the session: a protobuf ends at
    2 GB.
    """

    def __init__(self, weights: Weights, onnx: Any, kept: Mapping[str, Any] | None = None) -> None:
        """`kept`: weights that a session has already, by name."""
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.arrays: dict[str, np.ndarray] = {}
        """Weights that none has yet."""
        self.used: dict[str, None] = {}
        self._kept = kept or {}
        self._weights = weights
        self._onnx = onnx
        self.helper = onnx.helper
        self._constants: dict[str, str] = {}
        self._made: dict[str, str] = {}
        self._names = 0

    def named(self, kind: str) -> str:
        """A name that no other value has."""
        self._names += 1
        return f"{kind}_{self._names}"

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = self.named(kind)
        self.nodes.append(self.helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    @contextmanager
    def inside(self) -> Iterator[list[Any]]:
        """Nodes go into a graph of their own, which is yielded: they see what is outside of it, and are not seen."""
        outside = self.nodes, self._made
        self.nodes, self._made = [], dict(self._made)
        try:
            yield self.nodes
        finally:
            self.nodes, self._made = outside

    def once(self, key: str, make: Callable[[], str]) -> str:
        """What `make` returns, made when it is first asked for under this key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def outputs(self, kind: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """Of a node that has several."""
        outputs = [self.named(kind) for _ in range(count)]
        self.nodes.append(self.helper.make_node(kind, list(inputs), outputs, **attributes))
        return outputs

    def weight(self, name: str, *, transposed: bool = False, rows: slice | None = None) -> str:
        """`rows`: those alone, under a name of their own."""
        key = name if rows is None else f"{name} {rows.start}:{rows.stop}"
        if key not in self.used:
            self.used[key] = None
            if key not in self._kept:
                array = self._weights[name][rows or slice(None)]
                self.arrays[key] = np.ascontiguousarray(array.T if transposed else array)
            shape = self._kept[key].shape() if key in self._kept else self.arrays[key].shape
            tensor = self._onnx.TensorProto(name=key, data_type=_FLOAT, dims=shape)
            tensor.data_location = self._onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="memory")
            self.initializers.append(tensor)
        return key

    def constant(self, values: Any, dtype: type[np.generic]) -> str:
        array = np.asarray(values, dtype=dtype)
        key = f"{array.dtype}{array.tolist()}"
        if key not in self._constants:
            kind = self.helper.np_dtype_to_tensor_dtype(array.dtype)
            self.initializers.append(self.helper.make_tensor(key, kind, array.shape, array.tobytes(), raw=True))
            self._constants[key] = key
        return key
