"""The worker image's health check: exits with 0 if every role of this container has a live worker on the server."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING

from impetus_producer import ImpetusError, connect
from impetus_producer.watching.fleet import read_fleet

if TYPE_CHECKING:
    from impetus_producer.watching.fleet import Fleet


def missing_roles(fleet: Fleet, roles: str, hostname: str) -> list[str]:
    """The roles (as IMPETUS_ROLES lists them) that no live worker of this host serves; its name says which it is."""
    host = hostname.split(".")[0]
    alive = [worker.name for worker in fleet.workers if worker.alive]
    wanted = [role.strip() for role in roles.split(",") if role.strip()]
    return [role for role in wanted if not any(name.startswith(f"impetus-{role}-{host}-") for name in alive)]


def main() -> int:
    try:
        fleet = read_fleet(connect())
    except ImpetusError as error:
        print(error)
        return 1
    usual = "embedding,generation" + (",rerank" if os.environ.get("IMPETUS_RERANK_MODEL") else "")
    missing = missing_roles(fleet, os.environ.get("IMPETUS_ROLES") or usual, socket.gethostname())
    if missing:
        print(f"no live worker here for {' and '.join(missing)}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
