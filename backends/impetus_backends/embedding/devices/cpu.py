"""The encoder on a CPU, through ONNX Runtime: the graph is built here from the weights, with no export step.

Knows the encoder and ONNX. Axes are dynamic, so one session serves every batch, but for those whose attention is made
by blocks.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from impetus_backends.embedding.devices.onnx_attention import BLOCK, OnnxAttention
from impetus_backends.embedding.devices.onnx_graph import OnnxGraph
from impetus_backends.embedding.devices.operations import INPUTS, NOTHING, Inputs, inputs_of
from impetus_backends.embedding.devices.packages.form import lay
from impetus_backends.embedding.devices.reference import SCORES_BYTES, queries_a_block, tokens_a_block
from impetus_backends.embedding.devices.sharing import rows_of
from impetus_backends.embedding.encoder import embed, pad, vectors_of, weigh
from impetus_backends.embedding.folder.fitting import open_weights
from impetus_backends.embedding.folder.sparse import Splade
from impetus_backends.embedding.sparse import vectors
from impetus_backends.errors import BackendUnavailableError
from impetus_backends.machine import heap
from impetus_backends.machine.cores import equal_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from impetus_backends.embedding.folder.config import EmbeddingConfig
    from impetus_backends.embedding.folder.transformer.shapes import Attention, Experts
    from impetus_backends.embedding.folder.weights import Weights
    from impetus_backends.protocol import Spans, SparseVector

_OPSET = 20  # the first with Gelu
_IR_VERSION = 9
_FLOAT, _INT32, _INT64 = 1, 6, 7  # onnx.TensorProto
_TOKENS_A_CORE = 256
"""Of fewer, a core alone would read more of weights than it computes with."""
_MOST_COPIED_BYTES = 256 * 1024 * 1024
"""Of weights: for cores alone they are held once more, in the order of the kernels."""


class OnnxOps(OnnxGraph):
    """`Ops` that write ONNX nodes; a tensor is the name of a value in the graph."""

    def __init__(
        self, weights: Weights, onnx: Any, kept: Mapping[str, Any] | None = None, *, by_blocks: bool = False
    ) -> None:
        """`kept`: weights that a session has already, by name. `by_blocks`: attention is, see `onnx_attention`."""
        super().__init__(weights, onnx, kept)
        self._by_blocks = by_blocks
        self._attention = OnnxAttention(self, by_blocks=by_blocks)

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
        return self.outputs("Split", parts, x, axis=-1, num_outputs=parts)

    def linear(self, x: str, name: str, width: int, *, bias: bool = True) -> str:
        product = self.node("MatMul", x, self.weight(f"{name}.weight", transposed=True))
        return self.node("Add", product, self.weight(f"{name}.bias")) if bias else product

    project = linear

    def layer_norm(self, x: str, name: str, eps: float, *, bias: bool = True) -> str:
        parts = [self.weight(f"{name}.weight"), *([self.weight(f"{name}.bias")] if bias else [])]
        return self.node("LayerNormalization", x, *parts, axis=-1, epsilon=eps)

    norm = layer_norm

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
        if kind == "log1p":
            return self.node("Log", self.node("Add", x, self.constant(1, np.float32)))
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
        """The cosine and sine of every position's angles, (b, l, 1, half a head); made once for all layers alike."""

        def make(kind: str) -> str:
            places = self.node("Cast", positions, to=_FLOAT)
            column = self.node("Unsqueeze", places, self.constant([2, 3], np.int64))
            return self.node(kind, self.node("Mul", column, self.constant(how.frequencies, np.float32)))

        cosine = self.once(f"cosine {how.frequencies}", lambda: make("Cos"))
        return cosine, self.once(f"sine {how.frequencies}", lambda: make("Sin"))

    def relative_bias(self, table: str, rows: int, buckets: np.ndarray, ids: str) -> str:
        return self._attention.relative_bias(table, buckets)

    def table(self, name: str, rows: int) -> str:
        return self.weight(name)

    def toward_places(self, x: str, places: str, buckets: np.ndarray, how: Attention, *, of_keys: bool = False) -> str:
        return self._attention.toward_places(x, places, buckets, how, of_keys=of_keys)

    def experts(self, x: str, name: str, experts: Experts, width: int, activation: str) -> str:
        tokens = self.node("Flatten", x, axis=2)
        router = self.weight(f"{name}.router.layer.weight", transposed=True)
        shares = self.node("Softmax", self.node("MatMul", tokens, router), axis=-1)
        chosen = self.outputs("TopK", 2, shares, self.constant([experts.chosen], np.int64), axis=-1)
        nothing = self.node("Mul", shares, self.constant(0, np.float32))
        kept = self.node("ScatterElements", nothing, chosen[1], chosen[0], axis=1)
        made = self.node("Mul", tokens, self.constant(0, np.float32))
        for expert in range(experts.count):
            share = self.node("Gather", kept, self.constant(expert, np.int64), axis=1)
            mine = self.node("Transpose", self.node("NonZero", share), perm=[1, 0])
            rows = slice(expert * width, (expert + 1) * width)
            first = self.weight(f"{name}.experts.mlp.w1", rows=rows, transposed=True)
            wide = self.activate(self.node("MatMul", self.node("GatherND", tokens, mine), first), activation)
            narrow = self.node("MatMul", wide, self.weight(f"{name}.experts.mlp.w2", rows=rows))
            weight = self.node("Unsqueeze", self.node("GatherND", share, mine), self.constant([1], np.int64))
            made = self.node("ScatterND", made, mine, self.node("Mul", narrow, weight), reduction="add")
        made = self.node("Reshape", made, self.node("Shape", x))
        return self.node("Add", made, self.weight(f"{name}.experts.bias"))

    def apart(self, mask: str) -> str:
        return self._attention.apart(mask)

    def attention(self, q: str, k: str, v: str, mask: str, how: Attention, bias: str | None = None) -> str:
        return self._attention.attention(q, k, v, mask, how, bias)

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
        kept = self.node("Where", seen, x, self.constant(NOTHING, np.float32))
        return self.node("ReduceMax", kept, self.constant([1], np.int64), keepdims=0)

    def by_parts(self, x: str, shares: str, width: int, make: Callable[[str, str], str], *, summed: bool) -> str:
        if not self._by_blocks:
            return make(x, shares)

        def of_block(places: str, fresh: str) -> str:
            own = self.node("Mul", self.node("Gather", shares, places, axis=3), fresh)
            return make(self.node("Gather", x, places, axis=1), own)

        parts = self._attention.in_blocks(x, of_block, axes=2)
        return self.node("ReduceSum" if summed else "ReduceMax", parts, self.constant([0], np.int64), keepdims=0)

    def join(self, parts: Sequence[str]) -> str:
        return self.node("Concat", *parts, axis=-1)

    def first(self, x: str, count: int) -> str:
        begin, end, axis = (self.constant([each], np.int64) for each in (0, count, 1))
        return self.node("Slice", x, begin, end, axis)

    def normalise(self, x: str) -> str:
        norm = self.node("ReduceL2", x, self.constant([-1], np.int64), keepdims=1)
        return self.node("Div", x, self.node("Max", norm, self.constant(1e-12, np.float32)))


class CPUEmbeddingBackend:
    """ONNX Runtime on `threads` threads; None leaves the number to ONNX Runtime, which takes every physical core.

    What a batch takes is in proportion to its padded tokens, however they are divided into texts: attention that would
    need more than `scores_bytes` is made by blocks.

    The rows of a large batch are divided among the cores, unless the model is large too. Cores that share a row wait
    for each other in every operation, and so for whatever else one of them is given to do. Rows that are left over are
    shared.
    """

    name = "cpu"
    device = "cpu"
    precision = "fp32"

    def __init__(
        self, config: EmbeddingConfig, *, threads: int | None = None, scores_bytes: int = SCORES_BYTES
    ) -> None:
        self._config = config
        self._threads = threads
        self._cores = threads or equal_cores()
        self._apart = ThreadPoolExecutor(self._cores, "embedding-cpu")
        self._scores_bytes = scores_bytes
        self._weights: Any = None
        self._values: dict[str, Any] = {}
        self._sessions: dict[tuple[str, bool, bool, int], Any] = {}
        """By what comes out, whether rows hold several texts, whether attention is by blocks, and the number of
        threads; made when they are first needed, but for the usual one."""

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
        self._session(self._config.outputs[0], packed=False, by_blocks=False)
        if sum(each.tensor_size_in_bytes() for each in self._values.values()) > _MOST_COPIED_BYTES:
            self._cores = 1
        heap.keep()

    def _session(self, output: str, *, packed: bool, by_blocks: bool, threads: int | None = None) -> Any:
        key = output, packed, by_blocks, threads or self._threads or 0
        if key not in self._sessions:
            self._sessions[key] = self._make_session(*key)
        return self._sessions[key]

    def _make_session(self, output: str, packed: bool, by_blocks: bool, threads: int) -> Any:
        """Weights are kept once, however many sessions there are."""
        onnx, onnxruntime = self._onnx, self._runtime
        ops = OnnxOps(self._weights, onnx, self._values, by_blocks=by_blocks)
        names = inputs_of(self._config.encoder)
        result = (embed if output == "dense" else weigh)(ops, self._config, Inputs(*names, packed=packed))
        helper = onnx.helper
        axes = ["batch", "length"]
        floats = {"mask": axes, "shares": ["batch", "modes", "texts", "length"]}
        inputs = [
            helper.make_tensor_value_info(name, _FLOAT if name in floats else _INT32, floats.get(name, axes))
            for name in names
        ]
        if by_blocks:
            inputs.append(helper.make_tensor_value_info(BLOCK, _INT64, []))
        graph = helper.make_graph(
            ops.nodes,
            "encoder",
            inputs,
            [
                helper.make_tensor_value_info(
                    result, _FLOAT, ["batch", self._config.dimensions] if output == "dense" else None
                )
            ],
            ops.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Both keep memory for every shape ever seen, and batches come in hundreds of shapes.
        options.enable_mem_pattern = False
        options.enable_cpu_mem_arena = False
        # Idle threads that spin would take the cores from the worker that prepares the next batch.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if by_blocks:
            # A second copy of all weights in the order of the kernels, which rows of so many tokens gain nothing by.
            options.add_session_config_entry("session.disable_prepacking", "1")
        for name, array in ops.arrays.items():
            self._values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(array)
        options.add_external_initializers(list(ops.used), [self._values[name] for name in ops.used])
        for name in ops.used:
            # Or the session would copy them.
            options.add_initializer(name, self._values[name])
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def embed(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """The vectors of token rows, in their order; raises `RequestError` for a row that the model cannot read."""
        call = rows_of(self._config, [len(row) for row in rows], stepped=False)
        batch = lay(self._config, call, rows)
        made = self._divided(batch)
        found = np.empty((len(rows), made.shape[1]), np.float32)
        found[list(call.rows)] = made[call.places]
        return found

    def _divided(self, batch: Inputs[np.ndarray]) -> np.ndarray:
        """What a model makes of a batch, whose rows are divided where that is worth it."""
        count, length = batch.ids.shape
        alone, shared = divided(count, length, self._cores)
        if not alone or self._tokens_a_block("dense", count, length):
            return self._run("dense", batch)
        self._session("dense", packed=batch.packed, by_blocks=False, threads=1)  # before all of them want it
        parts = [_rows(batch, some) for some in alone]
        made = list(self._apart.map(partial(self._run, "dense", threads=1), parts))
        if shared.start < count:
            made.append(self._run("dense", _rows(batch, shared)))
        return np.concatenate(made)

    def embed_chunks(self, rows: Sequence[np.ndarray], chunks: Sequence[Spans]) -> np.ndarray:
        found: np.ndarray = self._run("dense", pad(self._config, rows, chunks=chunks))[vectors_of(chunks)]
        return found

    def weigh(self, rows: Sequence[np.ndarray]) -> list[SparseVector]:
        """Of a model with a sparse head: the sparse vectors of token rows, in their order; raises as `embed`."""
        return vectors(self._config, rows, self._run("sparse", pad(self._config, rows)))

    def _run(self, output: str, batch: Inputs[np.ndarray], threads: int | None = None) -> np.ndarray:
        feeds = {name: np.ascontiguousarray(getattr(batch, name)) for name in inputs_of(self._config.encoder)}
        count, length = batch.ids.shape
        block = self._tokens_a_block(output, count, length)
        if block:
            feeds[BLOCK] = np.array(block, np.int64)
        session = self._session(output, packed=batch.packed, by_blocks=block > 0, threads=threads)
        made: np.ndarray = session.run(None, feeds)[0]
        return made

    def _tokens_a_block(self, output: str, count: int, length: int) -> int:
        """As many as neither their scores nor their logits take too much; 0 where all of them do not."""
        encoder, bound = self._config.encoder, self._scores_bytes
        blocks = [queries_a_block(encoder.most_heads, count, length, bound)]
        if output == "sparse" and isinstance(self._config.sparse, Splade):
            blocks.append(tokens_a_block(encoder.vocab_size, count, length, bound))
        return min(filter(None, blocks), default=0)


def divided(count: int, length: int, cores: int) -> tuple[list[slice], slice]:
    """Of so many rows of a length: those that each core has alone, and those that all share."""
    each = count // cores
    if cores == 1 or each * length < _TOKENS_A_CORE:
        return [], slice(0, count)
    return [slice(at * each, (at + 1) * each) for at in range(cores)], slice(cores * each, count)


def _rows(batch: Inputs[np.ndarray], some: slice) -> Inputs[np.ndarray]:
    """Some rows of a batch, as long as in all of it."""
    given = {name: value for name in (*INPUTS, "types") if (value := getattr(batch, name)) is not None}
    return replace(batch, **{name: value[some] for name, value in given.items()})
