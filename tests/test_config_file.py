"""The file that options can come from, of both programs."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from impetus_producer.cli.main import cli
from impetus_worker.cli import service
from impetus_worker.cli.main import main
from impetus_worker.cli.service import make_program

if TYPE_CHECKING:
    from pathlib import Path

    import click

    from impetus_worker.host.services.service import Program

RUN = "[impetus-worker.run]\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "impetus.toml"


def ask(program: click.Group, *arguments: str, config: Path | None = None, **environment: str) -> Result:
    named = ("--config", str(config)) if config else ()
    return CliRunner().invoke(program, [*named, *arguments], env=environment)


def shown(config: Path, program: click.Group = main, **environment: str) -> dict[str, dict[str, object]]:
    """What `config show` says, read as the TOML that it is."""
    result = ask(program, "config", "show", config=config, **environment)
    assert result.exit_code == 0, result.output
    tables: dict[str, dict[str, object]] = tomllib.loads(result.output)[program_name(program)]
    return tables


def program_name(program: click.Group) -> str:
    return "impetus" if program is cli else "impetus-worker"


def test_the_file_counts_less_than_the_environment_and_that_less_than_what_is_typed(config: Path) -> None:
    config.write_text(f'{RUN}max-batch-texts = 1\nmax-wait-ms = 1\nroles = "generation"\n')
    run = shown(config, IMPETUS_MAX_WAIT_MS="2")["run"]
    assert (run["max-batch-texts"], run["max-wait-ms"], run["roles"]) == (1, "2", "generation")
    config.write_text('[impetus.generate]\nmax-tokens = "many"\ntemperature = "hot"\n')
    for typed, refused in (((), "max-tokens"), (("--max-tokens", "5"), "temperature")):
        result = ask(cli, "generate", "hi", *typed, config=config)
        assert result.exit_code == 2
        assert refused in result.output


def test_config_show_prints_a_file_that_says_the_same(config: Path) -> None:
    config.write_text(
        'redis-url = "redis://h/1"\n'
        f'{RUN}roles = ["embedding"]\nallow-webhooks = ["a.example", "b.example"]\nburst = true\n'
    )
    first = ask(main, "config", "show", config=config)
    again = config.with_name("again.toml")
    again.write_text(first.output)
    assert shown(again) == shown(config)
    run = shown(config)["run"]
    assert (run["redis-url"], run["allow-webhooks"], run["burst"]) == (["redis://h/1"], "a.example,b.example", True)
    assert shown(config, cli)["status"]["redis-url"] == ["redis://h/1"]
    assert shown(config, cli)["serve"]["redis-url"] == ["redis://h/1"]
    assert shown(config)["doctor"]["redis-url"] == "redis://h/1"


def test_a_command_of_a_group_has_a_table_within_that_of_the_group(config: Path) -> None:
    config.write_text('redis-url = "redis://h/1"\n[impetus.batch.run]\nwindow = 7\n')
    batch: Any = shown(config, cli)["batch"]
    assert (batch["run"]["window"], batch["run"]["redis-url"]) == (7, ["redis://h/1"])
    config.write_text("[impetus.batch.run]\nwindows = 7\n")
    assert "`impetus batch run` has no option 'windows'" in ask(cli, "config", "show", config=config).output


def test_a_password_in_the_file_is_not_shown(config: Path) -> None:
    config.write_text('redis-url = "redis://:secret@h/1"\n')
    assert "secret" not in ask(cli, "config", "show", config=config).output


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f"{RUN}max-batch-text = 1", "`impetus-worker run` has no option 'max-batch-text': did you mean"),
        ("[impetus-worker.runn]", "no command `impetus-worker runn`: did you mean 'run'?"),
        ("[worker.run]", "'worker' is not known: "),
        ("max-batch-texts = 1", "'max-batch-texts' is not known"),
        (f"{RUN}burst = 1", "'burst' should be true or false"),
        (f"{RUN}max-batch-texts = true", "'max-batch-texts' should be no truth value"),
        (f"{RUN}roles = [1]", "'roles' should be a string or a number, or a list of strings"),
        (f"{RUN}roles = {{a = 1}}", "'roles' should be a string"),
        ("impetus-worker = 3", "[impetus-worker] should be a table"),
        ("[impetus-worker\n", "impetus.toml: "),
    ],
)
def test_what_is_not_understood_in_the_file_is_refused_by_name(config: Path, text: str, sentence: str) -> None:
    config.write_text(text)
    result = ask(main, "config", "show", config=config)
    assert result.exit_code == 2
    assert str(config) in result.output.replace("\n", "")
    assert sentence in result.output


def test_the_users_own_file_is_read_and_one_that_lies_about_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "impetus.toml").write_text(f"{RUN}max-batch-texts = 7\n")
    assert "max-batch-texts = 7" not in ask(main, "config", "show").output
    own = tmp_path / "config" / "impetus" / "impetus.toml"
    own.parent.mkdir(parents=True)
    own.write_text(f"{RUN}max-batch-texts = 8\n")
    assert (
        "max-batch-texts = 8  # the file"
        in ask(main, "config", "show", XDG_CONFIG_HOME=str(tmp_path / "config")).output
    )


def test_a_server_named_in_the_environment_counts_before_one_in_the_file(config: Path, tmp_path: Path) -> None:
    url = tmp_path / "url"
    url.write_text("redis://127.0.0.1:1/0\n")
    config.write_text('redis-url = "redis://127.0.0.1:2/0"\n')
    asked = ask(cli, "status", config=config, IMPETUS_REDIS_URL_FILE=str(url), IMPETUS_PATIENCE_S="0")
    assert "127.0.0.1:1" in asked.output
    config.write_text(f'redis-url-file = "{url}"\n')
    assert "127.0.0.1:1" in ask(cli, "status", config=config).output
    asked = ask(cli, "status", config=config, IMPETUS_REDIS_URL="redis://127.0.0.1:3/0")
    assert "127.0.0.1:3" in asked.output


def test_an_installed_service_reads_the_same_file_and_refuses_it_now_if_it_is_wrong(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: list[Program] = []

    def noted(*arguments: Any) -> Program:
        installed.append(make_program(*arguments))
        return installed[-1]

    monkeypatch.setattr(service, "make_program", noted)
    config.write_text(f'redis-url = "redis://h/1"\n{RUN}max-batch-texts = 9\n')
    ask(main, "service", "install", "--print", config=config)
    assert installed[0].environment["IMPETUS_CONFIG"] == str(config)
    assert "IMPETUS_REDIS_URL" not in installed[0].environment  # what the file will say then counts
    config.write_text(f"{RUN}max-batch-texts = 0\n")
    assert "max-batch-texts" in ask(main, "service", "install", "--print", config=config).output
