"""Gives a Python process another wall clock: `OTHER_CLOCK_S` seconds ahead of this machine's, or behind it.

Python imports a module of this name as it starts, where the folder is on PYTHONPATH: so all processes of a tree have
that clock, from their first moment. Monotonic clocks are as they are, and so is what C code reads by itself.
"""

import datetime
import os
import time
from typing import Any

_AHEAD_S = float(os.environ.get("OTHER_CLOCK_S", "0"))
_time, _time_ns, _clock_gettime = time.time, time.time_ns, time.clock_gettime
_datetime: Any = datetime.datetime


class _LikeAnyDatetime(type):
    """Makes `isinstance` say yes to those that C code made."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _datetime)


class _Datetime(_datetime, metaclass=_LikeAnyDatetime):  # type: ignore[misc]
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls) -> Any:
        return cls.fromtimestamp(time.time(), datetime.UTC).replace(tzinfo=None)

    @classmethod
    def today(cls) -> Any:
        return cls.fromtimestamp(time.time())


if _AHEAD_S:
    time.time = lambda: _time() + _AHEAD_S
    time.time_ns = lambda: _time_ns() + int(_AHEAD_S * 1e9)
    time.clock_gettime = lambda clock: _clock_gettime(clock) + (_AHEAD_S if clock == time.CLOCK_REALTIME else 0)
    _Datetime.__name__, _Datetime.__qualname__, _Datetime.__module__ = "datetime", "datetime", "datetime"
    datetime.datetime = _Datetime  # type: ignore[misc]
