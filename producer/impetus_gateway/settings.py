"""What a gateway is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits of one gateway. Several on one Redis do not add theirs up."""

    max_body_bytes: int = 16_000_000
    """Of one request; more is refused with 413."""
    max_held_bytes: int = 256_000_000
    """Of all requests' bodies that are being read or answered."""
    max_requests: int = 4_000
    """So many at once, open streams among them; more are refused with 429."""
    max_backlog_jobs: int = 1_000
    """A request is refused with 429 while so many jobs wait in its lane, …"""
    max_wait_s: float = 60.0
    """… or while the first of them has waited for so long."""
    max_bulk_backlog_jobs: int = 100_000
    """As `max_backlog_jobs`, for requests of `Prefer: respond-async`."""
    request_timeout_s: float = 600.0
    """A request that takes longer is answered with 504, and its job is cancelled."""
    read_timeout_s: float = 60.0
    """So long the whole of a body may take to come."""
    drain_s: float = 30.0
    """After SIGTERM, so long what is being answered may take."""
    ping_s: float = 15.0
    """After so long without a word, an event stream says something that means nothing."""
    origins: tuple[str, ...] = ()
    """Web pages from elsewhere that may ask, such as `https://app.example`."""
    hosts: tuple[str, ...] = ()
    """Names by which browsers may call it, beside the addresses of this machine's loopback; none: any where keys are
    asked for."""
