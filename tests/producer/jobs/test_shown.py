"""What is shown to a person holds no password, and nothing that moves a cursor or looks like a line of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from impetus_producer.cli.settings.server_option import redis_url_option, without_urls
from impetus_producer.contract import EmbeddingRequest, GenerationRequest
from impetus_producer.enqueueing.parsing import parse_request
from impetus_producer.errors import InvalidRequestError
from impetus_producer.shown import name_shown, printable, printable_lines, shortened, without_password

if TYPE_CHECKING:
    from pathlib import Path

URL = "redis://me:se:c%2Fret@host:6379/3"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        (URL, "redis://***@host:6379/3"),
        ("rediss://:secret@host/0", "rediss://***@host/0"),
        ("valkeys://:secret@[::1]:6379/0", "valkeys://***@[::1]:6379/0"),
        ("redis+sentinel://:secret@a:1,b:2/name/0", "redis+sentinel://***@a:1,b:2/name/0"),
        ("unix:///run/redis.sock?password=secret&db=1", "unix:///run/redis.sock?db=1"),
        ("redis://host/0?password=secret&db=2&ssl_ca_certs=/secret", "redis://host/0?db=2"),
        ("redis://host:6379?password=a@secret", "redis://***"),
        ("redis://:sec/ret@host:6379/0", "redis://***"),
        ("redis://:sec@ret@host:6379/0", "redis://***@host:6379/0"),
        ("redis://:sec#ret@host:6379/0", "redis://***"),
        ("redis://:sec?ret@host:6379/0", "redis://***"),
        ("redis://:secret", "redis://***"),
        ("redis://[secret@host", "redis://***"),
        ("me:secret@host:6379", "***"),
        ("host:6379", "host:6379"),
    ],
)
def test_of_a_url_only_what_is_no_secret_is_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
def test_no_password_is_shown_whatever_it_holds(password: str) -> None:
    shown = without_password(f"redis://:SECRET{password}SECRET@host:6379/0")
    assert "SECRET" not in shown
    assert shown in ("redis://***@host:6379/0", "redis://***")


def test_text_of_others_is_one_line_that_moves_no_cursor() -> None:
    assert printable("plain – ümläut 敏捷") == "plain – ümläut 敏捷"
    assert printable("a\n2026-01-01 INFO forged \x1b[31m\u202e\r") == "a\\n2026-01-01 INFO forged \\x1b[31m\\u202e\\r"
    assert printable_lines("one\n2026 INFO two\x1b") == "one\n    2026 INFO two\\x1b"


def test_names_of_others_are_shown_as_far_as_they_help() -> None:
    assert name_shown("embedding") == "embedding"
    assert name_shown("a" * 100) == "a" * 100
    assert name_shown("a" * 101) == "a" * 99 + "…"
    assert len(name_shown("\x1b" * 1_000_000)) == 100
    assert shortened("abcdef", 3) == "ab…"


def test_a_name_that_a_request_chose_is_shown_as_a_name() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_request(EmbeddingRequest, {"input": "x", "a\n2026-01-01 INFO forged \x1b[31m": 1})
    assert str(refused.value) == "a\\n2026-01-01 INFO forged \\x1b[31m: there is no such field"


def test_of_many_names_one_is_shown_and_shortened() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_request(EmbeddingRequest, {"input": "x"} | {"a" * 1000 + str(number): 1 for number in range(1000)})
    assert str(refused.value) == f"{'a' * 100}: there is no such field (and 999 more)"


# -- the option ------------------------------------------------------------------------------------------------------


@click.command()
@redis_url_option("The server.")
def say(redis_url: str | None) -> None:
    click.echo(json.dumps(redis_url))


def said(*arguments: str, **environment: str) -> str | None:
    result = CliRunner().invoke(say, arguments, env=environment)
    assert result.exit_code == 0, result.output
    url: str | None = json.loads(result.output)
    return url


def test_a_url_comes_from_the_command_line_the_environment_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("redis://in-a-file:1/0 \nand more\n")
    in_file = "redis://in-a-file:1/0"
    assert said() is None
    assert said("--redis-url", "redis://typed/0") == "redis://typed/0"
    assert said("--redis-url-file", str(file)) == in_file
    assert said(IMPETUS_REDIS_URL="redis://set/0") == "redis://set/0"
    assert said(IMPETUS_REDIS_URL_FILE=str(file)) == in_file
    assert said("--redis-url-file", str(file), IMPETUS_REDIS_URL="redis://set/0") == in_file
    assert said(IMPETUS_REDIS_URL_FILE=str(file), IMPETUS_REDIS_URL="redis://set/0") == "redis://set/0"
    assert said("--redis-url", "redis://typed/0", IMPETUS_REDIS_URL_FILE=str(file)) == "redis://typed/0"


def test_two_urls_or_an_empty_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("\n")
    result = CliRunner().invoke(say, ["--redis-url-file", str(file)])
    assert result.exit_code == 2
    assert "is empty" in result.output
    file.write_text(URL)
    result = CliRunner().invoke(say, ["--redis-url-file", str(file), "--redis-url", "redis://x/0"])
    assert result.exit_code == 2
    assert "one of the two" in result.output


def test_only_the_option_with_the_url_is_taken_off_a_command_line() -> None:
    assert without_urls(["-m", "x", "run", "--redis-url", URL, "--burst"], [URL]) == ["-m", "x", "run", "--burst"]
    assert without_urls(["run", f"--redis-url={URL}", "--burst"], [URL]) == ["run", "--burst"]
    assert without_urls(["run", "--text", URL], [URL]) == ["run", "--text", URL]


_SHOW_COMMAND_LINE = """
import sys
import click
from impetus_producer.cli.settings.server_option import redis_url_option

@click.command()
@redis_url_option("The server.")
def say(redis_url):
    print(redis_url)
    print(sys.orig_argv[-3:])

say()
"""


@pytest.mark.parametrize("as_one", [True, False])
def test_a_password_does_not_stay_on_the_command_line(tmp_path: Path, as_one: bool) -> None:
    program = tmp_path / "program.py"
    program.write_text(_SHOW_COMMAND_LINE)
    option = [f"--redis-url={URL}"] if as_one else ["--redis-url", URL]
    environment = {name: value for name, value in os.environ.items() if name != "IMPETUS_REDIS_URL"}
    done = subprocess.run(
        [sys.executable, program, *option], capture_output=True, text=True, env=environment, check=True, timeout=60
    )
    url, command_line = done.stdout.splitlines()
    assert url == URL
    assert "secret" not in command_line
    assert "se:c" not in command_line
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"prediction": {"type": "content", "content": "a"}}, "prediction: is not supported: leave it out"),
        ({"functions": [{"name": "f"}]}, "functions: is the former form of tools: say 'tools' and 'tool_choice'"),
        ({"function_call": {"name": "f"}}, "function_call: is the former form of tools: say 'tools' and 'tool_choice'"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_what_to_do(said: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_request(GenerationRequest, {"messages": [{"role": "user", "content": "a"}], **said})
    assert str(refused.value) == sentence
