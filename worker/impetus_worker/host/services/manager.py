"""Which services a system has: for this user, or for the whole machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ServiceError
from .launchd import LaunchAgent, LaunchDaemon
from .service import run_command
from .systemd import SystemdUnit, SystemUnit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .service import Account, Run, ServiceManager


def service_manager(
    system: str, home: Path, uid: int, environment: Mapping[str, str], run: Run = run_command
) -> ServiceManager:
    """What this system (`sys.platform`) keeps services with; raises `ServiceError` where Impetus knows of nothing."""
    if uid == 0 and system == "darwin":
        raise ServiceError(
            "a LaunchAgent belongs to a user: run this without sudo, as the user who is to run it, or with --system"
        )
    if system == "darwin":
        return LaunchAgent(home, uid, run)
    if system.startswith("linux"):
        config = environment.get("XDG_CONFIG_HOME")
        return SystemdUnit(home / ".config" if not config else home / config, run)
    raise ServiceError(f"no services are known for {system}: run `impetus-worker run` by what starts programs there")


def system_service_manager(
    system: str,
    uid: int,
    environment: Mapping[str, str],
    find: Callable[[str], Account],
    run: Run = run_command,
    root: Path = Path("/"),
) -> ServiceManager:
    """`service_manager` for the whole machine: needs root, and runs in the name of whoever became root by sudo.

    `find` looks an account up by its name, and raises `KeyError`.
    """
    if system != "darwin" and not system.startswith("linux"):
        raise ServiceError(
            f"no services are known for {system}: run `impetus-worker run` by what starts programs there"
        )
    name = environment.get("SUDO_USER", "")
    if uid != 0 or name in ("", "root"):
        raise ServiceError(
            "a service of the machine is installed by root, and runs in the name of the user who called sudo: as the "
            f"user who is to run it, say: sudo {sys.executable} -P -m impetus_worker service … --system"
        )
    try:
        account = find(name)
    except KeyError:
        raise ServiceError(
            f"there is no account {name!r} on this machine, in whose name the worker could run"
        ) from None
    if system == "darwin":
        return LaunchDaemon(root / "Library" / "LaunchDaemons", account, run)
    return SystemUnit(root / "etc" / "systemd" / "system", account, run)
