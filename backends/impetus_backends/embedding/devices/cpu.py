"""The encoder on a CPU, through ONNX Runtime: the graph is built here from the weights, with no export step.

Knows the encoder and ONNX. Axes are dynamic, so one session serves every batch.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from impetus_backends.embedding.devices.operations import Inputs, inputs_of
from impetus_backends.embedding.devices.packages.form import lay
from impetus_backends.embedding.devices.reference import frequencies
from impetus_backends.embedding.devices.sharing import rows_of
from impetus_backends.embedding.encoder import embed, pad, vectors_of
from impetus_backends.embedding.folder.fitting import open_weights
from impetus_backends.errors import BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from impetus_backends.embedding.folder.config import EmbeddingConfig
    from impetus_backends.embedding.folder.shapes import Attention
    from impetus_backends.embedding.folder.weights import Weights
    from impetus_backends.protocol import Spans

_OPSET = 20  # the first with Gelu
_IR_VERSION = 9
_FLOAT, _INT32 = 1, 6  # onnx.TensorProto


class OnnxOps:
    """`Ops` that write ONNX nodes; a tensor is the name of a value in the graph.

    Weights are left out of the graph, as external data handed to the session: a protobuf ends at 2 GB.
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
        self._made: dict[str, str] = {}
        self._pairs = ""
        """Where rows hold several texts: the mask, (b, l, l)."""

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"{kind}_{len(self.nodes)}"
        self.nodes.append(self._onnx.helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def weight(self, name: str, *, transposed: bool = False) -> str:
        if name not in self.used:
            self.used[name] = None
            shape = self._kept[name].shape() if name in self._kept else self._add(name, transposed=transposed).shape
            tensor = self._onnx.TensorProto(name=name, data_type=_FLOAT, dims=shape)
            tensor.data_location = self._onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="memory")
            self.initializers.append(tensor)
        return name

    def _add(self, name: str, *, transposed: bool) -> np.ndarray:
        array = self._weights[name]
        self.arrays[name] = np.ascontiguousarray(array.T if transposed else array)
        return self.arrays[name]

    def constant(self, values: Any, dtype: type[np.generic]) -> str:
        array = np.asarray(values, dtype=dtype)
        key = f"{array.dtype}{array.tolist()}"
        if key not in self._made:
            kind = self._onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            self.initializers.append(self._onnx.helper.make_tensor(key, kind, array.shape, array.tobytes(), raw=True))
            self._made[key] = key
        return key

    def embed(self, table: str, ids: str, rows: int) -> str:
        return self.node("Gather", self.weight(table), ids, axis=0)

    def row(self, table: str, index: int) -> str:
        return self.node("Gather", self.weight(table), self.constant(index, np.int64), axis=0)

    def add(self, a: str, b: str) -> str:
        return self.node("Add", a, b)

    def multiply(self, a: str, b: str) -> str:
        return self.node("Mul", a, b)

    def scale(self, x: str, factor: float) -> str:
        return self.node("Mul", x, self.constant(factor, np.float32))

    def split(self, x: str, parts: int) -> Sequence[str]:
        outputs = [f"Split_{len(self.nodes)}_{part}" for part in range(parts)]
        self.nodes.append(self._onnx.helper.make_node("Split", [x], outputs, axis=-1, num_outputs=parts))
        return outputs

    def linear(self, x: str, name: str, width: int, *, bias: bool = True) -> str:
        product = self.node("MatMul", x, self.weight(f"{name}.weight", transposed=True))
        return self.node("Add", product, self.weight(f"{name}.bias")) if bias else product

    project = linear

    def layer_norm(self, x: str, name: str, eps: float, *, bias: bool = True) -> str:
        parts = [self.weight(f"{name}.weight"), *([self.weight(f"{name}.bias")] if bias else [])]
        return self.node("LayerNormalization", x, *parts, axis=-1, epsilon=eps)

    def rms_norm(self, x: str, name: str, eps: float, *, size: int = 0, centre: float = 0.0) -> str:
        if size:
            each = self.node("Reshape", x, self.constant([0, 0, -1, size], np.int64))
            return self._joined(self.rms_norm(each, name, eps, centre=centre))
        mean = self.node("ReduceMean", self.node("Mul", x, x), self.constant([-1], np.int64), keepdims=1)
        length = self.node("Sqrt", self.node("Add", mean, self.constant(eps, np.float32)))
        weight = self.weight(f"{name}.weight")
        if centre:
            weight = self.node("Add", weight, self.constant(centre, np.float32))
        return self.node("Mul", self.node("Div", x, length), weight)

    def activate(self, x: str, kind: str) -> str:
        if kind.startswith("gelu"):
            return self.node("Gelu", x, approximate="tanh" if kind == "gelu_tanh" else "none")
        if kind == "silu":
            return self.node("Mul", x, self.node("Sigmoid", x))
        return self.node({"tanh": "Tanh", "sigmoid": "Sigmoid"}.get(kind, "Relu"), x)

    bend = activate

    def turn(self, x: str, positions: str, how: Attention) -> str:
        left, right = self.split(self.node("Reshape", x, self.constant([0, 0, -1, how.head_size], np.int64)), 2)
        cosine, sine = self._angles(positions, how)
        turned = self.node(
            "Concat",
            self.node("Sub", self.node("Mul", left, cosine), self.node("Mul", right, sine)),
            self.node("Add", self.node("Mul", right, cosine), self.node("Mul", left, sine)),
            axis=-1,
        )
        return self._joined(turned)

    def _angles(self, positions: str, how: Attention) -> tuple[str, str]:
        """The cosine and sine of every position's angles, (b, l, 1, half a head); made once a base."""

        def make(kind: str) -> str:
            places = self.node("Cast", positions, to=_FLOAT)
            column = self.node("Unsqueeze", places, self.constant([2, 3], np.int64))
            return self.node(kind, self.node("Mul", column, self.constant(frequencies(how), np.float32)))

        return self._once(f"cosine {how.theta}", lambda: make("Cos")), self._once(
            f"sine {how.theta}", lambda: make("Sin")
        )

    def relative_bias(self, table: str, rows: int, buckets: np.ndarray, ids: str) -> str:
        by_distance = self.node("Gather", self.weight(table), self.constant(buckets, np.int64), axis=0)
        farthest = len(buckets) // 2
        # What is farther apart is of two texts that share a row, and does not count.
        ends = (self.constant(end, np.int64) for end in (-farthest, farthest))
        index = self.node("Add", self.node("Clip", self._distances(ids), *ends), self.constant(farthest, np.int64))
        return self.node("Transpose", self.node("Gather", by_distance, index, axis=0), perm=[2, 0, 1])

    def apart(self, mask: str) -> str:
        columns, rows = (self.node("Unsqueeze", mask, self.constant([axis], np.int64)) for axis in (2, 1))
        self._pairs = self.node("Cast", self.node("Equal", columns, rows), to=_FLOAT)
        return self._pairs

    def attention(self, q: str, k: str, v: str, mask: str, how: Attention, bias: str | None = None) -> str:
        split = self.constant([0, 0, -1, how.head_size], np.int64)
        q, v = (self.node("Transpose", self.node("Reshape", x, split), perm=[0, 2, 1, 3]) for x in (q, v))
        k = self.node("Transpose", self.node("Reshape", k, split), perm=[0, 2, 3, 1])
        if how.key_value_heads != how.heads:
            served = np.repeat(np.arange(how.key_value_heads), how.heads // how.key_value_heads)
            k, v = (self.node("Gather", x, self.constant(served, np.int64), axis=1) for x in (k, v))
        scores = self.node("Mul", self.node("MatMul", q, k), self.constant(how.scale, np.float32))
        weights = self.node("Softmax", self.node("Add", scores, self._bias(mask, how, bias)), axis=-1)
        mixed = self.node("Transpose", self.node("MatMul", weights, v), perm=[0, 2, 1, 3])
        return self._joined(mixed)

    def _bias(self, mask: str, how: Attention, bias: str | None) -> str:
        """What the scores are told of who sees whom, (b, 1, 1, l) or more: 0, and -1e30 for what is not seen; with
        `bias` added. Made once for all layers alike."""

        def make() -> str:
            missing = self.node(
                "Mul", self.node("Sub", mask, self.constant(1, np.float32)), self.constant(1e30, np.float32)
            )
            made = self.node("Unsqueeze", missing, self.constant([1] if mask == self._pairs else [1, 2], np.int64))
            if how.causal or how.window:
                made = self.node("Add", made, self._within(mask, how))
            return made if bias is None else self.node("Add", made, bias)

        return self._once(f"bias {how.causal} {how.window} {bias}", make)

    def _within(self, mask: str, how: Attention) -> str:
        """0 where a query may look, -1e30 elsewhere, (l, l)."""
        apart = self._distances(mask)
        seen = []
        if how.window:
            seen.append(self.node("LessOrEqual", self.node("Abs", apart), self.constant(how.window, np.int64)))
        if how.causal:
            seen.append(self.node("LessOrEqual", apart, self.constant(0, np.int64)))
        both = seen[0] if len(seen) == 1 else self.node("And", *seen)
        return self.node("Where", both, self.constant(0, np.float32), self.constant(-1e30, np.float32))

    def _distances(self, like: str) -> str:
        """How far after each query each key comes, (l, l) int64."""

        def make() -> str:
            # `like` is (b, l): a scalar l.
            length = self.node("Gather", self.node("Shape", like), self.constant(1, np.int64), axis=0)
            places = self.node("Range", self.constant(0, np.int64), length, self.constant(1, np.int64))
            column = self.node("Unsqueeze", places, self.constant([1], np.int64))
            return self.node("Sub", places, column)

        return self._once("distances", make)

    def _once(self, key: str, make: Callable[[], str]) -> str:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _joined(self, x: str) -> str:
        """(b, l, heads, size) to (b, l, h)."""
        return self.node("Reshape", x, self.constant([0, 0, -1], np.int64))

    def pool(self, x: str, shares: str, mode: int) -> str:
        return self.node("Flatten", self.node("MatMul", self._shares(shares, mode), x), axis=2)

    def _shares(self, shares: str, mode: int) -> str:
        """One mode's, (b, texts, l)."""
        return self.node("Gather", shares, self.constant(mode, np.int64), axis=1)

    def largest(self, x: str, shares: str, mode: int) -> str:
        tall = self.node("Transpose", self._shares(shares, mode), perm=[0, 2, 1])
        seen = self.node("Greater", tall, self.constant(0, np.float32))
        kept = self.node("Where", seen, x, self.constant(-1e30, np.float32))
        return self.node("ReduceMax", kept, self.constant([1], np.int64), keepdims=0)

    def join(self, parts: Sequence[str]) -> str:
        return self.node("Concat", *parts, axis=-1)

    def first(self, x: str, count: int) -> str:
        begin, end, axis = (self.constant([each], np.int64) for each in (0, count, 1))
        return self.node("Slice", x, begin, end, axis)

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
        self._weights: Any = None
        self._values: dict[str, Any] = {}
        self._sessions: dict[bool, Any] = {}
        """By whether rows hold several texts; that for such is made when it is first needed."""

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
        self._onnx, self._runtime = onnx, onnxruntime
        self._weights = open_weights(self._config)
        self._sessions = {False: self._session(packed=False)}

    def _session(self, *, packed: bool) -> Any:
        """Weights are kept once, however many sessions there are."""
        onnx, onnxruntime = self._onnx, self._runtime
        ops = OnnxOps(self._weights, onnx, self._values)
        names = inputs_of(self._config.encoder)
        result = embed(ops, self._config, Inputs(*names, packed=packed))
        helper = onnx.helper
        axes = ["batch", "length"]
        floats = {"mask": axes, "shares": ["batch", "modes", "texts", "length"]}
        inputs = [
            helper.make_tensor_value_info(name, _FLOAT if name in floats else _INT32, floats.get(name, axes))
            for name in names
        ]
        graph = helper.make_graph(
            ops.nodes,
            "encoder",
            inputs,
            [helper.make_tensor_value_info(result, _FLOAT, ["batch", self._config.dimensions])],
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
        for name, array in ops.arrays.items():
            self._values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(array)
        options.add_external_initializers(list(ops.used), [self._values[name] for name in ops.used])
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def embed(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """The vectors of token rows, in their order; raises `RequestError` for a row that the model cannot read."""
        call = rows_of(self._config, [len(row) for row in rows], stepped=False)
        made = self._run(lay(self._config, call, rows))
        vectors = np.empty((len(rows), made.shape[1]), np.float32)
        vectors[list(call.rows)] = made[call.places]
        return vectors

    def embed_chunks(self, rows: Sequence[np.ndarray], chunks: Sequence[Spans]) -> np.ndarray:
        vectors: np.ndarray = self._run(pad(self._config, rows, chunks=chunks))[vectors_of(chunks)]
        return vectors

    def _run(self, batch: Inputs[np.ndarray]) -> np.ndarray:
        if batch.packed not in self._sessions:
            self._sessions[batch.packed] = self._session(packed=batch.packed)
        feeds = {name: np.ascontiguousarray(getattr(batch, name)) for name in inputs_of(self._config.encoder)}
        made: np.ndarray = self._sessions[batch.packed].run(None, feeds)[0]
        return made
