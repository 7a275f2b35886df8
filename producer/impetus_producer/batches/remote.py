"""Files and batches that a gateway keeps, asked for over HTTP: that of `impetus serve`, or OpenAI's own."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen
from uuid import uuid4

from ..errors import ImpetusError, InvalidRequestError
from ..shown import printable, shortened, without_password

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import IO

_TIMEOUT_S = 60.0
_CHUNK_BYTES = 1_000_000
_MOST_ANSWER_BYTES = 10_000_000
_MOST_ERROR_CHARACTERS = 2_000


class RemoteBatches:
    """`url` is that of `/v1`'s parent, such as http://127.0.0.1:8000. Raises `ImpetusError` for what it answers."""

    def __init__(self, url: str, key: str | None = None) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise InvalidRequestError(f"{without_password(url)!r} is no URL such as http://127.0.0.1:8000")
        self._url = url.rstrip("/").removesuffix("/v1")
        self._key = key

    def submit(
        self, source: Path, endpoint: str, completion_window: str, metadata: Mapping[str, str]
    ) -> dict[str, Any]:
        """Uploads an input and has it run; the batch."""
        # Who is not let in is told while we still write, and does not hear it.
        self.batches(1)
        file = self._upload(source)
        body = {"input_file_id": file["id"], "endpoint": endpoint, "completion_window": completion_window}
        return self._asked("POST", "/v1/batches", {**body, "metadata": dict(metadata) or None})

    def batch(self, batch_id: str) -> dict[str, Any]:
        return self._asked("GET", f"/v1/batches/{quote(batch_id, safe='')}")

    def batches(self, limit: int) -> list[dict[str, Any]]:
        """The newest first."""
        found: list[dict[str, Any]] = self._asked("GET", f"/v1/batches?limit={limit}")["data"]
        return found

    def cancel(self, batch_id: str) -> dict[str, Any]:
        return self._asked("POST", f"/v1/batches/{quote(batch_id, safe='')}/cancel")

    def download(self, file_id: str, out: IO[bytes]) -> None:
        """Writes a file's content."""
        with self._answer("GET", f"/v1/files/{quote(file_id, safe='')}/content", None, {}) as answer:
            shutil.copyfileobj(answer, out, _CHUNK_BYTES)

    def _upload(self, source: Path) -> dict[str, Any]:
        boundary = uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{quote(source.name)}"\r\n'
            "Content-Type: application/jsonl\r\n\r\n"
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(len(head) + source.stat().st_size + len(tail)),
        }

        def parts() -> Iterator[bytes]:
            yield head
            with source.open("rb") as file:
                yield from iter(lambda: file.read(_CHUNK_BYTES), b"")
            yield tail

        with self._answer("POST", "/v1/files", parts(), headers) as answer:
            return _read(answer)

    def _asked(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        with self._answer(method, path, data, {"Content-Type": "application/json"} if data else {}) as answer:
            return _read(answer)

    @contextmanager
    def _answer(self, method: str, path: str, data: Any, headers: Mapping[str, str]) -> Iterator[Any]:
        request = Request(f"{self._url}{path}", data, dict(headers), method=method)
        if self._key:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        try:
            with urlopen(request, timeout=_TIMEOUT_S) as answer:
                yield answer
        except HTTPError as error:
            with error:
                raise ImpetusError(_sentence(error)) from None
        except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
            why = error.reason if isinstance(error, URLError) else error
            url = without_password(self._url)
            raise ImpetusError(f"the gateway at {url} does not answer ({why}): is `impetus serve` running?") from error


def _read(answer: Any) -> dict[str, Any]:
    try:
        value = json.loads(answer.read(_MOST_ANSWER_BYTES))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ImpetusError("what answers is no gateway: it sent no JSON object")
    return value


def _sentence(error: HTTPError) -> str:
    """What an error says, in OpenAI's shape, or its status."""
    try:
        said = json.loads(error.read(_MOST_ANSWER_BYTES))["error"]["message"]
    except (ValueError, LookupError, TypeError):
        said = error.reason
    return f"the gateway refuses ({error.code}): {printable(shortened(str(said), _MOST_ERROR_CHARACTERS))}"
