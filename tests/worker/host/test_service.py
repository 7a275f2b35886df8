"""The worker as a service of launchd or systemd."""

from __future__ import annotations

import os
import plistlib
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from impetus_worker.errors import ServiceError
from impetus_worker.host.services.launchd import LABEL, LaunchDaemon
from impetus_worker.host.services.manager import system_service_manager
from impetus_worker.host.services.service import Account, Answer, Program
from impetus_worker.host.services.systemd import UNIT, SystemdUnit, SystemUnit

from .services import PROGRAM, System, account, agent, read_unit, unescaped

# -- launchd ---------------------------------------------------------------------------------------------------------


def test_the_launch_agent_runs_what_it_was_told_restarts_on_a_crash_and_keeps_a_log(tmp_path: Path) -> None:
    plist: dict[str, Any] = plistlib.loads(agent(tmp_path, System()).text(PROGRAM).encode())
    assert plist["Label"] == LABEL
    assert tuple(plist["ProgramArguments"]) == PROGRAM.command
    assert plist["EnvironmentVariables"] == PROGRAM.environment
    assert plist["RunAtLoad"] is True
    assert plist["KeepAlive"] == {"SuccessfulExit": False}
    assert plist["StandardOutPath"] == plist["StandardErrorPath"] == f"{tmp_path}/Library/Logs/impetus/worker.log"
    assert plist["Umask"] == 0o077
    assert Path(plist["ProgramArguments"][0]).is_absolute()


def test_installing_a_launch_agent_replaces_the_one_that_runs(tmp_path: Path) -> None:
    system = System()
    agent(tmp_path, system).install(PROGRAM)
    file = tmp_path / "Library" / "LaunchAgents" / f"{LABEL}.plist"
    assert plistlib.loads(file.read_bytes())["EnvironmentVariables"] == PROGRAM.environment
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert (tmp_path / "Library" / "Logs" / "impetus").is_dir()
    assert system.told == [
        f"launchctl bootout gui/501/{LABEL}",
        f"launchctl enable gui/501/{LABEL}",
        f"launchctl bootstrap gui/501 {file}",
    ]


def test_a_launch_agent_still_on_its_way_out_is_waited_for(tmp_path: Path) -> None:
    refusals = iter([Answer(5, "Bootstrap failed: 5: Input/output error")] * 3)
    system = System(lambda told: next(refusals, None) if "bootstrap" in told else None)
    agent(tmp_path, system).install(PROGRAM)
    assert sum("bootstrap" in told for told in system.told) == 4


def test_where_launchd_refuses_the_error_says_what_to_do(tmp_path: Path) -> None:
    refusal = Answer(125, "Bootstrap failed: 125: Domain does not support specified action")
    system = System(lambda told: refusal if "bootstrap" in told else None)
    with pytest.raises(
        ServiceError, match=r"125: Domain does not .*Log in at the Mac's own screen.*ssh only.*--system"
    ):
        agent(tmp_path, system).install(PROGRAM)


def test_uninstalling_a_launch_agent_stops_it_and_removes_the_file(tmp_path: Path) -> None:
    system = System()
    one = agent(tmp_path, system)
    assert one.uninstall() is False
    one.install(PROGRAM)
    system.told.clear()
    assert one.uninstall() is True
    assert system.told == [f"launchctl bootout gui/501/{LABEL}"]
    assert not one.file.exists()


@pytest.mark.parametrize(
    ("answer", "running", "words"),
    [
        # The form of `launchctl print`: the service's own lines come first, those of its endpoints later.
        (
            Answer(0, "x = {\n\tstate = running\n\tpid = 4711\n\tlast exit code = 0\n\tsub = {\n\t\tstate = idle"),
            True,
            "state running, pid 4711, last exit code 0",
        ),
        (Answer(0, "gui/501/x = {\n\tstate = not running\n\tlast exit code = 3\n}"), False,
         "state not running, last exit code 3"),
        (Answer(113, "Could not find service"), False, "not loaded"),
    ],
)  # fmt: skip
def test_the_state_of_a_launch_agent_is_what_launchctl_prints(
    tmp_path: Path, answer: Answer, running: bool, words: str
) -> None:
    state = agent(tmp_path, System(lambda told: answer)).state()
    assert (state.installed, state.running, state.words) == (False, running, words)


# -- systemd ---------------------------------------------------------------------------------------------------------


def test_the_unit_runs_what_it_was_told_and_restarts_on_a_crash(tmp_path: Path) -> None:
    settings = read_unit(SystemdUnit(tmp_path, System()).text(PROGRAM))
    assert settings["Restart"] == ["on-failure"]
    assert settings["RestartPreventExitStatus"] == ["3"]
    assert settings["UMask"] == ["0077"]
    assert settings["NoNewPrivileges"] == ["true"]
    assert not {"ProtectSystem", "PrivateTmp", "CapabilityBoundingSet"} & set(settings), "a user may lack the right"
    assert settings["WantedBy"] == ["default.target"]
    (command,) = settings["ExecStart"]
    assert [word.replace("$$", "$") for word in unescaped(command)] == list(PROGRAM.command)
    assert [unescaped(line) for line in settings["Environment"]] == [
        [f"{name}={value}"] for name, value in PROGRAM.environment.items()
    ]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    def verify(text: str) -> str:
        file = tmp_path / UNIT
        file.write_text(text)
        return subprocess.run(
            ["systemd-analyze", "--user", "verify", str(file)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        ).stderr

    program = Program((sys.executable, *PROGRAM.command[1:]), PROGRAM.environment)
    text = SystemdUnit(tmp_path, System()).text(program)
    assert verify(text) == ""
    assert "Unknown key" in verify(text.replace("Restart=", "Restrat="))  # it does look


def test_installing_a_unit_enables_and_starts_it(tmp_path: Path) -> None:
    system = System()
    unit = SystemdUnit(tmp_path, system)
    unit.install(PROGRAM)
    assert unit.file == tmp_path / "systemd" / "user" / UNIT
    assert "s3cret" in unit.file.read_text()
    assert stat.S_IMODE(unit.file.stat().st_mode) == 0o600
    assert [told.removeprefix("systemctl --user ") for told in system.told] == [
        "daemon-reload",
        "daemon-reload",
        f"enable {UNIT}",
        f"restart {UNIT}",
    ]


def test_without_a_systemd_nothing_is_written_and_the_error_says_how_to_do_without(tmp_path: Path) -> None:
    unit = SystemdUnit(tmp_path, System(lambda told: Answer(1, "Failed to connect to bus: No medium found")))
    with pytest.raises(ServiceError, match=r"Failed to connect to bus.*nohup impetus-worker run"):
        unit.install(PROGRAM)
    assert not unit.file.exists()


def test_uninstalling_a_unit_stops_it_and_removes_the_file(tmp_path: Path) -> None:
    system = System()
    unit = SystemdUnit(tmp_path, system)
    assert unit.uninstall() is False
    assert system.told == []
    unit.install(PROGRAM)
    assert unit.uninstall() is True
    assert system.told[-2:] == [f"systemctl --user disable --now {UNIT}", "systemctl --user daemon-reload"]
    assert not unit.file.exists()


def test_the_state_of_a_unit_is_what_systemctl_shows(tmp_path: Path) -> None:
    shown = "ActiveState=active\nSubState=running\nMainPID=4711\nNRestarts=2\nExecMainStatus=0"
    state = SystemdUnit(tmp_path, System(lambda told: Answer(0, shown))).state()
    assert state.running
    assert state.words == "active (running), pid 4711, restarts 2, last exit status 0"


def test_a_launch_daemon_runs_in_the_users_name_and_home_and_comes_back_after_status_1(tmp_path: Path) -> None:
    system = System()
    home, folder = tmp_path / "ada", tmp_path / "LaunchDaemons"
    home.mkdir()
    daemon = LaunchDaemon(folder, account(home), system, sleep=lambda seconds: None)
    daemon.install(PROGRAM)
    plist = plistlib.loads((folder / f"{LABEL}.plist").read_bytes())
    assert (plist["Label"], plist["UserName"], plist["WorkingDirectory"]) == (LABEL, "ada", str(home))
    assert plist["KeepAlive"] == {"SuccessfulExit": False}
    assert plist["EnvironmentVariables"] == {"HOME": str(home), "USER": "ada", "LOGNAME": "ada", **PROGRAM.environment}
    assert plist["StandardErrorPath"] == str(home / "Library" / "Logs" / "impetus" / "worker.log")
    assert (home / "Library" / "Logs" / "impetus").is_dir()
    assert stat.S_IMODE(daemon.file.stat().st_mode) == 0o600
    assert system.told == [
        f"launchctl bootout system/{LABEL}",
        f"launchctl enable system/{LABEL}",
        f"launchctl bootstrap system {daemon.file}",
    ]
    assert daemon.uninstall() is True
    assert not daemon.file.exists()


def test_a_system_unit_runs_in_the_users_name_and_keeps_variables_where_nobody_else_reads_them(tmp_path: Path) -> None:
    system = System()
    home = tmp_path / "100 % ada"
    unit = SystemUnit(tmp_path, account(home), system)
    unit.install(Program(PROGRAM.command, {**PROGRAM.environment, "HF_HOME": "/data/models of %u"}))
    text = unit.file.read_text()
    settings = read_unit(text)
    assert (settings["User"], settings["WorkingDirectory"]) == (["ada"], [str(home).replace("%", "%%")])
    assert (settings["Restart"], settings["WantedBy"]) == (["on-failure"], ["multi-user.target"])
    assert settings["After"] == ["network-online.target"]
    assert "s3cret" not in text
    assert settings["ReadWritePaths"] == [f'"{tmp_path}/100 %% ada" "/tmp" "/var/tmp" "-/data/models of %%u"']
    assert settings["CapabilityBoundingSet"] == [""]
    for name in ("NoNewPrivileges", "RestrictSUIDSGID", "ProtectKernelTunables", "RestrictNamespaces"):
        assert settings[name] == ["true"]
    assert settings["ProtectSystem"] == ["strict"]
    (file,) = settings["EnvironmentFile"]
    assert stat.S_IMODE(Path(file).stat().st_mode) == 0o600
    # systemd reads such a file as a shell would.
    read = subprocess.run(["sh", "-c", f"set -a; . '{file}'; env -0"], capture_output=True, text=True, check=True)
    variables = dict(pair.partition("=")[::2] for pair in read.stdout.split("\0"))
    wanted = {"HOME", "USER", "LOGNAME", *PROGRAM.environment}
    assert {name: value for name, value in variables.items() if name in wanted} == {
        "HOME": str(home),
        "USER": "ada",
        "LOGNAME": "ada",
        **PROGRAM.environment,
    }
    assert system.told == [
        "systemctl daemon-reload",
        "systemctl daemon-reload",
        f"systemctl enable {UNIT}",
        f"systemctl restart {UNIT}",
    ]
    assert unit.uninstall() is True
    assert not list(tmp_path.glob("impetus*"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_finds_nothing_wrong_with_the_system_unit(tmp_path: Path) -> None:
    unit = SystemUnit(tmp_path, Account("root", tmp_path, 0, 0), System())
    unit.install(Program((sys.executable, *PROGRAM.command[1:]), PROGRAM.environment))
    said = subprocess.run(
        ["systemd-analyze", "verify", str(unit.file)], capture_output=True, text=True, check=False
    ).stderr
    assert not [line for line in said.splitlines() if UNIT in line], said


@pytest.mark.parametrize("platform", ["darwin", "linux"])
def test_a_service_of_the_machine_needs_sudo_and_a_user_to_run_as(platform: str, tmp_path: Path) -> None:
    def find(name: str) -> Account:
        return {"ada": account(tmp_path)}[name]

    for uid, variables in ((501, {"SUDO_USER": "ada"}), (0, {}), (0, {"SUDO_USER": "root"})):
        with pytest.raises(ServiceError, match=r"installed by root.*sudo .* --system"):
            system_service_manager(platform, uid, variables, find)
    with pytest.raises(ServiceError, match="no account 'nobody-here'"):
        system_service_manager(platform, 0, {"SUDO_USER": "nobody-here"}, find)
    manager = system_service_manager(platform, 0, {"SUDO_USER": "ada"}, find, System(), root=tmp_path)
    assert isinstance(manager, LaunchDaemon if platform == "darwin" else SystemUnit)
    assert manager.file.is_relative_to(tmp_path)
