"""JSON from strangers, read strictly and in bounded time.

Source of strictness: RFC 8259, so neither NaN nor half a surrogate pair; pydantic's parser besides bounds nesting (200)
and the digits of a number (4,300).
"""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic_core import from_json

_MAYBE_INFINITE = re.compile(rb"[eE]\+?\d{2}|\d{200}")


def read_json(text: bytes) -> Any:
    """Raises `ValueError` with what is wrong."""
    value = from_json(text, allow_inf_nan=False)
    if _MAYBE_INFINITE.search(text):
        # 1e999 is a number in JSON, and none that anybody could go on with.
        json.dumps(value, allow_nan=False)
    return value
