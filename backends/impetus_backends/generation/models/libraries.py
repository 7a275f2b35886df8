"""MLX and mlx-lm, imported when a model is to be loaded, and kept from changing the process they are imported into."""

from __future__ import annotations

import contextlib
import resource
import sys
from typing import TYPE_CHECKING, Any

from ...errors import BackendUnavailableError
from ...tokenizing import import_transformers

if TYPE_CHECKING:
    from collections.abc import Iterator

_WIRES = "maybe_set_recommended_wired_limit"
"""mlx-lm's function that does."""


def import_libraries() -> tuple[Any, Any]:
    """The modules `mlx.core` and `mlx_lm`. Raises `BackendUnavailableError` where one is not installed, and
    `ModelError` where transformers is too old."""
    try:
        with _file_limit_kept():
            import mlx.core as mx

            import_transformers()  # first, as mlx-lm imports much of it
            import mlx_lm
    except ImportError as error:
        raise BackendUnavailableError(
            f"generation needs MLX and mlx-lm, and {error.name or error} cannot be imported: "
            "pip install 'impetus-batch[mlx]'"
        ) from error
    return mx, mlx_lm


def keep_mlx_lm_from_wiring() -> None:
    """Makes mlx-lm find no recommended size, so that it wires no memory in this process.

    Its `BatchGenerator`, `stream_generate` and server wire all that the device recommends, unasked. The parts of it
    that run here do not; this holds for whatever they come to call.
    """
    for name in ("mlx_lm.utils", "mlx_lm.generate", "mlx_lm.server"):
        if hasattr(module := sys.modules.get(name), _WIRES):
            setattr(module, _WIRES, lambda: None)


@contextlib.contextmanager
def _file_limit_kept() -> Iterator[None]:
    """Shields the process's limit on open files from mlx-lm, which sets it to (2048, 4096) when imported.

    Putting it back afterwards would not do: only root may raise a hard limit again. And where the hard limit is
    below 4096, the import itself would fail.
    """
    original = resource.setrlimit

    def shielded(kind: int, limits: tuple[int, int]) -> None:
        if kind != resource.RLIMIT_NOFILE:
            original(kind, limits)

    resource.setrlimit = shielded
    try:
        yield
    finally:
        resource.setrlimit = original


def one_line(error: BaseException) -> str:
    """An error of a library's as the end of a sentence, at most 300 characters long."""
    text = " ".join(str(error).split())
    return text[:300] if text else type(error).__name__
