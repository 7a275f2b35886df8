"""A run of `verify` on an M5 that never was: its times are made up, and its lines are made as a real run's are.

`python -m tests.backends.machine.made_up_m5` writes tests/data/boards/m5.json anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from impetus_backends import models
from impetus_backends.embedding.devices.packages.buckets import Bucket
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.verified import figures
from impetus_backends.verified.board import FIRST_DAY, MADE_UP, Board, make_board, to_json
from impetus_backends.verified.check import Check, Verdict
from impetus_backends.verified.claims import found, not_applicable
from tests.paths import DATA

from .machines import machine

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

FILE = DATA / "boards" / "m5.json"
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
VERSIONS = {"impetus-batch": "0.1.0", "coremltools": "9.0", "mlx": "0.32.4"}


class Played:
    """A backend that takes as long as its clock says, and embeds nothing."""

    precision = device = "made up"

    def __init__(self, name: str, clock: Clock, text_s: float) -> None:
        self.name, self._clock, self._text_s = name, clock, text_s

    def load(self) -> None: ...

    def embed(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        self._clock.now += self._text_s * len(rows)
        return np.zeros((len(rows), 2), np.float32)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def checks(neural_engine_s: float = 0.0012, gpu_s: float = 0.0065) -> Iterator[Check]:
    """The lines, with a text taking so long on each."""
    mac, clock, config = machine("m5"), Clock(), read_config(models.resolve(MODEL).folder)
    played = {"coreml": Played("coreml", clock, neural_engine_s), "mlx": Played("mlx", clock, gpu_s)}
    yield Check("machine", Verdict.PASS, "Apple M5, 24 GiB, Darwin 26.2")
    yield Check("convert, compile, load", Verdict.PASS, "61.0 s, fp16, 6 buckets")
    yield Check("placement 1x64", Verdict.PASS, "Neural Engine 97%, GPU 0%, CPU 3% of the cost")
    yield from figures.of_texts(mac, config, played, Bucket(8, 96), clock)
    yield not_applicable("text-pytorch", "torch is not installed")
    yield figures.of_prefill(1.2, 0.32, "2048 tokens: standard 1.20 s, m5 0.32 s, 3.8x", mac)
    yield found("loss-int8", 0.06, "0.06% over 34 texts, mean cosine 0.99941")
    yield found("loss-w8a8", 0.9, "0.90% over 34 texts, mean cosine 0.99105")
    yield figures.of_rule(mac, {"coreml": 0.011, "mlx": 0.009})
    yield found("memory", 8.4, "a model may need 18.0 GiB (75%); this process took 2.0")
    yield figures.of_decoding()


def made_up(lines: Iterable[Check] | None = None) -> Board:
    return make_board(machine("m5"), MODEL, VERSIONS, lines or checks(), on=FIRST_DAY, origin=MADE_UP)


if __name__ == "__main__":
    FILE.write_text(to_json(made_up()), encoding="utf-8")
