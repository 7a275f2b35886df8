"""How a job ends, and what is told of it until then: what batches say and the ledger writes down."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from impetus_producer.contract import StreamEvent

    from .claims import ClaimedJob


@dataclass(frozen=True, slots=True)
class Finished:
    job: ClaimedJob
    result: bytes
    """The result as JSON."""
    vectors: bytes | None = None
    """The vectors of a request for `raw` ones, which its JSON then leaves out."""

    def whole(self) -> dict[str, Any]:
        """The result in one piece, for whoever can store no more than a return value."""
        result: dict[str, Any] = json.loads(self.result)
        if self.vectors is not None:
            data = base64.b64encode(self.vectors).decode("ascii")
            result["embeddings"] |= {"encoding": "base64", "data": data}
        return result


@dataclass(frozen=True, slots=True)
class Failed:
    job: ClaimedJob
    error: Exception


@dataclass(frozen=True, slots=True)
class Stopped:
    """Ends without a result, because nobody wants it any more."""

    job: ClaimedJob
    reason: str = "stopped by its user"


@dataclass(frozen=True, slots=True)
class Returned:
    """Goes back to the front of its queue, as if never claimed."""

    job: ClaimedJob


Outcome: TypeAlias = Finished | Failed | Stopped | Returned


@dataclass(frozen=True, slots=True)
class Said:
    """What a running generation says to whoever reads its token stream; the job goes on."""

    job: ClaimedJob
    event: StreamEvent
    run: str
    """Names this run of the job, and no other."""
    at: int = 0
    """With text: how many characters of this run and channel came before it."""
    text: str = ""
    channel: str = ""
    """With text: of what it is a part (`contract.channel_name`)."""
    status: str = ""
    """With the end: how the job ends."""
    result: bytes = b""
    """With the end, where there is no other result: what was made until then, as JSON."""


@dataclass(frozen=True, slots=True)
class Started:
    """The engine has begun with the job. `awaited`: it is to run only as long as somebody waits for it."""

    job: ClaimedJob
    awaited: bool = False


News: TypeAlias = Outcome | Said | Started
