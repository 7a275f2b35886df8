"""`impetus-worker service`: what it runs, and what it says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from impetus_worker.cli.main import main
from impetus_worker.cli.service import make_program
from impetus_worker.errors import ServiceError
from impetus_worker.host.services.launchd import LaunchAgent
from impetus_worker.host.services.manager import service_manager
from impetus_worker.host.services.service import Answer, Program, run_command
from impetus_worker.host.services.systemd import UNIT

from ..host.services import PROGRAM, PYTHON, System, agent, read_unit, unescaped

# -- what the service runs -------------------------------------------------------------------------------------------


def test_the_server_is_told_in_the_environment_because_everybody_sees_a_command_line() -> None:
    for options in (["--redis-url", "redis://:pw@h/0", "--burst"], ["--redis-url=redis://:pw@h/0", "--burst"]):
        program = make_program(PYTHON, options, {"redis_urls": ("redis://:pw@h/0",)}, {})
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
    monkeypatch.setenv("IMPETUS_UPSTREAM_KEY", "sk_private")
    status, output = say("install", "--print", "--redis-url", "redis://:pw@queue.example/0")
    assert status == 0
    assert "ExecStart=" in output
    assert "redis://***@queue.example/0" in output
    assert "_private" not in output
    assert "IMPETUS_UPSTREAM_KEY=***" in output
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
