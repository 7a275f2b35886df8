"""Every command that the pages tell is one that there is: its own parser takes it."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click
import pytest

from impetus_worker.cli.main import main as impetus_worker
from tests.paths import ROOT

from .told import GROUPS, MODULES, TOLD, Told

if TYPE_CHECKING:
    from pathlib import Path


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


def test_commands_are_found_on_the_pages() -> None:
    assert {each.words[0] for each in TOLD} >= {"impetus", "impetus-worker", "scripts/bench", "scripts/test"}
    assert len([each for each in TOLD if each.whole]) > 60


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
