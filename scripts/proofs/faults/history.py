"""What was sent and what was acknowledged: the producers' side of a history, against which an account is taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.worker.faults.account import fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class History:
    """Written by all who enqueue, from any thread. No two requests in it are alike."""

    def __init__(self) -> None:
        self.attempted: dict[str, str] = {}
        """The id that was acknowledged, or "", by the request's fingerprint."""
        self.acknowledged: list[str] = []
        self.vanishing: set[str] = set()
        """Jobs that are not kept once they have ended."""

    def attempt(self, request: Mapping[str, Any]) -> str:
        """To be called before the request is sent; returns what `acknowledge` wants."""
        sent = fingerprint(request)
        assert sent not in self.attempted, "no two requests are to be alike"
        self.attempted[sent] = ""
        return sent

    def acknowledge(self, sent: str, job_id: str) -> None:
        self.attempted[sent] = job_id
        self.acknowledged.append(job_id)

    def acknowledge_all(self, sent: Iterable[str], job_ids: Iterable[str], *, vanishing: bool = False) -> None:
        for each, job_id in zip(sent, job_ids, strict=True):
            if vanishing:
                self.vanishing.add(job_id)
            self.acknowledge(each, job_id)
