"""The files that launchd and systemd are given, and what is said to them; both are played by a fake runner."""

from __future__ import annotations

import os
import plistlib
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from impetus_worker.cli.main import main
from impetus_worker.cli.service import make_program
from impetus_worker.errors import ServiceError
from impetus_worker.host.launchd import LABEL, LaunchAgent, LaunchDaemon
from impetus_worker.host.service import Account, Answer, Program, run_command
from impetus_worker.host.service_manager import service_manager, system_service_manager
from impetus_worker.host.systemd import UNIT, SystemdUnit, SystemUnit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PYTHON = Path("/opt/impetus/bin/python")
ODD = 'a "quoted" \\ 50 % of $HOME, it\'s <&>'
PROGRAM = Program(
    (str(PYTHON), "-m", "impetus_worker", "run", "--embedding-model", ODD),
    {"IMPETUS_REDIS_URL": "redis://:s3cret@queue.example/0", "IMPETUS_ODD": ODD},
)


class System:
    """Plays launchctl and systemctl: notes what it is told, and answers as told."""

    def __init__(self, answers: Callable[[str], Answer | None] = lambda told: None) -> None:
        self.told: list[str] = []
        self._answers = answers

    def __call__(self, command: Sequence[str]) -> Answer:
        self.told.append(shlex.join(command))
        return self._answers(self.told[-1]) or Answer(0, "")


def agent(home: Path, system: System) -> LaunchAgent:
    return LaunchAgent(home, 501, system, sleep=lambda seconds: None)


def read_unit(text: str) -> dict[str, list[str]]:
    """A unit's settings; systemd allows names twice, which configparser does not."""
    settings: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line:
            name, _, value = line.partition("=")
            settings.setdefault(name, []).append(value)
    return settings


def unescaped(text: str) -> list[str]:
    """The words of a line as systemd reads them."""
    return [word.replace("%%", "%") for word in shlex.split(text, posix=True)]


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


# -- the machine's own services --------------------------------------------------------------------------------------


def account(home: Path) -> Account:
    return Account("ada", home, os.getuid(), os.getgid())


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
    unit.install(PROGRAM)
    text = unit.file.read_text()
    settings = read_unit(text)
    assert (settings["User"], settings["WorkingDirectory"]) == (["ada"], [str(home).replace("%", "%%")])
    assert (settings["Restart"], settings["WantedBy"]) == (["on-failure"], ["multi-user.target"])
    assert settings["After"] == ["network-online.target"]
    assert "s3cret" not in text
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


# -- what the service runs -------------------------------------------------------------------------------------------


def test_the_server_is_told_in_the_environment_because_everybody_sees_a_command_line() -> None:
    for options in (["--redis-url", "redis://:pw@h/0", "--burst"], ["--redis-url=redis://:pw@h/0", "--burst"]):
        program = make_program(PYTHON, options, {"redis_url": "redis://:pw@h/0"}, {})
        assert program.command == (str(PYTHON), "-P", "-m", "impetus_worker", "run", "--burst")
        assert program.environment == {"IMPETUS_REDIS_URL": "redis://:pw@h/0"}


def test_what_run_reads_of_the_environment_is_kept_and_nothing_else() -> None:
    here = {"IMPETUS_ROLES": "embedding", "HF_TOKEN": "t", "XDG_STATE_HOME": "/s", "https_proxy": "p", "PATH": "/bin",
            "AWS_SECRET": "x"}  # fmt: skip
    kept = make_program(PYTHON, [], {}, here).environment
    assert kept == {"IMPETUS_ROLES": "embedding", "HF_TOKEN": "t", "XDG_STATE_HOME": "/s", "https_proxy": "p"}


def test_a_models_folder_becomes_absolute_and_a_name_on_the_hub_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    parsed = {"embedding_model": "./mine", "generation_model": "org/model"}
    for options in (["--embedding-model", "./mine"], ["--embedding-model=./mine"]):
        command = make_program(PYTHON, [*options, "--generation-model", "org/model"], parsed, {}).command
        assert f"{tmp_path}/mine" in " ".join(command)
        assert "org/model" in command
    program = make_program(PYTHON, [], parsed, {"IMPETUS_EMBEDDING_MODEL": "./mine"})
    assert program.environment == {"IMPETUS_EMBEDDING_MODEL": f"{tmp_path}/mine"}


def test_a_text_that_would_break_out_of_its_line_is_refused() -> None:
    with pytest.raises(ServiceError, match="control character"):
        Program(("python", "--model", "x\nExecStartPre=/bin/rm"))
    with pytest.raises(ServiceError, match="control character"):
        Program(("python",), {"A": "x\ny"})


# -- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return tmp_path


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> System:
    system = System(lambda told: Answer(0, "ActiveState=active\nMainPID=12") if " show " in told else None)
    monkeypatch.setattr(
        "impetus_worker.cli.service.service_manager",
        lambda platform, home, uid, environment: service_manager("linux", home, uid, environment, system),
    )
    return system


def say(*arguments: str) -> tuple[int, str]:
    said = CliRunner().invoke(main, ["service", *arguments])
    return said.exit_code, said.output


def test_a_service_is_installed_shown_and_removed(home: Path, system: System) -> None:
    assert say("status") == (1, "no service is installed; `impetus-worker service install` installs one\n")
    status, output = say("install", "--roles", "embedding", "--redis-url", "redis://:pw@queue.example/0")
    assert status == 0
    file = home / ".config" / "systemd" / "user" / UNIT
    assert f"installed and started: {file}" in output
    assert "pw@" not in output
    (command,) = read_unit(file.read_text())["ExecStart"]
    assert unescaped(command)[1:] == ["-P", "-m", "impetus_worker", "run", "--roles", "embedding"]
    assert unescaped(command)[0] == str(Path(sys.executable).absolute())
    assert 'Environment="IMPETUS_REDIS_URL=redis://:pw@queue.example/0"' in file.read_text()
    status, output = say("status")
    assert status == 0
    assert output.startswith("running: active")
    assert say("uninstall") == (0, f"stopped and removed: {file}\n")
    assert say("uninstall") == (0, "no service is installed\n")


def test_print_shows_the_file_without_its_secrets_and_changes_nothing(
    home: Path, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_private")
    status, output = say("install", "--print", "--redis-url", "redis://:pw@queue.example/0")
    assert status == 0
    assert "ExecStart=" in output
    assert "redis://***@queue.example/0" in output
    assert "hf_private" not in output
    assert ":pw@" not in output
    assert system.told == []
    assert not (home / ".config").exists()


def test_the_machines_service_is_refused_in_one_sentence_without_sudo(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 501)
    for command in ("install", "uninstall", "status"):
        status, output = say(command, "--system")
        assert status == 1
        assert output.startswith("Error: a service of the machine is installed by root")
        assert output.count("\n") == 1


def test_what_run_would_refuse_is_refused_when_installing(home: Path, system: System) -> None:
    for options in (["--roles", "cooking"], ["--no-such-option"], ["--max-wait-ms", "soon"]):
        status, _ = say("install", *options)
        assert status == 2
    assert system.told == []


def test_where_no_service_can_be_kept_the_command_says_what_to_do() -> None:
    with pytest.raises(ServiceError, match="no services are known for win32"):
        service_manager("win32", Path("/"), 1, {})
    with pytest.raises(ServiceError, match="without sudo"):
        service_manager("darwin", Path("/"), 0, {})
    assert isinstance(service_manager("darwin", Path("/"), 501, {}), LaunchAgent)


def test_a_command_that_does_not_exist_has_failed() -> None:
    assert run_command(["no-such-command"]) == Answer(127, "no-such-command: No such file or directory")
    assert run_command([sys.executable, "-c", "print('said'); raise SystemExit(4)"]) == Answer(4, "said")


@pytest.mark.macos
@pytest.mark.skipif(sys.platform != "darwin", reason="needs a Mac")
def test_a_macs_own_checker_finds_nothing_wrong_with_the_agent(tmp_path: Path) -> None:
    file = tmp_path / "agent.plist"
    file.write_text(agent(tmp_path, System()).text(PROGRAM))
    assert run_command(["plutil", "-lint", str(file)]).status == 0
