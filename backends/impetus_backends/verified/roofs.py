"""What a chip can do at most, as published: the roof that a measured time is held against.

Bandwidths, and operations of Neural Engines up to M4, are Apple's own (the newsroom's page in `source`): those of M1 to
M3 in float16, and of M4 in int8, of which float16 is half. Apple names GPU operations up to M2 alone. M3 and M4 are
cores x 128 x 2 x clock (hmc-tech.com), and an M5's neural accelerators do 1,024 float16 operations a core and clock
(tzakharko.github.io/apple-neural-accelerators-benchmark). The Neural Engine of an M5 Max was measured by others. What
nobody says is None. None of it was measured by us.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from impetus_backends.embedding.folder.config import EmbeddingConfig
    from impetus_backends.machine.hardware import Hardware

Engine = Literal["neural engine", "gpu"]
_NEWSROOM = "https://www.apple.com/newsroom/"
FLOAT16_BYTES = 2


@dataclass(frozen=True, slots=True)
class Roofs:
    """Of the largest variant of a chip: a smaller one comes less near to it."""

    gigabytes_s: float
    neural_engine_tflops: float | None
    """In float16."""
    gpu_tflops: float | None
    """In float16, or in float32 where these are alike."""
    source: str

    def tflops(self, engine: Engine) -> float | None:
        return self.neural_engine_tflops if engine == "neural engine" else self.gpu_tflops


# Apple's announcements, of which several chips share some.
_M1 = _NEWSROOM + "2020/11/apple-unleashes-m1/"
_M1_LARGER = _NEWSROOM + "2021/10/introducing-m1-pro-and-m1-max-the-most-powerful-chips-apple-has-ever-built/"
_M1_ULTRA = _NEWSROOM + "2022/03/apple-unveils-m1-ultra-the-worlds-most-powerful-chip-for-a-personal-computer/"
_M2 = _NEWSROOM + "2022/06/apple-unveils-m2-with-breakthrough-performance-and-capabilities/"
_M2_LARGER = _NEWSROOM + "2023/01/apple-unveils-m2-pro-and-m2-max-next-generation-chips-for-next-level-workflows/"
_M2_ULTRA = _NEWSROOM + "2023/06/apple-introduces-m2-ultra/"
_M3 = _NEWSROOM + "2023/10/apple-unveils-m3-m3-pro-and-m3-max-the-most-advanced-chips-for-a-personal-computer/"
_M3_ULTRA = _NEWSROOM + "2025/03/apple-reveals-m3-ultra-taking-apple-silicon-to-a-new-extreme/"
_M4 = _NEWSROOM + "2024/05/apple-introduces-m4-chip/"
_M4_LARGER = _NEWSROOM + "2024/10/apple-introduces-m4-pro-and-m4-max/"
_M5 = _NEWSROOM + "2025/10/apple-unleashes-m5-the-next-big-leap-in-ai-performance-for-apple-silicon/"
_M5_LARGER = _NEWSROOM + "2026/03/apple-debuts-m5-pro-and-m5-max-to-supercharge-the-most-demanding-pro-workflows/"

ROOFS: dict[tuple[int, str], Roofs] = {
    (1, "base"): Roofs(68.25, 11.0, 2.6, _M1),
    (1, "Pro"): Roofs(200, 11.0, 5.2, _M1_LARGER),
    (1, "Max"): Roofs(400, 11.0, 10.4, _M1_LARGER),
    (1, "Ultra"): Roofs(800, 22.0, 20.8, _M1_ULTRA),
    (2, "base"): Roofs(100, 15.8, 3.6, _M2),
    (2, "Pro"): Roofs(200, 15.8, None, _M2_LARGER),
    (2, "Max"): Roofs(400, 15.8, None, _M2_LARGER),
    (2, "Ultra"): Roofs(800, 31.6, None, _M2_ULTRA),
    (3, "base"): Roofs(100, 18.0, None, _M3),
    (3, "Pro"): Roofs(150, 18.0, 6.44, _M3),
    (3, "Max"): Roofs(400, 18.0, 14.32, _M3),
    (3, "Ultra"): Roofs(819, None, None, _M3_ULTRA),
    (4, "base"): Roofs(120, 19.0, 4.04, _M4),
    (4, "Pro"): Roofs(273, 19.0, None, _M4_LARGER),
    (4, "Max"): Roofs(546, 19.0, 17.18, _M4_LARGER),
    (5, "base"): Roofs(153, 19.3, 17.5, _M5),
    (5, "Pro"): Roofs(307, 19.3, 35.0, _M5_LARGER),
    (5, "Max"): Roofs(614, 19.3, 70.0, _M5_LARGER),
}


def roofs_of(hardware: Hardware) -> Roofs | None:
    """None for a chip that is not in the table."""
    return ROOFS.get((hardware.generation or 0, hardware.tier or ""))


@dataclass(frozen=True, slots=True)
class Work:
    """What must be computed, and read from memory, whatever does it."""

    flop: float
    bytes: float


def encoder_work(config: EmbeddingConfig, rows: int, length: int) -> Work:
    """Of `rows` texts of `length` tokens: the products of the layers, and all of their weights once in float16."""
    encoder = config.encoder
    scores = sum(4 * length * each.heads * each.head_size for each in encoder.attentions)
    return Work(rows * length * (2.0 * encoder.layer_weights + scores), FLOAT16_BYTES * encoder.layer_weights)


def least_seconds(work: Work, engine: Engine, roofs: Roofs) -> float | None:
    """In which the chip could be done, computing and reading at once; None where nobody says."""
    tflops = roofs.tflops(engine)
    return None if tflops is None else max(work.flop / (tflops * 1e12), work.bytes / (roofs.gigabytes_s * 1e9))


def share_of_roof(work: Work, seconds: float, engine: Engine, roofs: Roofs) -> float | None:
    """How much of what the chip can do was got, 0 to 1; None where nobody says what that is, or there is no work."""
    least = least_seconds(work, engine, roofs)
    return least / seconds if least and seconds > 0 else None
