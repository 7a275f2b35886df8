"""Every command that the pages tell is one that there is: its own parser takes it, and what costs little is run."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import click
import pytest
from click.testing import CliRunner

from impetus_producer.cli.main import cli as impetus
from impetus_worker.cli.main import main as impetus_worker
from tests.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
    ROOT / "docker" / "README.md",
    ROOT / "benchmarks" / "boards" / "README.md",
]
COMMAND = re.compile(r"(?:sudo |\.venv/bin/)?(impetus(?:-worker)? \S.*|scripts/[\w.]+(?:/[\w./]+)?(?: .*)?)")
GROUPS = {"impetus": impetus, "impetus-worker": impetus_worker}
MODULES = {
    "scripts/bench": "benchmarks.__main__",
    "scripts/hardware": "scripts.models.hardware_page",
    "scripts/families": "scripts.models.families",
    "scripts/demo": "scripts.demo",
    **{
        f"scripts/{name}": f"scripts.proofs.{name}" for name in ("batch_proof", "chaos", "fuzz", "interrupted", "scale")
    },
}
"""Whose own parser is asked. The other doors take what pytest or uv takes, or nothing."""
CHEAP = (
    "impetus-worker doctor",
    "impetus-worker config show",
    "impetus-worker service install --print",
    "impetus serve-key shop --keys keys.toml",
    "impetus serve-webhook https://app.example/batches --webhooks webhooks.toml",
    "scripts/bench queue --help",
)


@dataclass(frozen=True)
class Told:
    """A command on a page; `whole` where it is to be typed as it stands, and not only named."""

    page: str
    text: str
    whole: bool

    @property
    def words(self) -> list[str]:
        # What stands two spaces off is said about it.
        words = shlex.split(re.split(r"\s{2,}", self.text)[0], comments=True)
        end = next((at for at, word in enumerate(words) if re.fullmatch(r"[|<>;&]+\d?", word)), len(words))
        return words[:end]

    def __str__(self) -> str:
        return f"{self.page} {self.text}"


def told() -> Iterator[Told]:
    for page in PAGES:
        name, text = str(page.relative_to(ROOT)), page.read_text()
        fenced = False
        for line in text.splitlines():
            fenced ^= line.startswith("```")
            typed = line if fenced else line.removeprefix("    ") if line.startswith("    ") else ""
            if found := COMMAND.fullmatch(typed):
                yield Told(name, found[1], whole=True)
        for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text):
            if found := COMMAND.fullmatch(span):
                yield Told(name, found[1], whole=False)


TOLD = list(dict.fromkeys(told()))


class Parsed(Exception):  # noqa: N818 - it went well
    """The command line was understood, and would be run now."""


@pytest.fixture
def parsers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Parsers end after parsing, in an empty folder."""
    run, parse = click.Command.invoke, argparse.ArgumentParser.parse_args

    def instead(command: click.Command, context: click.Context) -> Any:
        if isinstance(command, click.Group):
            return run(command, context)
        if more := context.params.get("options"):  # of `service install`: those of `run`
            impetus_worker.main(["run", *more], "impetus-worker", standalone_mode=False)
        raise Parsed

    def parse_args(parser: argparse.ArgumentParser, *arguments: Any) -> NoReturn:
        parse(parser, *arguments)
        raise Parsed

    monkeypatch.setattr(click.Command, "invoke", instead)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises `Parsed`, or what the parser says."""
    program, *arguments = words
    if program in GROUPS:
        GROUPS[program].main(arguments, program, standalone_mode=False)
        return
    main = importlib.import_module(MODULES[program]).main
    if isinstance(main, click.Command):
        main.main(arguments, program, standalone_mode=False)
        return
    monkeypatch.setattr(sys, "argv", words)
    main()


def understood(command: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises what is wrong with it. What is only named may lack what it takes, or have a word in its place."""
    words = [word for word in command.words if word != "…" or command.whole]
    try:
        parse(words, monkeypatch)
    except (Parsed, click.exceptions.Exit, click.exceptions.NoArgsIsHelpError):
        return
    except click.exceptions.NoSuchOption:
        raise
    except click.UsageError as error:
        # The files that a page names are its reader's.
        missing = re.search(r"does not exist|No such file", error.message)
        if error.message.startswith("No such command") or (command.whole and not missing):
            raise
    except SystemExit as ended:
        # argparse's; --help is 0.
        if ended.code != 0:
            raise click.UsageError(f"{command} is not understood") from None


@pytest.mark.parametrize("command", [each for each in TOLD if each.words[0] in (*MODULES, *GROUPS)], ids=str)
@pytest.mark.usefixtures("parsers")
def test_a_command_on_a_page_is_understood(command: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    understood(command, monkeypatch)


@pytest.mark.parametrize("command", [each for each in TOLD if each.words[0].startswith("scripts/")], ids=str)
def test_a_script_on_a_page_is_there_and_so_is_what_it_is_given(command: Told) -> None:
    program, *words = command.words
    assert (ROOT / program).is_file()
    if program == "scripts/test":
        assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))


def test_commands_are_found_on_the_pages_and_those_that_are_run_among_them() -> None:
    assert {each.words[0] for each in TOLD} >= {"impetus", "impetus-worker", "scripts/bench", "scripts/test"}
    assert len([each for each in TOLD if each.whole]) > 60
    assert {" ".join(each.words) for each in TOLD} >= set(CHEAP)


@pytest.mark.parametrize(
    ("line", "whole"),
    [
        ("impetus embed docs.jsonl --no-such-option", False),
        ("impetus no-such-command", False),
        ("impetus-worker service install --no-such-option", True),
        ("impetus-worker convert", True),
        ("scripts/bench queue --no-such-option", False),
        ("scripts/chaos --no-such-option", False),
    ],
)
@pytest.mark.usefixtures("parsers")
def test_what_there_is_not_is_found_out(line: str, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(click.UsageError):
        understood(Told("a page", line, whole), monkeypatch)


@pytest.mark.parametrize("line", CHEAP)
def test_what_costs_little_is_run(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "IMPETUS_CACHE_DIR", "IMPETUS_STATE_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    program, *arguments = line.split()
    ran = CliRunner().invoke(GROUPS.get(program) or importlib.import_module(MODULES[program]).main, arguments)
    assert ran.exit_code == 0, ran.output
    assert ran.stdout
