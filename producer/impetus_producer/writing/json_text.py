"""Values of further columns as JSON, whatever they were in the input."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from typing import Any


def json_text(value: Any) -> str:
    """Numbers that are not finite are null, bytes are base64, and what else JSON has no form for is text."""
    return json.dumps(_plain(value), ensure_ascii=False)


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {str(name): _plain(each) for name, each in value.items()}
        case list() | tuple():
            return [_plain(each) for each in value]
        case bytes():
            return b64encode(value).decode("ascii")
    return str(value)
