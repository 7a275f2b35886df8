"""systemd's services: a unit for one user, and one for the machine.

The files may hold a Redis password, and are readable by their owner alone. Formats: systemd.service(5),
systemd.exec(5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from impetus_backends.cache import write_whole
from impetus_producer.servers.discovery import STATE_DIR_VARIABLE

from ...errors import ServiceError
from ..supervisor import EXIT_CONFIGURATION
from .service import STOP_S, ServiceState, in_name_of, removed

if TYPE_CHECKING:
    from pathlib import Path

    from .service import Account, Answer, Program, Run

UNIT = "impetus-worker.service"
# What needs no namespace, and so also works where a user may make none. Nothing here forbids memory that is written and
# run: ONNX Runtime and MLX compile.
_CONFINED = (
    "NoNewPrivileges=true\n"
    "LockPersonality=true\n"
    "RestrictRealtime=true\n"
    "RestrictSUIDSGID=true\n"
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK\n"
    "SystemCallArchitectures=native\n"
)
_FOLDERS = (STATE_DIR_VARIABLE, "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")
"""Variables that name a folder to write to."""
_AFTER_NETWORK = "Wants=network-online.target\nAfter=network-online.target\n"


class SystemdUnit:
    """systemd's, for one user; it lives as long as the user's session, or for ever with lingering."""

    def __init__(self, config: Path, run: Run) -> None:
        self.file = config / "systemd" / "user" / UNIT
        self.logs = f"journalctl --user -u {UNIT}"
        self._scope: tuple[str, ...] = ("--user",)
        self._run = run

    def text(self, program: Program) -> str:
        environment = "".join(
            f"Environment={_quoted(f'{name}={value}')}\n" for name, value in program.environment.items()
        )
        return self._text(program, f"{environment}WorkingDirectory=%h\n", wanted_by="default.target")

    def _text(self, program: Program, settings: str, *, wanted_by: str, after: str = "") -> str:
        # systemd puts variables into the arguments, and not into the name of the program.
        first, *rest = program.command
        command = " ".join([_quoted(first), *(_quoted(part).replace("$", "$$") for part in rest)])
        return (
            "[Unit]\n"
            "Description=Impetus worker\n"
            f"{after}"
            "\n"
            "[Service]\n"
            "Type=exec\n"
            f"ExecStart={command}\n"
            f"{settings}"
            "Restart=on-failure\n"
            "RestartSec=5\n"
            f"RestartPreventExitStatus={EXIT_CONFIGURATION}\n"
            # The supervisor tells its workers itself, and each finishes what it has begun.
            "KillMode=mixed\n"
            f"TimeoutStopSec={STOP_S}\n"
            "UMask=0077\n"
            f"{_CONFINED}"
            "\n"
            "[Install]\n"
            f"WantedBy={wanted_by}\n"
        )

    def install(self, program: Program) -> None:
        text = self.text(program)
        self._systemctl("daemon-reload")  # before anything is written: is there a systemd at all?
        self._write(text, program)
        self._systemctl("daemon-reload")
        self._systemctl("enable", UNIT)
        self._systemctl("restart", UNIT)

    def _write(self, text: str, program: Program) -> None:
        write_whole(self.file, text)

    def uninstall(self) -> bool:
        if self.file.exists():
            self._systemctl("disable", "--now", UNIT)
        existed = removed(self.file)
        if existed:
            self._systemctl("daemon-reload")
        return existed

    def state(self) -> ServiceState:
        answer = self._systemctl("show", UNIT, "--property=ActiveState,SubState,MainPID,NRestarts,ExecMainStatus")
        found = dict(line.split("=", 1) for line in answer.text.splitlines() if "=" in line)
        words = (
            f"{found.get('ActiveState', '?')} ({found.get('SubState', '?')}), pid {found.get('MainPID', '?')}, "
            f"restarts {found.get('NRestarts', '?')}, last exit status {found.get('ExecMainStatus', '?')}"
        )
        return ServiceState(self.file.exists(), found.get("ActiveState") == "active", words)

    def _systemctl(self, *arguments: str) -> Answer:
        command = ["systemctl", *self._scope, *arguments]
        answer = self._run(command)
        if answer.status != 0:
            raise ServiceError(
                f"{' '.join(command)} failed: {answer.text or f'exit status {answer.status}'}. "
                "Without systemd, or one for users, keep the worker running by what this system has, such as a "
                "container's restart policy, or by hand: nohup impetus-worker run >impetus.log 2>&1 &"
            )
        return answer


class SystemUnit(SystemdUnit):
    """systemd's, for the machine: from its start on, in a user's name."""

    def __init__(self, folder: Path, account: Account, run: Run) -> None:
        super().__init__(folder, run)
        self.file = folder / UNIT
        self.logs = f"sudo journalctl -u {UNIT}"
        self._scope = ()
        # Everybody may ask systemd for a unit's variables, and nobody may read this.
        self._variables = self.file.with_suffix(".env")
        self._account = account

    def text(self, program: Program) -> str:
        home, variables = (str(path).replace("%", "%%") for path in (self._account.home, self._variables))
        settings = (
            f"User={self._account.name}\nEnvironmentFile={variables}\nWorkingDirectory={home}\n"
            # The account has no more rights than that, and here not even all of these.
            "CapabilityBoundingSet=\n"
            "ProtectSystem=strict\n"
            # /tmp is the machine's: what is too long for a socket's name lies there.
            f"ReadWritePaths={' '.join(map(_quoted_path, (home, '/tmp', '/var/tmp', *self._folders(program))))}\n"
            "ProtectKernelTunables=true\n"
            "ProtectKernelModules=true\n"
            "ProtectKernelLogs=true\n"
            "ProtectControlGroups=true\n"
            "ProtectClock=true\n"
            "ProtectHostname=true\n"
            "ProtectProc=invisible\n"
            "RestrictNamespaces=true\n"
        )
        return self._text(program, settings, wanted_by="multi-user.target", after=_AFTER_NETWORK)

    def _folders(self, program: Program) -> list[str]:
        """Where it is told to write besides; one that is not there (`-`) stops nothing."""
        environment = in_name_of(self._account, program).environment
        return [f"-{environment[name].replace('%', '%%')}" for name in _FOLDERS if environment.get(name)]

    def variables(self, program: Program) -> str:
        """The content of the file of variables."""
        pairs = in_name_of(self._account, program).environment.items()
        return "".join(f"{name}={_quoted_variable(value)}\n" for name, value in pairs)

    def _write(self, text: str, program: Program) -> None:
        write_whole(self._variables, self.variables(program))
        super()._write(text, program)

    def uninstall(self) -> bool:
        existed = super().uninstall()
        removed(self._variables)
        return existed


def _quoted_variable(text: str) -> str:
    """A value in a file of variables, where there are no specifiers."""
    for special in '\\"$`':
        text = text.replace(special, f"\\{special}")
    return f'"{text}"'


def _quoted_path(path: str) -> str:
    """A path in a list of them; its specifiers are escaped already."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _quoted(text: str) -> str:
    """One word of a unit's line. `%` begins systemd's own specifiers."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'
