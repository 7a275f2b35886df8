"""Boards: what a Mac's owner sends is taken as it was written, and nothing else gets on docs/hardware.md."""

from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from scripts.models.hardware_page import BOARDS, PAGE, SCHEMA, in_order, main, page, read_measured, schema

from impetus_backends.verified import board as boards
from impetus_backends.verified.board import (
    FIRST_DAY,
    MEASURED,
    BoardError,
    digest_of,
    make_board,
    read_board,
    to_json,
    without_names,
)
from impetus_backends.verified.check import Check, Verdict
from impetus_backends.verified.claims import CLAIMS, found
from impetus_backends.verified.roofs import ROOFS, Work, roofs_of, share_of_roof

from .machines import NAMES, machine
from .made_up_m5 import FILE, MODEL, VERSIONS, checks, made_up

if TYPE_CHECKING:
    from collections.abc import Callable

    Edit = Callable[[dict[str, Any]], object]


def recorded() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(FILE.read_text())
    return content


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """As whoever edits a board with care would leave it: with a digest of the new content."""
    return {**content, "digest": digest_of(content)}


def line(content: dict[str, Any], claim: str) -> dict[str, Any]:
    return next(each for each in content["lines"] if each["name"] == CLAIMS[claim].name)


def test_the_recorded_run_of_an_m5_is_what_its_lines_make_and_says_that_it_is_made_up() -> None:
    assert to_json(made_up()) == FILE.read_text()
    assert read_board(FILE).origin == "made up for a test"


def test_a_line_says_what_was_found_and_how_near_to_the_roof_that_is() -> None:
    text = read_board(FILE).line("text-neural-engine")
    assert text.verdict is Verdict.PASS
    assert text.figure is not None
    # 64 tokens of MiniLM: 10.6 million weights, which an M5 reads in 139 us, and multiplies with in 72.
    assert text.figure.value == 1.2
    assert text.figure.share_of_roof == pytest.approx(2 * 10.616832e6 / 153e9 / 1.2e-3, rel=1e-3)
    assert f"{text.figure.share_of_roof:.1%} of the chip's roof" in text.detail


NONSENSE: dict[str, tuple[Edit, str]] = {
    "a figure was made better": (
        lambda board: line(board, "prefill-m5")["figure"].update(value=4.5),
        "'prefill with the M5 loader' is said to be fail",
    ),
    "a verdict was made better": (lambda board: line(board, "prefill-m5").update(verdict="pass"), "is a fail"),
    "faster than the chip": (
        lambda board: line(board, "text-neural-engine")["figure"].update(value=0.02, share_of_roof=1.0),
        "times as fast as a Apple M5 can be",
    ),
    "a share that does not follow": (
        lambda board: line(board, "text-gpu")["figure"].update(share_of_roof=0.9),
        "a share of the chip's roof that is not",
    ),
    "faster than the chip, and its work left out": (
        lambda board: line(board, "text-gpu")["figure"].update(
            value=0.02, gflop=None, megabytes=None, share_of_roof=None
        ),
        "does not say what work that was",
    ),
    "faster than the chip, and hardly any work": (
        lambda board: line(board, "text-gpu")["figure"].update(value=0.02, gflop=0.001, megabytes=0.001),
        "is less work than",
    ),
    "a host": (lambda board: board["lines"][0].update(detail="on anns-mac.local"), "names a folder"),
    "letters that turn the text around": (
        lambda board: board["lines"][0].update(detail="a \u202e b"),
        "characters that do not show",
    ),
    "an easier target": (
        lambda board: line(board, "text-gpu")["figure"].update(target=50.0),
        "text-gpu is asked to be 20 ms at most",
    ),
    "a claim that nobody made": (lambda board: line(board, "memory")["figure"].update(claim="beauty"), "no claim"),
    "the figure of another line": (
        lambda board: line(board, "memory")["figure"].update(claim="loss-int8", target=2.0),
        "has the figure of 'loss of int8 weights'",
    ),
    "a model of somebody's": (lambda board: board.update(embedding_model="ann/mine"), "embedding_model"),
    "no time at all": (lambda board: line(board, "text-gpu")["figure"].update(value=0.0), "is no figure of"),
    "a number in quotes": (lambda board: line(board, "memory")["figure"].update(value="8.4"), "valid number"),
    "endless": (lambda board: line(board, "memory")["figure"].update(value=float("inf")), "finite number"),
    "not a number": (lambda board: line(board, "memory")["figure"].update(value="lots"), "valid number"),
    "passed without a figure": (lambda board: line(board, "memory").update(figure=None), "with no figure"),
    "a claim left out": (lambda board: board["lines"].remove(line(board, "fallback")), "are missing: the GPU before"),
    "a claim told twice": (lambda board: board["lines"].append(line(board, "memory")), "said twice"),
    "a chip of another maker": (lambda board: board["machine"].update(chip="Apple Pie"), "machine.chip"),
    "more cores than there are": (lambda board: board["machine"].update(cores=4), "more than 4"),
    "no memory": (lambda board: board["machine"].update(memory_gib=0), "memory_gib"),
    "tomorrow": (
        lambda board: board.update(measured_on=str(date.today() + timedelta(days=2))),
        "no day on which a board was made",
    ),
    "long ago": (lambda board: board.update(measured_on="2020-01-01"), "no day on which a board was made"),
    "a field of one's own": (lambda board: board.update(owner="me"), "owner"),
    "another version": (lambda board: board.update(board=2), "board: Input should be 1"),
    "a folder": (lambda board: board["lines"][0].update(detail="in /Users/ann/models"), "names a folder"),
    "an address": (
        lambda board: board["lines"][0].update(detail="ask ann@example.com"),
        "names a folder or an address",
    ),
    "no lines": (lambda board: board.update(lines=[]), "lines"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_a_board_that_was_edited_into_nonsense_is_refused_whatever_its_digest(name: str, tmp_path: Path) -> None:
    edit, said = NONSENSE[name]
    content = recorded()
    edit(content)
    file = tmp_path / "board.json"
    file.write_text(json.dumps(sealed(content)))
    with pytest.raises(BoardError, match=r"board\.json is no board") as refused:
        read_board(file)
    assert said in str(refused.value)


def test_a_board_that_was_edited_into_sense_is_refused_for_its_digest(tmp_path: Path) -> None:
    content = recorded()
    content["machine"]["macos"] = "26.3"
    file = tmp_path / "board.json"
    file.write_text(json.dumps(content))
    with pytest.raises(BoardError, match="the digest is of another content"):
        read_board(file)


TEXTS = {
    "nothing": "",
    "half": "{",
    "a list": "[]",
    "null": "null",
    "too little": '{"board": 1}',
    "no text": "\udcff",
    "a well": "[" * 200_000,
    "too long": " " * 2_000_000,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_what_is_no_board_at_all_is_refused_in_one_sentence(text: str, tmp_path: Path) -> None:
    file = tmp_path / "board.json"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BoardError, match=r"board\.json"):
        read_board(file)


def test_what_is_said_of_a_hostile_file_is_one_line_that_a_terminal_does_not_obey(tmp_path: Path) -> None:
    file = tmp_path / "board.json"
    file.write_text(json.dumps(sealed(recorded() | {"\x1b]0;title\x07\n": 1})))
    with pytest.raises(BoardError) as refused:
        read_board(file)
    assert str(refused.value).isprintable()
    file.write_text(json.dumps(sealed(recorded() | {"x" * 500_000: 1})))
    with pytest.raises(BoardError) as refused:
        read_board(file)
    assert len(str(refused.value)) < 1000


def test_a_report_with_hosts_and_odd_letters_makes_a_board_without_them() -> None:
    told = "see mini.local\x1b[1m \u202e\nend"
    left = boards.without_names(told)
    assert left == "see (name) [1m   end"


def test_a_board_names_no_folder_person_host_or_model_of_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards, "_names", lambda: {"/Users/ann smith", "ann", "anns-mac"})
    told = "could not read /Users/ann smith/Library/x.json on anns-mac.local: ask ANN, or ann@example.com; ~/.cache/a"
    made = make_board(
        machine("m5"),
        "ann/secret-model",
        VERSIONS,
        [Check("machine", Verdict.FAIL, told), *list(checks())[1:]],
        on=FIRST_DAY,
    )
    text = to_json(made)
    for secret in ("smith", "ann", "Library", "secret", ".cache", "example.com"):
        assert secret not in text.casefold(), secret
    assert made.embedding_model == "another model"
    assert made.lines[0].verdict is Verdict.FAIL


def test_what_is_no_name_stays_as_it_was() -> None:
    said = "1x64/8, 12 tokens/s, https://example.com/a/b, 5 ms (target: 10 ms), GPU/CPU, float16"
    assert without_names(said) == said


def test_this_user_and_host_are_among_the_names() -> None:
    assert str(Path.home()) in boards._names() or len(str(Path.home())) < 2
    assert without_names(f"in {Path.home()}/x") in ("in (name)/x", "in (folder)", "in (name)(folder)")


@pytest.mark.parametrize(
    ("name", "what"), [("linux", "none"), ("intel", "none"), ("rosetta", "none"), ("vm", "a virtual one")]
)
def test_there_are_no_boards_of_other_machines(name: str, what: str) -> None:
    with pytest.raises(BoardError, match=f"this machine is {what}"):
        make_board(machine(name), MODEL, VERSIONS, checks(), on=FIRST_DAY)


@pytest.mark.parametrize("name", [name for name in NAMES if name[0] == "m"])
def test_a_board_can_be_made_of_every_mac_with_apple_silicon(name: str) -> None:
    told = [each for each in checks() if not (each.figure and CLAIMS[each.figure.claim].engine)]
    missing = [
        Check(claim.name, Verdict.NOT_APPLICABLE, "")
        for claim in CLAIMS.values()
        if claim.name not in {each.name for each in told}
    ]
    made = make_board(machine(name), MODEL, VERSIONS, [*told, *missing], on=FIRST_DAY)
    assert made.machine.chip == machine(name).chip


def measured(tmp_path: Path) -> Path:
    """The recorded run as if it had been measured."""
    content = {**recorded(), "origin": MEASURED}
    file = tmp_path / "impetus-board.json"
    file.write_text(json.dumps(sealed(content)))
    return file


def test_a_board_that_comes_in_is_on_the_page_with_its_figures_and_shares(tmp_path: Path) -> None:
    kept = tmp_path / "boards"
    kept.mkdir()
    written = tmp_path / "hardware.md"
    told = CliRunner().invoke(main, [str(measured(tmp_path)), "--boards", str(kept), "--page", str(written)])
    assert told.exit_code == 0, told.output
    (file,) = kept.iterdir()
    assert file.name.startswith("apple-m5-2026-11-27-")
    text = written.read_text()
    assert "None yet" not in text
    assert "| a text on the Neural Engine | 5 ms at most | pass: 1.2 ms, 12% of the roof |" in text
    assert "| prefill with the M5 loader | 4x at least | fail: 3.75x, 71% of the roof |" in text
    assert "| decoding on the Neural Engine | 1x at most | not applicable |" in text
    assert "### Apple M5, 2026-11-27" in text
    assert (tmp_path / SCHEMA).read_text() == schema()


def test_a_run_that_was_made_up_is_never_on_the_page_and_keeps_others_from_being_written(tmp_path: Path) -> None:
    written = tmp_path / "hardware.md"
    arguments = [str(measured(tmp_path)), str(FILE), "--boards", str(tmp_path), "--page", str(written)]
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 1
    assert "m5.json is no board of a Mac: made up for a test" in refused.output
    assert not written.exists()
    assert len(list(tmp_path.iterdir())) == 1


def test_what_others_wrote_makes_no_cell_link_or_tag_of_the_page() -> None:
    content = recorded()
    content["lines"][0]["detail"] = "a | b <script>x< script> [y](javascript:z) `c` https://e.example www.e.example"
    text = page([boards.Board.model_validate_json(json.dumps(sealed(content)))])
    assert "<script" not in text
    assert "[y]" not in text
    assert "| machine | pass | a   b  script x  script   y (javascript:z)  c  https: //e.example www .e.example" in text


def test_the_page_and_the_schema_are_what_the_boards_make() -> None:
    kept = in_order(map(read_measured, BOARDS.glob("*.json")))
    assert PAGE.read_text() == page(kept)
    assert (PAGE.parent / SCHEMA).read_text() == schema()


def test_every_machine_that_is_known_has_a_roof_or_none_is_stated() -> None:
    known = {name for name in NAMES if name[0] == "m" and roofs_of(machine(name))}
    assert known == {"m1", "m1-ultra", "m2-pro", "m3-max", "m4", "m4-max", "m5", "m5-pro", "m5-max"}
    assert all(roofs.source.startswith("https://") for roofs in ROOFS.values())
    unknown = machine("m6")
    check = found("text-gpu", 3.0, "3 ms", work=Work(1e9, 1e6), seconds=0.003, roofs=roofs_of(unknown))
    assert check.detail == "3 ms; the chip's roof is not known"
    assert check.figure is not None
    assert check.figure.share_of_roof is None


def test_a_roof_is_the_slower_of_computing_and_reading() -> None:
    m5 = ROOFS[5, "base"]
    assert share_of_roof(Work(17.5e9, 1.0), 0.002, "gpu", m5) == pytest.approx(0.5)
    assert share_of_roof(Work(1.0, 153e6), 0.002, "gpu", m5) == pytest.approx(0.5)
    assert share_of_roof(Work(0.0, 0.0), 0.002, "gpu", m5) is None
    assert share_of_roof(Work(1e9, 1.0), 0.002, "gpu", ROOFS[2, "Max"]) is None
    static = found("text-gpu", 3.0, "3 ms", work=Work(0.0, 0.0), seconds=0.003, roofs=m5).figure
    assert static is not None
    assert (static.gflop, static.share_of_roof) == (None, None)
