"""The encoder on a CPU, through ONNX Runtime: the graph is built here from the weights, with no export step.

Knows the encoder and ONNX. Axes are dynamic, so one session serves every batch.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from impetus_backends.embedding.encoder import Inputs, embed, pad
from impetus_backends.embedding.weights import Weights
from impetus_backends.errors import BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from impetus_backends.embedding.config import EmbeddingConfig

_OPSET = 20  # the first with Gelu
_IR_VERSION = 9
_FLOAT, _INT32 = 1, 6  # onnx.TensorProto


class OnnxOps:
    """`Ops` that write ONNX nodes; a tensor is the name of a value in the graph.

    Weights are left out of the graph, as external data handed to the session: a protobuf ends at 2 GB.
    """

    def __init__(self, weights: Weights, hidden_size: int, onnx: Any) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.arrays: dict[str, np.ndarray] = {}
        self._weights = weights
        self._hidden_size = hidden_size
        self._onnx = onnx
        self._made: dict[str, str] = {}

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"{kind}_{len(self.nodes)}"
        self.nodes.append(self._onnx.helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def weight(self, name: str, *, transposed: bool = False) -> str:
        if name not in self.arrays:
            array = self._weights[name]
            self.arrays[name] = np.ascontiguousarray(array.T if transposed else array)
            tensor = self._onnx.TensorProto(name=name, data_type=_FLOAT, dims=self.arrays[name].shape)
            tensor.data_location = self._onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="memory")
            self.initializers.append(tensor)
        return name

    def constant(self, values: Any, dtype: type[np.generic]) -> str:
        array = np.asarray(values, dtype=dtype)
        key = f"{array.dtype}{array.tolist()}"
        if key not in self._made:
            kind = self._onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            self.initializers.append(self._onnx.helper.make_tensor(key, kind, array.shape, array.tobytes(), raw=True))
            self._made[key] = key
        return key

    def embed(self, table: str, ids: str) -> str:
        return self.node("Gather", self.weight(table), ids, axis=0)

    def row(self, table: str, index: int) -> str:
        return self.node("Gather", self.weight(table), self.constant(index, np.int64), axis=0)

    def add(self, a: str, b: str) -> str:
        return self.node("Add", a, b)

    def linear(self, x: str, name: str) -> str:
        product = self.node("MatMul", x, self.weight(f"{name}.weight", transposed=True))
        return self.node("Add", product, self.weight(f"{name}.bias"))

    def layer_norm(self, x: str, name: str, eps: float) -> str:
        weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.node("LayerNormalization", x, weight, bias, axis=-1, epsilon=eps)

    def gelu(self, x: str) -> str:
        return self.node("Gelu", x, approximate="none")

    def attention(self, q: str, k: str, v: str, mask: str, heads: int) -> str:
        split, join = self.constant([0, 0, heads, -1], np.int64), self.constant([0, 0, -1], np.int64)
        size = self._hidden_size // heads
        q, v = (self.node("Transpose", self.node("Reshape", x, split), perm=[0, 2, 1, 3]) for x in (q, v))
        k = self.node("Transpose", self.node("Reshape", k, split), perm=[0, 2, 3, 1])
        scores = self.node("Mul", self.node("MatMul", q, k), self.constant(size**-0.5, np.float32))
        weights = self.node("Softmax", self.node("Add", scores, self._bias(mask)), axis=-1)
        mixed = self.node("Transpose", self.node("MatMul", weights, v), perm=[0, 2, 1, 3])
        return self.node("Reshape", mixed, join)

    def _bias(self, mask: str) -> str:
        """0 for tokens, -1e30 for padding, (b, 1, 1, l); made once for all layers."""
        if mask not in self._made:
            missing = self.node(
                "Mul", self.node("Sub", mask, self.constant(1, np.float32)), self.constant(1e30, np.float32)
            )
            self._made[mask] = self.node("Unsqueeze", missing, self.constant([1, 2], np.int64))
        return self._made[mask]

    def pool(self, x: str, mask: str, mode: str) -> str:
        if mode == "cls":
            return self.node("Gather", x, self.constant(0, np.int64), axis=1)
        axis = self.constant([1], np.int64)
        kept = self.node("Mul", x, self.node("Unsqueeze", mask, self.constant([2], np.int64)))
        summed = self.node("ReduceSum", kept, axis, keepdims=0)
        return self.node("Div", summed, self.node("ReduceSum", mask, axis, keepdims=1))

    def normalise(self, x: str) -> str:
        norm = self.node("ReduceL2", x, self.constant([-1], np.int64), keepdims=1)
        return self.node("Div", x, self.node("Max", norm, self.constant(1e-12, np.float32)))


class CPUEmbeddingBackend:
    """ONNX Runtime on `threads` threads; None leaves the number to ONNX Runtime, which takes every physical core."""

    name = "cpu"
    device = "cpu"
    precision = "fp32"

    def __init__(self, config: EmbeddingConfig, *, threads: int | None = None) -> None:
        self._config = config
        self._threads = threads
        self._session: Any = None

    def load(self) -> None:
        """Builds the graph and the session; raises `BackendUnavailableError` without ONNX Runtime."""
        # ONNX Runtime reports its use to its makers (1.32, on Linux too) unless told not to before it is imported.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        try:
            import onnx
            import onnxruntime
        except ImportError as error:
            raise BackendUnavailableError(
                f"the cpu backend needs ONNX Runtime ({error}): pip install 'impetus-batch[cpu]'"
            ) from error
        ops = OnnxOps(Weights(self._config.transformer), self._config.encoder.hidden_size, onnx)
        result = embed(ops, self._config, Inputs("ids", "positions", "mask"))
        helper = onnx.helper
        axes = ["batch", "length"]
        kinds = {"ids": _INT32, "positions": _INT32, "mask": _FLOAT}
        graph = helper.make_graph(
            ops.nodes,
            "encoder",
            [helper.make_tensor_value_info(name, kind, axes) for name, kind in kinds.items()],
            [helper.make_tensor_value_info(result, _FLOAT, ["batch", self._config.encoder.hidden_size])],
            ops.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads or 0
        options.log_severity_level = 3
        # Both keep memory for every shape ever seen, and batches come in hundreds of shapes.
        options.enable_mem_pattern = False
        options.enable_cpu_mem_arena = False
        # Idle threads that spin would take the cores from the worker that prepares the next batch.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in ops.arrays.values()]
        options.add_external_initializers(list(ops.arrays), values)
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def embed(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """The vectors of token rows, in their order; raises `RequestError` for a row that the model cannot read."""
        batch = pad(self._config.encoder, rows)
        feeds = {"ids": batch.ids, "positions": np.ascontiguousarray(batch.positions), "mask": batch.mask}
        vectors: np.ndarray = self._session.run(None, feeds)[0]
        return vectors
