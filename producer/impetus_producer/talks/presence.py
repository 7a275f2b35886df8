"""Whether a server is there, for who has others to go to meanwhile."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from ..errors import ServerConfigurationError, ServerDataError, ServerError
from .steps import Question

if TYPE_CHECKING:
    from .steps import Talk

_EVERY_S = 1.0
_SPARED = 5
"""So many times as long as an answer took, or a silent network, the server is not asked again."""


class Presence:
    """What is known of one server. Asks it now and then, and waits for it as long as one answer may take."""

    def __init__(self) -> None:
        self._ask_at = -math.inf
        self.error: ServerError | None = None
        """Why it is taken to be away."""

    def look(self) -> Talk[bool]:
        """Whether it is there. Raises where waiting for it would not help."""
        began = time.monotonic()
        if began >= self._ask_at:
            try:
                yield Question(lambda client: client.ping(), once=True)
            except (ServerConfigurationError, ServerDataError):
                raise
            except ServerError as error:
                self.note(began, error)
            else:
                self.note(began)
        return self.error is None

    def note(self, began: float, error: ServerError | None = None) -> None:
        """What came of asking the server, and when that was, by the monotonic clock."""
        self.error, ended = error, time.monotonic()
        self._ask_at = ended + max(_EVERY_S, _SPARED * (ended - began))
