"""The figures that the project was given, each of which a Mac can confirm or deny. No Mac has yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from impetus_backends.verified.check import Check, Figure, Verdict, verdict
from impetus_backends.verified.roofs import Work, share_of_roof

if TYPE_CHECKING:
    from impetus_backends.verified.roofs import Engine, Roofs

Unit = Literal["ms", "x", "%"]
TEXT_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Claim:
    """`value` has to be `target` at most, or at least."""

    name: str
    """Of its line in the report."""
    unit: Unit
    target: float
    at_least: bool = False
    engine: Engine | None = None
    """What its time is held against the roof of."""

    def met(self, value: float) -> bool:
        return value >= self.target if self.at_least else value <= self.target

    @property
    def asked(self) -> str:
        unit = self.unit if self.unit == "x" else f" {self.unit}"
        return f"{self.target:g}{unit} at {'least' if self.at_least else 'most'}"


CLAIMS = {
    "text-neural-engine": Claim("a text on the Neural Engine", "ms", 5.0, engine="neural engine"),
    "batch-neural-engine": Claim("a batch on the Neural Engine", "ms", 10.0, engine="neural engine"),
    "text-gpu": Claim("a text on the GPU", "ms", 20.0, engine="gpu"),
    "text-pytorch": Claim("a text through PyTorch on the CPU", "ms", 150.0),
    "prefill-m5": Claim("prefill with the M5 loader", "x", 4.0, at_least=True, engine="gpu"),
    "loss-int8": Claim("loss of int8 weights", "%", 2.0),
    "loss-w8a8": Claim("loss of int8 weights and activations", "%", 2.0),
    "fallback": Claim("the GPU before M4, the Neural Engine from then on", "x", 1.0, at_least=True),
    "memory": Claim("share of the memory", "%", 75.0),
    "decoder-neural-engine": Claim("decoding on the Neural Engine", "x", 1.0),
}
"""A gain is, of `prefill-m5`, that over the standard loader, of `fallback` that of the backend which the rule takes
over the other, of `decoder-neural-engine` that over the GPU: there is none, it says, so that no model decodes there.
Of `memory` it is what this process took at most."""


def found(
    key: str, value: float, detail: str, *, work: Work | None = None, seconds: float = 0.0, roofs: Roofs | None = None
) -> Check:
    """The line of a claim that was measured: `work` took `seconds` where it is held against the chip's roof."""
    claim = CLAIMS[key]
    work = work if work and work.flop else None  # a static model multiplies nothing
    share = share_of_roof(work, seconds, claim.engine, roofs) if work and roofs and claim.engine else None
    figure = Figure(
        key,
        _short(value),
        gflop=_short(work.flop / 1e9) if work else None,
        megabytes=_short(work.bytes / 1e6) if work else None,
        share_of_roof=None if share is None else _short(share),
    )
    if claim.engine and share is None:
        detail += "; the chip's roof is not known"
    elif share is not None:
        detail += f"; {share:.1%} of the chip's roof"
    return Check(claim.name, verdict(claim.met(figure.value)), detail, figure)


def _short(value: float) -> float:
    """To five digits: more say nothing of a time."""
    return float(f"{value:.5g}")


def not_applicable(key: str, why: str) -> Check:
    return Check(CLAIMS[key].name, Verdict.NOT_APPLICABLE, why)


def failed(key: str, why: str) -> Check:
    return Check(CLAIMS[key].name, Verdict.FAIL, why)
