"""Whether a model's weights fit its configuration, found out before any is used: the model run on widths alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from impetus_backends.embedding.devices.operations import Inputs
from impetus_backends.embedding.encoder import embed, weigh
from impetus_backends.embedding.folder.weights import Weights
from impetus_backends.embedding.modules import Dense
from impetus_backends.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from impetus_backends.embedding.folder.config import EmbeddingConfig
    from impetus_backends.embedding.folder.transformer.shapes import Attention, Experts


def open_weights(config: EmbeddingConfig) -> Weights:
    """The weights of a model; raises `ModelError` naming the first tensor that is missing, of another shape than the
    configuration asks for, or stored in a form that is not read."""
    weights = Weights.of(config)
    for step in config.steps:
        if isinstance(step, Dense) and not step.bias and weights.has(f"{step.name}.bias"):
            raise ModelError(f"the weights of {step.folder} have a bias, and its config.json says that there is none")
    inputs = Inputs(0, 0, 0, 0, 0 if config.encoder.types else None)
    for output in config.outputs:
        (embed if output == "dense" else weigh)(_Widths(weights, config), config, inputs)
    return weights


class _Widths:
    """`Ops` whose tensors are the sizes of their last axes."""

    def __init__(self, weights: Weights, config: EmbeddingConfig) -> None:
        self._weights = weights
        self._config = config

    def _need(self, name: str, *shape: int) -> None:
        found = self._weights.shape(name)
        if found != shape:
            raise ModelError(
                f"the weights in {self._config.transformer} do not fit its config.json: {name} is "
                f"{_by(found)}, and {_by(shape)} is needed"
            )

    def embed(self, table: str, ids: int, rows: int) -> int:
        width = self._config.encoder.embedding_size or self._config.encoder.hidden_size
        self._need(table, rows, width)
        return width

    def row(self, table: str, index: int) -> int:
        found = self._weights.shape(table)
        if len(found) != 2 or found[0] <= index:
            raise ModelError(f"the weights in {self._config.transformer} have no row {index} of {table}")
        return found[1]

    def add(self, a: int, b: int) -> int:
        if a != b:
            raise ModelError(f"the weights in {self._config.transformer} do not fit: {a} units are added to {b}")
        return a

    multiply = add

    def scale(self, x: int, factor: float) -> int:
        return x

    def split(self, x: int, parts: int) -> Sequence[int]:
        return [x // parts] * parts

    def linear(self, x: int, name: str, width: int, *, bias: bool = True) -> int:
        self._need(f"{name}.weight", width, x)
        if bias:
            self._need(f"{name}.bias", width)
        return width

    project = linear

    def layer_norm(self, x: int, name: str, eps: float, *, bias: bool = True) -> int:
        self._need(f"{name}.weight", x)
        if bias:
            self._need(f"{name}.bias", x)
        return x

    norm = layer_norm

    def rms_norm(self, x: int, name: str, eps: float, *, size: int = 0, centre: float = 0.0) -> int:
        self._need(f"{name}.weight", size or x)
        return x

    def activate(self, x: int, kind: str) -> int:
        return x

    bend = activate

    def turn(self, x: int, positions: int, how: Attention) -> int:
        return x

    def relative_bias(self, table: str, rows: int, buckets: np.ndarray, ids: int) -> int:
        self._need(table, rows, self._config.encoder.heads)
        return 0

    def attention(self, q: int, k: int, v: int, mask: int, how: Attention, bias: int | None = None) -> int:
        return how.heads * how.head_size

    def table(self, name: str, rows: int) -> int:
        self._need(name, rows, self._config.encoder.hidden_size)
        return self._config.encoder.hidden_size

    def toward_places(self, x: int, places: int, buckets: np.ndarray, how: Attention, *, of_keys: bool = False) -> int:
        return 0

    def experts(self, x: int, name: str, experts: Experts, width: int, activation: str) -> int:
        self._need(f"{name}.router.layer.weight", experts.count, x)
        for part in ("w1", "w2"):
            self._need(f"{name}.experts.mlp.{part}", experts.count * width, x)
        self._need(f"{name}.experts.bias", x)
        return x

    def apart(self, mask: int) -> int:
        return mask

    def pool(self, x: int, shares: int, mode: int) -> int:
        return x

    largest = pool

    def by_parts(self, x: int, shares: int, width: int, make: Callable[[int, int], int], *, summed: bool) -> int:
        return make(x, shares)

    def join(self, parts: Sequence[int]) -> int:
        return sum(parts)

    def first(self, x: int, count: int) -> int:
        return count

    def normalise(self, x: int) -> int:
        return x


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
