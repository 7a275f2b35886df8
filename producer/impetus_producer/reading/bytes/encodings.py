"""How a file's bytes are to be read as text: as it was said, or by its byte order mark, else as UTF-8.

Knows bytes. Knows no format.
"""

from __future__ import annotations

import codecs
from contextlib import suppress
from dataclasses import dataclass

from ...errors import InvalidRequestError

# The mark of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_OTHER_CONTENTS = (
    (b"\x1f\x8b", "gzip data: end its name in .gz, or pipe it through zcat"),
    (b"\x28\xb5\x2f\xfd", "Zstandard data: end its name in .zst, or pipe it through zstdcat"),
    (b"PK\x03\x04", "a zip archive: unpack it, and give what is in it"),
    (b"BZh", "bzip2 data: unpack it first, with bunzip2"),
    (b"\xfd7zXZ\x00", "xz data: unpack it first, with unxz"),
    (b"%PDF-", "a PDF: turn it into text first"),
    (b"PAR1", "a Parquet file: end its name in .parquet"),
    (b"ARROW1\x00\x00", "an Arrow file: end its name in .arrow"),
    (b"SQLite format 3\x00", "a database: write what is wanted of it to .jsonl or .csv first"),
)


@dataclass(frozen=True, slots=True)
class Encoding:
    name: str
    mark_bytes: int
    newline: bytes

    def decoded(self, data: bytes) -> str:
        """Raises `ValueError` with a sentence that says what else it could be."""
        try:
            return data.decode(self.name)
        except UnicodeDecodeError as error:
            raise ValueError(self.complaint(data, error)) from None

    def complaint(self, data: bytes, error: UnicodeDecodeError) -> str:
        sentence = f"this is not {self.name.upper()}, from byte {error.start + 1} on"
        if self.name != "utf-8":
            return f"{sentence}: name its encoding with --encoding"
        # The bytes from 0x80 to 0x9f are letters and quotes to Windows, and nothing anybody writes to others.
        likely = "cp1252" if any(0x80 <= byte < 0xA0 for byte in data) else "latin-1"
        around = data[max(0, error.start - 12) : error.start + 12].decode(likely, "replace").strip()
        return f"{sentence}: name its encoding with --encoding, such as {likely}, which reads {around!r} there"


def encoding_of(head: bytes, asked: str | None, name: str) -> Encoding:
    """The encoding of a file that begins with `head`. Raises `InvalidRequestError` for what is no text at all."""
    for magic, what in _OTHER_CONTENTS:
        if head.startswith(magic):
            raise InvalidRequestError(f"{name!r} holds {what}")
    mark, marked = next(((mark, marked) for mark, marked in _MARKS if head.startswith(mark)), (b"", None))
    if asked is None:
        if marked is None and (guess := _unmarked_utf16(head)):
            raise InvalidRequestError(
                f"{name!r} looks like UTF-16 without a byte order mark: state --encoding {guess} if it is"
            )
        return _encoding(marked or "utf-8", len(mark))
    codec = _text_codec(asked)
    family = codec.removesuffix("-sig")
    if marked is not None:
        if not marked.startswith(family):
            raise InvalidRequestError(f"{name!r} begins with the mark of {marked.upper()}, so it is not {asked}")
        return _encoding(marked, len(mark))
    if family == "utf-16":
        family = _unmarked_utf16(head) or "utf-16-le"
    elif family == "utf-32":
        family = "utf-32-le"
    return _encoding(family, 0)


def check_encoding(asked: str) -> None:
    """Raises `InvalidRequestError` for a name that is no encoding of text."""
    _text_codec(asked)


def _encoding(name: str, mark_bytes: int) -> Encoding:
    return Encoding(name, mark_bytes, "\n".encode(name))


def _text_codec(asked: str) -> str:
    """Python's name for the encoding."""
    try:
        name = codecs.lookup(asked).name
        # What bad bytes are read as must be known, too; codecs that are made for names of hosts refuse.
        if "a\n\n".encode(name).decode(name, "replace") != "a\n\n":
            raise ValueError
        with suppress(UnicodeDecodeError):  # whatever else they raise of bad bytes
            b"a\n".decode(name)
    except (LookupError, ValueError):
        raise InvalidRequestError(
            f"{asked!r} is no encoding of text files: give one such as utf-8, utf-16, latin-1 or cp1252"
        ) from None
    return name


def _unmarked_utf16(head: bytes) -> str | None:
    """Letters of most alphabets have a zero byte in UTF-16, always on the same side; UTF-8 has none."""
    odd, even = head[1::2].count(0), head[::2].count(0)
    if len(head) < 4 or max(odd, even) * 5 < len(head) or min(odd, even) * 4 > max(odd, even):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"
