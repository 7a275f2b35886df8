"""What the backend asks of whatever runs a package: the Mac's Core ML, or numpy in its stead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    Given = Mapping[str, np.ndarray]
    """What a call of one bucket is given, by name."""
    Predictor = Callable[[Sequence[Given]], Sequence[np.ndarray]]
    """Calls of one bucket, handed over together, to the vectors of each: float32 (batch * texts, dimensions)."""

IN_FLIGHT = 2
"""The most calls that a device is given together, so that it need not wait for us between them."""


def one_by_one(call: Callable[[Given], np.ndarray]) -> Predictor:
    """What runs calls that are handed over together one after the other."""
    return lambda given: [call(each) for each in given]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where Core ML means to run one function: shares of its estimated cost, 0 to 1."""

    neural_engine: float
    gpu: float
    cpu: float


class Device(Protocol):
    """Runs packages. Any method may raise anything: the backend makes sense of it."""

    @property
    def label(self) -> str:
        """What results carry as their device."""
        ...

    @property
    def version(self) -> str:
        """Of the system that compiles; what it compiled is not used by another."""
        ...

    @property
    def timed(self) -> bool:
        """Whether the time that a call takes means anything."""
        ...

    @property
    def note(self) -> str | None:
        """What a reader of results must know."""
        ...

    def compile(self, package: Path, folder: Path) -> Path:
        """The package made ready to load, somewhere in `folder`. Done once."""
        ...

    def load(self, compiled: Path, function: str) -> Predictor:
        """One function. What it returns is called by one thread, with up to `IN_FLIGHT` calls."""
        ...

    def placement(self, package: Path, compiled: Path, function: str) -> Placement | None:
        """None where there is no compute plan to ask; such a device is taken at its word."""
        ...
