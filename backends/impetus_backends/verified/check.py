"""A line of the report: a question, its verdict, and the figure that it rests on where it rests on one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured for a claim."""

    claim: str
    """Its key in `claims.CLAIMS`, which has unit and target."""
    value: float
    gflop: float | None = None
    """The work that `value` is the time of: a thousand million operations, …"""
    megabytes: float | None = None
    """… and the bytes that must be read for it, in millions."""
    share_of_roof: float | None = None
    """Of what the chip could do at most; None where nobody says what that is."""


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    verdict: Verdict
    detail: str
    figure: Figure | None = None


def verdict(good: bool) -> Verdict:
    return Verdict.PASS if good else Verdict.FAIL
