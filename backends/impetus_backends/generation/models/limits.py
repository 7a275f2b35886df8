"""How much of a machine's memory MLX may keep for reuse, and how much of it may be wired for the GPU.

Three quarters of the memory are for models and what they work on (`policy.MEMORY_SHARE`); both limits follow from
that one share. Nothing is wired unless asked: public reports single it out as what makes whole Macs panic
(ml-explore/mlx#3186: 3 of 3 with it, 0 of 10 without). Neither has been seen at work on a Mac yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...machine.policy import MEMORY_SHARE

if TYPE_CHECKING:
    from ...machine.hardware import Hardware

MOST_CACHE_BYTES = 1 << 30
"""The most freed memory that MLX may keep for reuse. Without a bound, ever new shapes make it grow for ever."""
CACHE_SHARE = 0.25
"""Of the memory that models leave to everything else, the part that freed memory may take."""


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """What MLX is told, in bytes."""

    cache_bytes: int = MOST_CACHE_BYTES
    wired_bytes: int = 0
    """What may be kept resident for the GPU, so that the system does not page weights out between jobs; 0 for none."""

    def apply(self, mx: Any) -> None:
        """Sets both on `mlx.core`; the wired limit only with Metal, and no higher than Metal recommends.

        Beyond `max_recommended_working_set_size` MLX raises, so where the device does not tell it nothing is wired.
        Saying the same again changes nothing, so every model that is loaded may say it.
        """
        mx.set_cache_limit(self.cache_bytes)
        if not (self.wired_bytes and mx.metal.is_available()):
            return
        recommended = mx.device_info().get("max_recommended_working_set_size")
        if isinstance(recommended, int) and recommended > 0:
            mx.set_wired_limit(min(self.wired_bytes, recommended))


def wired_memory_policy(hardware: Hardware, *, asked: bool) -> str:
    """What holds for wired memory on a machine, and why, in a sentence."""
    if not asked:
        return (
            "nothing is wired for the GPU: in public reports that makes whole Macs panic (ml-explore/mlx#3186); "
            "--wired-memory wires it all the same"
        )
    if not hardware.apple_silicon:
        return "nothing is wired for the GPU, although --wired-memory was given: there is no Apple GPU here"
    return "memory is wired for the GPU, up to what Metal recommends: --wired-memory was given (unverified)"


def memory_limits(memory_bytes: int, models_bytes: int | None = None, *, wired: bool = False) -> MemoryLimits:
    """The limits of a machine with so much memory, of which models may take `models_bytes` (none: their share).

    Nothing is wired unless `wired`. A machine whose memory is not known (0) gets the cache's upper bound, and nothing
    wired.
    """
    if memory_bytes <= 0:
        return MemoryLimits()
    for_models = min(models_bytes or int(memory_bytes * MEMORY_SHARE), memory_bytes)
    # The share left by `MEMORY_SHARE`, also where somebody lets models have more or less than that.
    left = memory_bytes - int(memory_bytes * MEMORY_SHARE)
    return MemoryLimits(min(MOST_CACHE_BYTES, int(left * CACHE_SHARE)), for_models if wired else 0)
