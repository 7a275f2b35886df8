"""Patterns that tools write and that look ahead, which no automaton does, in words that a grammar knows.

For a `Decimal`, later versions of pydantic 2 ask that a number has a digit, and not too many; zod 4 asks of an e-mail
address that its dots stand apart. What is made of them here allows numbers and addresses as people write them, and none
that the pattern forbids. Sources: https://github.com/pydantic/pydantic/blob/main/pydantic/json_schema.py
(`decimal_schema`), https://github.com/colinhacks/zod/blob/main/packages/zod/src/v4/core/regexes.ts (`email`).
"""

from __future__ import annotations

import re

_BEGINNING = r"^(?!^[-+.]*$)[+-]?0*"
_ANY = r"\d*\.?\d*$"
_PLACES = re.compile(r"\\d\*\\\.\?\\d\{0,(\d+)\}0\*\$")
_DIGITS = re.compile(r"\(\?:\\d\{0,(\d+)\}\|\(\?=\[\\d\.\]\{1,\d+\}0\*\$\)\\d\*\\\.\\d\*0\*\$\)")
_BOTH = re.compile(
    r"\(\?:\\d\{0,(\d+)\}\|\(\?=\[\\d\.\]\{1,\d+\}0\*\$\)\\d\{0,\d+\}\\\.\\d\{0,(\d+)\}0\*\$\)"
)  # fmt: skip
_ADDRESS = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
_PLAIN_ADDRESS = r"^[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+)*@([A-Za-z0-9][A-Za-z0-9-]*\.)+[A-Za-z]{2,}$"
_MOST_DIGITS = 40
"""More than this are counted without a point."""


def without_look_ahead(pattern: str) -> str:
    """The same pattern, unless it is one of these."""
    if pattern == _ADDRESS:
        return _PLAIN_ADDRESS
    if not pattern.startswith(_BEGINNING):
        return pattern
    rest = pattern.removeprefix(_BEGINNING)
    if rest == _ANY:
        return _signed(r"[0-9]+(\.[0-9]+)?")
    if found := _PLACES.fullmatch(rest):
        return _signed("[0-9]+" + _fraction(int(found[1])))
    if found := _BOTH.fullmatch(rest):
        whole, places = int(found[1]), int(found[2])
        return _signed((f"[0-9]{{1,{whole}}}" if whole else "0") + _fraction(places))
    if found := _DIGITS.fullmatch(rest):
        digits = int(found[1])
        split = range(1, digits) if digits <= _MOST_DIGITS else ()
        with_point = [f"[0-9]{{1,{at}}}{_fraction(digits - at)}" for at in split]
        return _signed("|".join([f"[0-9]{{1,{digits}}}", *with_point]))
    return pattern


def _fraction(places: int) -> str:
    return rf"(\.[0-9]{{1,{places}}})?" if places else ""


def _signed(pattern: str) -> str:
    return f"^-?({pattern})$"
