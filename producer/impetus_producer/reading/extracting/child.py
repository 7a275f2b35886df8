"""The process that reads documents others wrote: `python -m impetus_producer.reading.extracting.child SECONDS`.

A line of JSON in names a file; lines out are its texts, a PDF's page by page, and then `{"end": null}` or why there are
no more. It has so much memory (where the system keeps to that: Linux does) and so much time for each text: a file that
takes more ends this process, and nothing else.
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...contract import MAX_TEXT_BYTES
from ..bytes.encodings import encoding_of

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_BYTES = 1 << 30
"""Of memory, for the whole process."""
_MARKUP_BYTES = MAX_TEXT_BYTES * 4


def main(text_s: int) -> None:
    """`text_s`: for one text: a page, or what is not in pages."""
    logging.disable()
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    for line in sys.stdin:
        asked = json.loads(line)
        signal.alarm(text_s)
        try:
            for text in _TEXTS[asked["kind"]](Path(asked["path"]), asked["encoding"]):
                if len(text.encode()) > MAX_TEXT_BYTES:
                    raise ValueError(f"its text is longer than {MAX_TEXT_BYTES:,} bytes")
                _say({"text": text})
                signal.alarm(text_s)
            answer: dict[str, Any] = {"end": None}
        except MemoryError:
            answer = {"refused": f"reading it takes more than {MOST_BYTES / 1e9:.1f} GB of memory"}
        except OSError as error:
            answer = {"refused": f"the file cannot be read: {error.strerror or error}", "retryable": True}
        except Exception as error:  # noqa: BLE001 - libraries meet a broken file with any error there is
            said = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
            answer = {"refused": said if type(error) is ValueError else f"it is broken: {said}"}
        signal.alarm(0)
        _say(answer)


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _pdf(path: Path, encoding: str | None) -> Iterator[str]:
    from pypdf import PasswordType, PdfReader
    from pypdf.errors import DependencyError

    with path.open("rb") as file:
        reader = PdfReader(file)
        try:
            # Many need no password to be read, only to be changed.
            locked = reader.is_encrypted and reader.decrypt("") == PasswordType.NOT_DECRYPTED
        except (DependencyError, NotImplementedError):
            locked = True
        if locked:
            raise ValueError("it is encrypted, and opens with a password alone")
        for page in reader.pages:
            # Halves of surrogate pairs come of broken tables of characters.
            yield page.extract_text().encode(errors="replace").decode()


def _html(path: Path, encoding: str | None) -> Iterator[str]:
    yield _text_of_html(_bytes_of(path), encoding)


def _markdown(path: Path, encoding: str | None) -> Iterator[str]:
    from markdown_it import MarkdownIt

    data = _bytes_of(path)
    used = encoding_of(data, encoding, str(path))
    markup = MarkdownIt("commonmark").enable("table").render(used.decoded(data[used.mark_bytes :]))
    yield _text_of_html(markup.encode(), "utf-8")


def _bytes_of(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_MARKUP_BYTES + 1)
    if len(data) > _MARKUP_BYTES:
        raise ValueError(f"the file is longer than {_MARKUP_BYTES:,} bytes")
    return data


def _text_of_html(data: bytes, encoding: str | None) -> str:
    """What a reader sees of it. The encoding is the one named, UTF-8 where it is that, else what it says itself."""
    import html_text
    from lxml import html

    if not data.strip():
        return ""
    if encoding is None:
        with suppress(UnicodeDecodeError):
            data.decode()
            encoding = "utf-8"
    tree = html.document_fromstring(data, parser=html.HTMLParser(encoding=encoding), ensure_head_body=True)
    title = (tree.findtext(".//title") or "").strip()
    text = html_text.extract_text(tree)
    return f"{title}\n\n{text}" if title and not text.startswith(title) else text


_TEXTS = {"pdf": _pdf, "html": _html, "markdown": _markdown}

if __name__ == "__main__":
    main(int(sys.argv[1]))
