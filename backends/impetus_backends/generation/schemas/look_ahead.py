"""Patterns that tools write and that look ahead, which no automaton does, in words that a grammar knows.

For a `Decimal`, later versions of pydantic 2 ask that a number has a digit, and not too many; zod 4 asks of an e-mail
address that its dots stand apart, of a duration that it is not empty, and of a host that its name is not too long. What
is made of them here allows what people write, and nothing that the pattern forbids. Sources: https://github.com/pydantic/pydantic/blob/main/pydantic/json_schema.py
(`decimal_schema`), https://github.com/colinhacks/zod/blob/main/packages/zod/src/v4/core/regexes.ts.
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
_N = "[0-9]{1,9}"
_DAYS = f"({_N}Y({_N}M)?({_N}D)?|{_N}M({_N}D)?|{_N}D)"
_TIME = f"T({_N}H({_N}M)?({_N}S)?|{_N}M({_N}S)?|{_N}S)"
_LABEL = "[a-zA-Z0-9]([a-zA-Z0-9-]{0,28}[a-zA-Z0-9])?"
_ZODS = {
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$":
        r"^[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+)*@([A-Za-z0-9][A-Za-z0-9-]*\.)+[A-Za-z]{2,}$",
    r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$":
        rf"^P({_N}W|{_DAYS}({_TIME})?|{_TIME})$",
    r"^(?=.{1,253}\.?$)[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
    r"(?:\.[a-zA-Z0-9](?:[-0-9a-zA-Z]{0,61}[0-9a-zA-Z])?)*\.?$":
        rf"^{_LABEL}(\.{_LABEL}){{0,7}}$",
}  # fmt: skip
_MOST_DIGITS = 40
"""More than this are counted without a point."""


def without_look_ahead(pattern: str) -> str:
    """The same pattern, unless it is one of these."""
    if pattern in _ZODS:
        return _ZODS[pattern]
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
