"""coremltools, imported once and quietly."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from typing import TYPE_CHECKING, Any

from impetus_backends.errors import BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator


def coremltools() -> Any:
    """The module; raises `BackendUnavailableError` where it is not installed."""
    # It logs a line for each of its native parts that is not there, which off a Mac is all of them,
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    # and imports transformers, which says that there is no torch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        import coremltools
    except ImportError as error:
        raise BackendUnavailableError(
            f"Core ML packages need coremltools ({error}): pip install 'impetus-batch[coreml]'"
        ) from error
    return coremltools


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Holds back coremltools' own progress bars, and its warnings that it leaves folders for Python to tidy up."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
