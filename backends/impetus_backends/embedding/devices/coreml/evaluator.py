"""A saved package run in numpy, operation by operation, as a device in float16 would: it is the file that is checked.

Every value that the file declares float16 is rounded to float16; inside an operation sums are in float32, the best that
a device may do. Reads the file through coremltools, and shares no code with what wrote it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from impetus_backends.embedding.devices.coreml.library import coremltools
from impetus_backends.embedding.devices.reference import erf
from impetus_backends.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_MOST_SETTINGS = 16


class SavedPackage:
    """An `.mlpackage` on disk. Functions are read when asked for, and share their weights in memory."""

    def __init__(self, path: Path) -> None:
        """Raises `BackendError` where there is no package that can be read."""
        try:
            self._spec = coremltools().utils.load_spec(str(path))
        except Exception as error:
            raise BackendError(f"{path} is not a Core ML package that can be read: {error}") from error
        self._weights_folder = path / "Data" / "com.apple.CoreML" / "weights"
        self._constants: dict[bytes, np.ndarray] = {}
        self._functions: dict[str, SavedFunction] = {}

    @property
    def functions(self) -> tuple[str, ...]:
        return tuple(function.name for function in self._spec.description.functions)

    def function(self, name: str) -> SavedFunction:
        """Raises `BackendError` for a name the package lacks, or an operation this module does not know."""
        if name not in self._functions:
            self._functions[name] = self._read(name)
        return self._functions[name]

    def _read(self, name: str) -> SavedFunction:
        from coremltools.converters.mil.frontend.milproto.load import load

        if name not in self.functions:
            raise BackendError(f"the package has no function {name}; it has {', '.join(self.functions)}")
        # The reader turns every function it is given into objects, each with a copy of all weights.
        spec = type(self._spec)()
        spec.CopyFrom(self._spec)
        for other in set(self.functions) - {name}:
            del spec.mlProgram.functions[other]
        program = load(spec, spec.specificationVersion, str(self._weights_folder))
        return SavedFunction(program.functions[name], self._constants)


@dataclass(frozen=True, slots=True)
class _Step:
    """One operation, cut loose from the program it was read from, which would keep all weights a second time."""

    run: Callable[[_Arguments], Any]
    names: dict[str, list[str]]
    """By parameter; of one tensor or several."""
    settings: dict[str, Any]
    outputs: tuple[tuple[str, bool], ...]
    """Each with whether the file declares it float16."""
    spent: frozenset[str]
    """What no later step reads."""


class SavedFunction:
    """One function of a package. Its inputs have the shape of its bucket."""

    def __init__(self, function: Any, shared: dict[bytes, np.ndarray]) -> None:
        self._output: str = function.outputs[0].name
        self._steps: list[_Step] = []
        self._constants: dict[str, np.ndarray] = {}
        read = {self._output}
        for operation in reversed(list(function.operations)):
            if _is_constant(operation):
                name = operation.outputs[0].name
                if name in read and (value := _value(operation, shared)) is not None:
                    self._constants[name] = value
            else:
                step = _step(operation, read)
                self._steps.append(step)
                read.update(*step.names.values())
        self._steps.reverse()

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The function's output, float32."""
        values = {**self._constants, **inputs}
        # An overflow is an infinity here as it is on a device, for the caller to find.
        with np.errstate(over="ignore", invalid="ignore"):
            for step in self._steps:
                made = step.run(_Arguments(step, values))
                results = made if isinstance(made, list) else [made]
                for (name, half), result in zip(step.outputs, results, strict=True):
                    values[name] = result.astype(np.float16).astype(np.float32) if half else result
                for name in step.spent:
                    del values[name]
        return values[self._output]


def _step(operation: Any, read_later: set[str]) -> _Step:
    from coremltools.converters.mil.mil import types

    if operation.op_type not in _OPERATIONS:
        raise BackendError(f"the evaluator does not know the operation {operation.op_type}")
    names, settings = {}, {}
    for parameter, given in operation.inputs.items():
        variables = list(given) if isinstance(given, list | tuple) else [given]
        # Small constants are axes, sizes and words; a weight is never read as a setting.
        if len(variables) == 1 and (variables[0] is None or _is_small(variables[0].val)):
            settings[parameter] = None if variables[0] is None else variables[0].val
        if all(variable is not None and not isinstance(variable.val, str) for variable in variables):
            names[parameter] = [variable.name for variable in variables]
    outputs = tuple((variable.name, bool(variable.dtype == types.fp16)) for variable in operation.outputs)
    spent = frozenset(name for several in names.values() for name in several) - read_later
    return _Step(_OPERATIONS[operation.op_type], names, settings, outputs, spent)


def _is_small(value: Any) -> bool:
    return value is not None and np.size(value) <= _MOST_SETTINGS


@dataclass(frozen=True, slots=True)
class _Arguments:
    """What one operation is given, by parameter name."""

    step: _Step
    values: Mapping[str, np.ndarray]

    def __getitem__(self, parameter: str) -> np.ndarray:
        (name,) = self.step.names[parameter]
        return self.values[name]

    def has(self, parameter: str) -> bool:
        return parameter in self.step.names

    def several(self, parameter: str) -> list[np.ndarray]:
        return [self.values[name] for name in self.step.names[parameter]]

    def setting(self, parameter: str) -> Any:
        """A parameter that is part of the program and no tensor."""
        return self.step.settings[parameter]

    def axes(self) -> tuple[int, ...]:
        return tuple(int(axis) for axis in self.setting("axes"))


def _conv(given: _Arguments) -> np.ndarray:
    """1x1, without padding: a product over the channels."""
    kernel, x = given["weight"], given["x"]
    if kernel.shape[2:] != (1, 1) or given.setting("groups") != 1:
        raise BackendError(f"the evaluator knows 1x1 convolutions, and not one of {kernel.shape}")
    batch, channels, height, width = x.shape
    product: np.ndarray = kernel[:, :, 0, 0] @ x.reshape(batch, channels, height * width)
    if given.has("bias"):
        product += given["bias"][:, None]
    return product.reshape(batch, -1, height, width)


def _einsum(given: _Arguments) -> np.ndarray:
    if given.setting("equation") != "nchw,nwhu->nchu":
        raise BackendError(f"the evaluator does not know the contraction {given.setting('equation')}")
    # Laid out anew: numpy multiplies by BLAS only what lies in rows.
    left, right = (np.ascontiguousarray(each.transpose(0, 2, 1, 3)) for each in given.several("values"))
    product: np.ndarray = left @ right
    return product.transpose(0, 2, 1, 3)


def _softmax(given: _Arguments) -> np.ndarray:
    x, axis = given["x"], given.setting("axis")
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    result: np.ndarray = powers / powers.sum(axis=axis, keepdims=True)
    return result


def _layer_norm(given: _Arguments) -> np.ndarray:
    x, axes = given["x"], given.axes()
    centred = x - x.mean(axis=axes, keepdims=True)
    spread = np.sqrt((centred * centred).mean(axis=axes, keepdims=True) + np.float32(given.setting("epsilon")))
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    result: np.ndarray = centred / spread * given["gamma"].reshape(shape)
    if given.has("beta"):
        result += given["beta"].reshape(shape)
    return result


def _gelu(given: _Arguments) -> np.ndarray:
    x, mode = given["x"], given.setting("mode")
    if mode == "TANH_APPROXIMATION":
        inner = np.float32((2 / np.pi) ** 0.5) * (x + np.float32(0.044715) * x * x * x)
        result: np.ndarray = np.float32(0.5) * x * (1 + np.tanh(inner))
        return result
    if mode != "EXACT":
        raise BackendError(f"the evaluator does not know the {mode} form of gelu")
    return np.float32(0.5) * x * (1 + erf(x * np.float32(0.5**0.5)))


def _cast(given: _Arguments) -> np.ndarray:
    kinds = {"fp16": np.float32, "fp32": np.float32, "int32": np.int32}
    return given["x"].astype(kinds[given.setting("dtype")])


def _slice(given: _Arguments) -> np.ndarray:
    begin, size = given.setting("begin"), given.setting("size")
    return given["x"][tuple(slice(start, start + count) for start, count in zip(begin, size, strict=True))]


def _l2_norm(given: _Arguments) -> np.ndarray:
    norm: np.ndarray = np.linalg.norm(given["x"], axis=given.axes(), keepdims=bool(given.setting("keep_dims")))
    return norm


def _quantize(given: _Arguments) -> np.ndarray:
    """Of a whole tensor around zero."""
    if given.setting("output_dtype") != "int8" or given.has("zero_point") or np.size(given["scale"]) != 1:
        raise BackendError("the evaluator knows symmetric int8 of one scale, and no other quantize")
    steps: np.ndarray = np.clip(np.rint(given["input"] / given["scale"]), -128, 127)
    return steps


_OPERATIONS: dict[str, Callable[[_Arguments], Any]] = {
    "add": lambda given: given["x"] + given["y"],
    "cast": _cast,
    "concat": lambda given: np.concatenate(given.several("values"), axis=given.setting("axis")),
    "conv": _conv,
    "dequantize": lambda given: given["input"] * given["scale"],
    "einsum": _einsum,
    "expand_dims": lambda given: np.expand_dims(given["x"], given.axes()),
    "gather": lambda given: np.take(given["x"], given["indices"], axis=given.setting("axis")),
    "gelu": _gelu,
    "identity": lambda given: given["x"],
    "layer_norm": _layer_norm,
    "maximum": lambda given: np.maximum(given["x"], given["y"]),
    "minimum": lambda given: np.minimum(given["x"], given["y"]),
    "mul": lambda given: given["x"] * given["y"],
    "relu": lambda given: np.maximum(given["x"], 0),
    "reshape": lambda given: given["x"].reshape(given.setting("shape")),
    "quantize": _quantize,
    "real_div": lambda given: given["x"] / given["y"],
    "reduce_l2_norm": _l2_norm,
    "reduce_max": lambda given: given["x"].max(axis=given.axes(), keepdims=bool(given.setting("keep_dims"))),
    "silu": lambda given: given["x"] / (1 + np.exp(-given["x"])),
    "slice_by_size": _slice,
    "softmax": _softmax,
    "split": lambda given: np.split(given["x"], given.setting("num_splits"), axis=given.setting("axis")),
    "squeeze": lambda given: given["x"].squeeze(given.axes()),
    "tanh": lambda given: np.tanh(given["x"]),
    "sub": lambda given: given["x"] - given["y"],
    "transpose": lambda given: given["x"].transpose(given.setting("perm")),
}


def _is_constant(operation: Any) -> bool:
    return operation.op_type == "const" or operation.op_type in _EXPANSIONS


def _value(operation: Any, shared: dict[bytes, np.ndarray]) -> np.ndarray | None:
    """What a constant holds, float16 widened to float32; nothing for words, which are settings and no tensors."""
    kind = operation.op_type
    sources = operation.outputs if kind == "const" else [each for each in operation.inputs.values() if each is not None]
    parts = [np.ascontiguousarray(source.val) for source in sources if isinstance(source.val, np.ndarray | np.generic)]
    if not parts:
        return None
    digest = hashlib.blake2b(repr([kind, *((part.shape, part.dtype) for part in parts)]).encode(), digest_size=16)
    for part in parts:
        digest.update(part.data)
    key = digest.digest()
    if key not in shared:
        shared[key] = parts[0] if kind == "const" else _EXPANSIONS[kind](*parts)
        if shared[key].dtype == np.float16:
            shared[key] = shared[key].astype(np.float32)
    return shared[key]


def _expand_int8(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    product: np.ndarray = values * scales.astype(np.float32)
    return product.astype(np.float16)


_EXPANSIONS: dict[str, Callable[..., np.ndarray]] = {
    "constexpr_blockwise_shift_scale": _expand_int8,
    "constexpr_lut_to_dense": lambda indices, table: table.reshape(-1)[indices],
}
