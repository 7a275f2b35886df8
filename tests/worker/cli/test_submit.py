"""`impetus-worker verify --submit`: the report in a file, and the page on which its owner sends it."""

from __future__ import annotations

import json
import webbrowser
from email.message import Message
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner

from impetus_backends.verified.board import MEASURED, read_board
from impetus_backends.verified.check import Check, Verdict
from impetus_backends.verified.verifier import Verifier
from impetus_worker.cli.main import main
from impetus_worker.cli.submit import issue_page

from ...backends.machine.machines import machine
from ...backends.machine.made_up_m5 import checks, made_up

if TYPE_CHECKING:
    from pathlib import Path

ISSUES = "https://impetus.example/impetus/issues"


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build whose metadata name a page for issues."""
    built = Message()
    for each in ("Repository, https://impetus.example/impetus", f"Issues, {ISSUES}"):
        built["Project-URL"] = each
    monkeypatch.setattr("importlib.metadata.metadata", lambda name: built)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the browser is asked for."""
    urls: list[str] = []
    monkeypatch.setattr(webbrowser, "open", urls.append)
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    return urls


def this_is(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    known = machine(name)
    monkeypatch.setattr("impetus_backends.machine.hardware.detect", lambda probes=None: known)


@pytest.fixture
def m5(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This machine is an M5 whose checks are made up."""
    monkeypatch.chdir(tmp_path)
    this_is(monkeypatch, "m5")
    monkeypatch.setattr(Verifier, "checks", lambda self: checks())
    monkeypatch.setattr("impetus_backends.dispatcher.measure_embedding", lambda model: "measured here")
    monkeypatch.setattr("impetus_worker.host.power.try_power", lambda: "stays awake")


@pytest.mark.usefixtures("m5", "published")
def test_the_report_of_an_m5_is_written_as_a_board_and_the_page_for_it_opens(opened: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["verify", "--submit", "--json"])
    assert result.exit_code == 1, "its prefill failed"
    (file,) = tmp_path.iterdir()
    board = read_board(file)
    assert board.origin == MEASURED
    assert board.machine.chip == "Apple M5"
    assert [line.name for line in board.lines][-2:] == ["measurement for workers", "idle sleep"]
    assert json.loads(result.stdout)["machine"]["chip"] == "Apple M5"
    assert file.name in result.stderr
    (url,) = opened
    assert url in result.stderr
    assert url.startswith(f"{ISSUES}/new?")


@pytest.mark.usefixtures("m5", "published")
def test_over_ssh_and_where_there_is_no_browser_the_address_is_printed(
    opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 1 10.0.0.2 22")
    result = CliRunner().invoke(main, ["verify", "--submit"])
    assert not opened
    assert f"send it there: {ISSUES}/new?" in result.stderr


@pytest.mark.usefixtures("m5")
def test_a_build_that_names_no_repository_writes_the_file_all_the_same(
    opened: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.metadata.metadata", lambda name: Message())
    result = CliRunner().invoke(main, ["verify", "--submit"])
    assert "names no repository" in result.stderr
    assert not opened
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.usefixtures("m5")
def test_a_folder_that_cannot_be_written_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Path, content: str) -> None:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("impetus_backends.cache.write_whole", refuse)
    result = CliRunner().invoke(main, ["verify", "--submit"])
    assert result.exit_code == 1
    assert "cannot be written: Permission denied" in result.stderr


@pytest.mark.parametrize("name", ["linux", "intel"])
def test_a_machine_of_which_there_are_no_boards_is_told_before_anything_is_measured(
    name: str, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    this_is(monkeypatch, name)
    monkeypatch.setattr(Verifier, "checks", lambda self: pytest.fail("it was measured"))
    result = CliRunner().invoke(main, ["verify", "--submit"])
    assert result.exit_code == 1
    assert "boards are of Macs with Apple silicon" in result.stderr
    assert not opened


def test_the_page_has_the_board_in_it_or_names_the_file_where_an_address_may_not_be_as_long() -> None:
    asked = {}
    for lines in (0, 60):
        more = [Check(f"latency 1x{number}", Verdict.PASS, "1 ms") for number in range(lines)]
        board = made_up([*checks(), *more])
        url = issue_page("https://example.com/a/b/issues", board, "impetus-board-apple-m5.json")
        assert len(url) < 8000
        asked[lines] = parse_qs(urlsplit(url).query)
        assert asked[lines]["title"] == ["Board: Apple M5, macOS 26.2"]
        assert "- prefill with the M5 loader: **fail**" in asked[lines]["body"][0]
    whole = asked[0]["body"][0].partition("```json")[2].partition("```")[0]
    assert json.loads(whole) == made_up().model_dump(mode="json")
    assert "attach the file impetus-board-apple-m5.json" in asked[60]["body"][0]
