"""The loaders: what suits the GPU of a machine, and what becomes of a model that comes unquantised.

`policy` chooses the profile by the machine; the rule here decides, from machine, profile, option and the model's own
configuration, and without loading anything, whether its weights are quantised when they are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..quantization.quantize import RECIPES, QuantizationError, packed_bytes, quantization_of
from .limits import memory_limits
from .loader import load, read_config

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ...machine.hardware import Hardware
    from ..quantization.quantize import Recipe
    from .limits import MemoryLimits
    from .loader import LoadedModel

AUTO, NONE = "auto", "none"
CHOICES = (AUTO, NONE, *RECIPES)
"""What may be asked for when a model is loaded."""


@dataclass(frozen=True, slots=True)
class Profile:
    """How generation loads and runs on one kind of GPU."""

    name: str
    prefill_tokens: int
    """Prompt tokens read in one step. While they are read, running streams wait."""
    quantization: str
    """The recipe for models that come unquantised."""
    unverified: str = ""
    """What must be said of it until somebody has measured it."""


STANDARD = Profile("standard", 512, "4bit")
M5 = Profile("m5", 2048, "mixed_4_6", "unverified: `impetus-worker verify` has not been run on an M5 yet")
PROFILES = {profile.name: profile for profile in (STANDARD, M5)}


def profile_of(name: str | None) -> Profile:
    """The profile that `policy.Choice.profile` names; the standard one where it names none."""
    return STANDARD if name is None else PROFILES[name]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do to one model's weights, and why, in a sentence; nothing is said where nothing was to be decided."""

    quantization: Recipe | None
    reasons: tuple[str, ...] = ()


def plan(hardware: Hardware, profile: Profile, option: str, config: Mapping[str, Any], folder: Path | None) -> Plan:
    """What becomes of a model with this configuration. `option` is one of `CHOICES`.

    A model that is quantised already stays as it is. Others are quantised as asked; on `auto`, by the profile on an
    Apple GPU, and not at all on a CPU, where fewer bits make nothing faster.
    """
    already = quantization_of(config, folder)
    if already is not None:
        if option in (AUTO, NONE):
            return Plan(None)
        return Plan(None, (f"not quantised to {option}, because the model comes quantised: {already}",))
    if option == NONE:
        return Plan(None, ("loaded as it comes, unquantised: asked for",))
    if option != AUTO:
        return Plan(RECIPES[option], (f"quantised at load to {option}: asked for",))
    if not apple_gpu(hardware):
        return Plan(None, ("loaded as it comes, unquantised: there is no Apple GPU here",))
    recipe = RECIPES[profile.quantization]
    words = f"quantised at load to {recipe.name} ({recipe.about}), as the {profile.name} loader does with what comes "
    return Plan(recipe, (words + "unquantised" + (f" ({profile.unverified})" if profile.unverified else ""),))


def apple_gpu(hardware: Hardware) -> bool:
    """Whether MLX runs on an Apple GPU there: a virtual machine must show one."""
    return hardware.apple_silicon and not (hardware.virtual and not hardware.gpu_architecture)


@dataclass(frozen=True, slots=True)
class ModelLoader:
    """Loads the models of one engine as its profile and the user's option say."""

    hardware: Hardware
    profile: Profile = STANDARD
    option: str = AUTO
    models_bytes: int | None = None
    """What models may take; none means their share of the machine's memory."""
    wired_memory: bool = False
    """Whether it may be wired for the GPU."""

    @property
    def limits(self) -> MemoryLimits:
        return memory_limits(self.hardware.memory_bytes, self.models_bytes, wired=self.wired_memory)

    def needed_bytes(self, folder: Path) -> int:
        """What the weights of the model in `folder` take once loaded: at most, where they are quantised on the way."""
        stored = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
        config = read_config(folder)
        recipe = self._plan(config, folder).quantization
        return packed_bytes(stored, config, recipe) if recipe else stored

    def load(self, folder: Path) -> LoadedModel:
        """The model in `folder`; `reasons` say what was done to its weights. Raises as `loader.load` does.

        Where a model does not lend itself to what the profile would do, it is quantised to 4bit, or else loaded as it
        comes. What the user asked for is done or refused.
        """
        chosen = self._plan(read_config(folder), folder)
        if chosen.quantization is None or self.option != AUTO:
            return self._load(folder, chosen.quantization, chosen.reasons)
        said: tuple[str, ...] = ()
        for name in dict.fromkeys((chosen.quantization.name, "4bit")):
            try:
                instead = (*said, f"quantised at load to {name} instead") if said else chosen.reasons
                return self._load(folder, RECIPES[name], instead)
            except QuantizationError as error:
                said = (*said, f"not quantised to {name}: {error}")
        return self._load(folder, None, (*said, "loaded as it comes, unquantised"))

    def _plan(self, config: Mapping[str, Any], folder: Path) -> Plan:
        return plan(self.hardware, self.profile, self.option, config, folder)

    def _load(self, folder: Path, recipe: Recipe | None, reasons: tuple[str, ...]) -> LoadedModel:
        loaded = load(folder, quantization=recipe, limits=self.limits)
        return replace(loaded, reasons=(*reasons, *loaded.reasons))
