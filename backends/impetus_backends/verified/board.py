"""A board: the report of `impetus-worker verify` as one JSON object, as a Mac's owner sends it and we keep it.

Nothing in it names a person, a host or a folder, and what it says of a figure follows from the figure: a board that was
edited into nonsense is no board. The JSON schema of it is docs/board.schema.json.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import platform
import re
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from impetus_backends.errors import BackendError
from impetus_backends.models import DEFAULT_EMBEDDING_MODEL
from impetus_backends.verified.check import Verdict
from impetus_backends.verified.claims import CLAIMS, TEXT_TOKENS, Unit
from impetus_backends.verified.roofs import ROOFS, Work, least_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from impetus_backends.machine.hardware import Hardware
    from impetus_backends.verified.check import Check

MEASURED = "measured by impetus-worker verify"
MADE_UP = "made up for a test"
FIRST_DAY = date(2026, 11, 27)
"""There were no boards before."""
_BOUNDS: dict[Unit, tuple[float, float]] = {"ms": (0.01, 600_000.0), "x": (0.001, 1_000.0), "%": (0.0, 100.0)}
_CLOSE = 0.01
_LEEWAY = 1.25
"""Roofs are published figures, and may be a little low."""
_DETAIL_CHARACTERS = 400
_MOST_BYTES = 1_000_000
_FOLDER = re.compile(r"(?:(?<![\w.:/%])/|(?<!\w)~/|\b[A-Za-z]:\\)[\w.@+~-][^\s'\",;()]*")
_ADDRESS = re.compile(r"[\w.+-]+@[\w.-]+")
_HOST = re.compile(r"\b[\w-]+\.(?:local|lan|home|internal)\b", re.IGNORECASE)
_LEAST_WORK = Work(2.0 * 10_616_832 * TEXT_TOKENS, 10_616_832.0)
"""Of a text through the default model: each weight of its layers multiplied by each token, and read in 8 bits."""
_MOST_SAID = 300

Word = Annotated[str, StringConstraints(pattern=r"^[\w.+ -]{0,60}$")]
Version = Annotated[str, StringConstraints(pattern=r"^[0-9][\w.+!-]{0,40}$")]
Count = Annotated[int, Field(ge=1, le=4096)]


class BoardError(BackendError):
    """What was given is no board, in one sentence that says why."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Machine(_Strict):
    """What a Mac is, without what tells it from another of its kind."""

    chip: Annotated[str, StringConstraints(pattern=r"^Apple M\d{1,3}( Pro| Max| Ultra)?$")]
    model: Annotated[str, StringConstraints(pattern=r"^[A-Za-z]{0,20}(\d{1,3},\d{1,3})?$")]
    """`Mac17,2`: the kind, as sysctl names it."""
    memory_gib: Annotated[int, Field(ge=8, le=4096)]
    cores: Count
    performance_cores: Count | None
    efficiency_cores: Count | None
    neural_engine_cores: Count | None
    gpu: Annotated[str, StringConstraints(pattern=r"^(applegpu_g\d{1,3}[a-z]?)?$")]
    macos: Annotated[str, StringConstraints(pattern=r"^\d{2}(\.\d{1,2}){0,2}$")]
    build: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z]{0,12}$")]

    @property
    def kind(self) -> tuple[int, str]:
        """As `ROOFS` has it."""
        number, _, tier = self.chip.removeprefix("Apple M").partition(" ")
        return int(number), tier or "base"

    @model_validator(mode="after")
    def _adds_up(self) -> Machine:
        parts = (self.performance_cores or 0) + (self.efficiency_cores or 0)
        if parts > self.cores:
            raise ValueError(f"{parts} cores of two kinds are more than {self.cores}")
        return self


class Measured(_Strict):
    """The figure of a line, its claim's unit and target with it."""

    claim: str
    value: Annotated[float, Field(ge=0)]
    unit: Unit
    target: float
    at_least: bool
    gflop: Annotated[float, Field(gt=0)] | None = None
    megabytes: Annotated[float, Field(gt=0)] | None = None
    share_of_roof: Annotated[float, Field(gt=0, le=_LEEWAY)] | None = None

    @model_validator(mode="after")
    def _as_claimed(self) -> Measured:
        claim = CLAIMS.get(self.claim)
        if claim is None:
            raise ValueError(f"there is no claim {self.claim!r}; there are {', '.join(CLAIMS)}")
        if (self.unit, self.target, self.at_least) != (claim.unit, claim.target, claim.at_least):
            raise ValueError(f"{self.claim} is asked to be {claim.asked}")
        least, most = _BOUNDS[claim.unit]
        if not least <= self.value <= most:
            raise ValueError(f"{self.value:g} {self.unit} is no figure of {claim.name!r}")
        return self


class Line(_Strict):
    name: Annotated[str, StringConstraints(pattern=r"^[\w ,.:/()%-]{1,60}$")]
    verdict: Verdict
    detail: Annotated[str, StringConstraints(max_length=_DETAIL_CHARACTERS)]
    figure: Measured | None = None

    @model_validator(mode="after")
    def _follows(self) -> Line:
        if any(pattern.search(self.detail) for pattern in (_FOLDER, _ADDRESS, _HOST)):
            raise ValueError(f"the line {self.name!r} names a folder or an address, and a board names none")
        if not self.detail.isprintable():
            raise ValueError(f"the line {self.name!r} has characters that do not show")
        if self.figure is None:
            return self
        claim = CLAIMS[self.figure.claim]
        if self.name != claim.name:
            raise ValueError(f"the line {self.name!r} has the figure of {claim.name!r}")
        follows = Verdict.PASS if claim.met(self.figure.value) else Verdict.FAIL
        if self.verdict is not follows:
            said = f"{self.figure.value:g} {claim.unit}, asked for {claim.asked}"
            raise ValueError(f"{self.name!r} is said to be {self.verdict}, and {said} is a {follows}")
        return self


class Board(_Strict):
    board: Literal[1] = 1
    """The version of this form."""
    origin: Literal["measured by impetus-worker verify", "made up for a test"]
    measured_on: date
    machine: Machine
    embedding_model: Literal["sentence-transformers/all-MiniLM-L6-v2", "another model"]
    """Others have names that their owners gave them, on hubs too."""
    versions: dict[Word, Version]
    lines: Annotated[list[Line], Field(min_length=1, max_length=200)]
    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of all the rest as JSON, keys in order, without spaces."""

    def line(self, claim: str) -> Line:
        """The one line of a claim."""
        return next(line for line in self.lines if line.name == CLAIMS[claim].name)

    @model_validator(mode="after")
    def _holds_together(self) -> Board:
        if not FIRST_DAY <= self.measured_on <= datetime.now(UTC).date():
            raise ValueError(f"{self.measured_on} is no day on which a board was made")
        names = [line.name for line in self.lines]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"said twice: {', '.join(twice)}")
        if missing := [claim.name for claim in CLAIMS.values() if claim.name not in names]:
            raise ValueError(f"these lines are missing: {', '.join(missing)}")
        for key, claim in CLAIMS.items():
            line = self.line(key)
            if (line.verdict is Verdict.NOT_APPLICABLE) != (line.figure is None) and line.verdict is not Verdict.FAIL:
                raise ValueError(f"{claim.name!r} is said to be {line.verdict} with no figure, or with one")
            if line.figure is not None:
                self._under_the_roof(line.figure)
        if self.digest != digest_of(self.model_dump(mode="json")):
            raise ValueError("the digest is of another content: it was edited after `impetus-worker verify` wrote it")
        return self

    def _under_the_roof(self, figure: Measured) -> None:
        """Nothing is faster than the chip, and the share that is stated is the one that follows."""
        claim, roofs = CLAIMS[figure.claim], ROOFS.get(self.machine.kind)
        if claim.engine is not None and claim.unit == "ms" and self.embedding_model == DEFAULT_EMBEDDING_MODEL:
            if figure.gflop is None or figure.megabytes is None:
                raise ValueError(f"{claim.name!r} does not say what work that was")
            if 1e9 * figure.gflop < 0.99 * _LEAST_WORK.flop or 1e6 * figure.megabytes < 0.99 * _LEAST_WORK.bytes:
                raise ValueError(f"{claim.name!r} is less work than {self.embedding_model} makes of a text")
        if claim.engine is None or roofs is None or figure.gflop is None or figure.megabytes is None:
            if figure.share_of_roof is not None:
                raise ValueError(f"{claim.name!r} states a share of a roof that is not known")
            return
        least_s = least_seconds(Work(1e9 * figure.gflop, 1e6 * figure.megabytes), claim.engine, roofs)
        if claim.unit != "ms" or least_s is None:
            return
        share = 1e3 * least_s / figure.value
        if share > _LEEWAY:
            raise ValueError(f"{claim.name!r} is said to be {share:.1f} times as fast as a {self.machine.chip} can be")
        if figure.share_of_roof is None or abs(figure.share_of_roof - share) > _CLOSE * share:
            raise ValueError(f"{claim.name!r} states a share of the chip's roof that is not {share:.4f}")


def digest_of(content: Mapping[str, Any]) -> str:
    """Of a board's content as JSON data, whatever digest it states itself."""
    rest = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def require_mac(hardware: Hardware) -> None:
    """Raises `BoardError` for a machine of which there are no boards."""
    if not hardware.apple_silicon or hardware.virtual:
        what = "a virtual one" if hardware.virtual else "none"
        raise BoardError(f"boards are of Macs with Apple silicon, and this machine is {what}: there is nothing to send")


def make_board(
    hardware: Hardware,
    model: str,
    versions: Mapping[str, str],
    checks: Iterable[Check],
    *,
    on: date,
    origin: str = MEASURED,
) -> Board:
    """Raises `BoardError` for a machine that is no Apple-silicon Mac, and for a report that contradicts itself."""
    require_mac(hardware)
    content: dict[str, Any] = {
        "board": 1,
        "origin": origin,
        "measured_on": on.isoformat(),
        "machine": _machine(hardware),
        "embedding_model": model if model == DEFAULT_EMBEDDING_MODEL else "another model",
        "versions": dict(versions),
        "lines": [_line(check) for check in checks],
    }
    return _checked(json.dumps({**content, "digest": digest_of(content)}), "the report")


def read_board(file: Path) -> Board:
    """Raises `BoardError`, which names the file, for what cannot be read or is no board."""
    try:
        with file.open("rb") as opened:
            content = opened.read(_MOST_BYTES + 1)
    except OSError as error:
        raise BoardError(f"{file.name} cannot be read: {error.strerror}") from None
    if len(content) > _MOST_BYTES:
        raise BoardError(f"{file.name} is no board: it is longer than {_MOST_BYTES:,} bytes")
    return _checked(content, file.name)


def _checked(content: bytes | str, what: str) -> Board:
    try:
        return Board.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        said = _printable(f"{where}: {first['msg'].removeprefix('Value error, ')}")
        raise BoardError(f"{what} is no board: {said[:_MOST_SAID]}") from None


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def to_json(board: Board) -> str:
    return json.dumps(board.model_dump(mode="json"), indent=2) + "\n"


def without_names(text: str) -> str:
    """`text` in letters that show, without folders, addresses, and the names of this user and of hosts."""
    text = _ADDRESS.sub("(address)", _printable(text))
    for name in sorted(_names(), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "(name)", text, flags=re.IGNORECASE)
    return _FOLDER.sub("(folder)", _HOST.sub("(name)", text))


def _names() -> set[str]:
    """What this user and this host are called."""
    found = {platform.node(), platform.node().partition(".")[0]}
    with suppress(RuntimeError):
        found.add(str(Path.home()))
    with suppress(OSError, KeyError, ImportError):
        import pwd

        user = getpass.getuser()
        found |= {user, pwd.getpwnam(user).pw_gecos.partition(",")[0]}
    return {name for name in found if len(name) > 1}


def _machine(hardware: Hardware) -> dict[str, Any]:
    return {
        "chip": hardware.chip,
        "model": hardware.model,
        "memory_gib": round(hardware.memory_bytes / 2**30),
        "cores": hardware.cores,
        "performance_cores": hardware.performance_cores,
        "efficiency_cores": hardware.efficiency_cores,
        "neural_engine_cores": hardware.neural_engine_cores,
        "gpu": hardware.gpu_architecture,
        "macos": hardware.macos,
        "build": hardware.build,
    }


def _line(check: Check) -> dict[str, Any]:
    figure = None
    if check.figure is not None:
        claim = CLAIMS[check.figure.claim]
        figure = {
            "claim": check.figure.claim,
            "value": check.figure.value,
            "unit": claim.unit,
            "target": claim.target,
            "at_least": claim.at_least,
            "gflop": check.figure.gflop,
            "megabytes": check.figure.megabytes,
            "share_of_roof": check.figure.share_of_roof,
        }
    detail = without_names(check.detail)[:_DETAIL_CHARACTERS]
    return {"name": check.name, "verdict": str(check.verdict), "detail": detail, "figure": figure}
