"""An engine whose device is another server: it forwards requests, so many at a time, and hands on what comes back."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import queue
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import BackendUnavailableError
from ..protocol import EngineInfo, Event, Generated, GenerationWork, Rejected, Started, Work
from .address import Address, read_address
from .answers import Answers
from .exchange import Exchange, Patience, Told, bearer, unreadable, without_key
from .failures import UpstreamError, said_by
from .requests import refusal, request_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..engine_config import EngineConfig
    from ..protocol import Answer

KEY_VARIABLE = "IMPETUS_UPSTREAM_KEY"
"""Of the environment, and the only place where the server's key may be."""

_STEP_S = 0.02
"""A step waits no longer for news, so that the process hears what it is told, and gives signs of life."""
_NEWS_A_STEP = 1000
_CLOSING_S = 1.0
_LONGEST_LIST = 4 * 2**20
_LONGEST_NAME = 1024
_CANNOT_BE_DONE = (400, 422)
"""What servers answer to a request that they understand and will not serve."""


@dataclass(slots=True, eq=False)
class _Running:
    work: GenerationWork
    admitted_at: float
    answers: Answers
    limited: bool = True
    """Whether it is asked for no more than the operator's limit, where it does not say itself."""
    first_token_at: float | None = None


class UpstreamEngine:
    """Implements `protocol.Engine` for `GenerationWork`. At most `info.max_concurrent` requests are out at a time.

    What the server does not say is not known: tokens are then counted by pieces of text. Times count from `admit`.
    """

    def __init__(
        self,
        address: Address,
        info: EngineInfo,
        models: Mapping[str, str],
        *,
        key: str | None = None,
        max_answer_tokens: int = 4096,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`models`: by each name that a request may use, and by the default's, what the server calls it."""
        self._address = address
        self._info = info
        self._models = models
        self._key = key
        self._max_answer_tokens = max_answer_tokens
        self._patience = patience or Patience()
        self._clock = clock
        self._waiting: deque[_Running] = deque()
        self._running: dict[Exchange, _Running] = {}
        self._news: queue.SimpleQueue[tuple[Exchange, Told]] = queue.SimpleQueue()
        self._events: list[Event] = []

    @property
    def info(self) -> EngineInfo:
        return self._info

    def admit(self, work: Work) -> None:
        if not isinstance(work, GenerationWork):
            self._events.append(Rejected(work.id, "an upstream server generates text here and makes no embeddings"))
        elif (why := refusal(work)) is not None:
            self._events.append(Rejected(work.id, why))
        elif (work.model or self._info.model) not in self._models:
            self._events.append(Rejected(work.id, f"model: the upstream has no {work.model!r:.200}"))
        else:
            self._waiting.append(_Running(work, self._clock(), Answers(work)))

    def cancel(self, work_id: int) -> None:
        self._hear(wait_s=0.0)
        for running in [each for each in self._waiting if each.work.id == work_id]:
            self._waiting.remove(running)
            self._end_cancelled(running)
        for exchange, running in list(self._running.items()):
            if running.work.id == work_id:
                exchange.cancel()
                del self._running[exchange]
                self._end_cancelled(running)

    def _end_cancelled(self, running: _Running) -> None:
        try:
            self._end(running, running.answers.so_far())
        except Exception as error:  # noqa: BLE001 - half an answer may be as wrong as a whole one
            self._fail(running, error)

    def _fail(self, running: _Running, error: Exception) -> None:
        """What is wrong with an answer, if it is only that we stumble over it, is that request's alone."""
        if not isinstance(error, UpstreamError):
            error = unreadable(error)
        self._events.append(Rejected(running.work.id, without_key(str(error), self._key), error.permanent))

    def pending(self) -> int:
        return len(self._waiting) + len(self._running) + len(self._events)

    def step(self) -> list[Event]:
        """Waits a little for news of the server, unless there are events without it."""
        while self._waiting and len(self._running) < self._info.max_concurrent:
            running = self._waiting.popleft()
            self._events.append(Started(running.work.id))
            self._send(running)
        self._hear(wait_s=0.0 if self._events else _STEP_S)
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Closes all connections. The engine cannot be used afterwards."""
        for exchange in self._running:
            exchange.cancel()
        for exchange in self._running:
            exchange.join(_CLOSING_S)
        self._running.clear()
        self._waiting.clear()
        self._events.clear()

    def _send(self, running: _Running) -> None:
        path, body = request_of(
            running.work,
            model=self._models[running.work.model or self._info.model],
            answers_before=len(running.answers),
            max_answer_tokens=self._max_answer_tokens if running.limited else None,
        )
        exchange = Exchange(self._address, path, body, self._tell, key=self._key, patience=self._patience)
        self._running[exchange] = running
        exchange.start()

    def _tell(self, exchange: Exchange, told: Told) -> None:
        self._news.put((exchange, told))

    def _hear(self, wait_s: float) -> None:
        """Takes in what the threads have told; waits so long, at most, for the first of it."""
        for _ in range(_NEWS_A_STEP):
            try:
                exchange, told = self._news.get(timeout=wait_s) if wait_s else self._news.get_nowait()
            except queue.Empty:
                return
            wait_s = 0.0
            if (running := self._running.get(exchange)) is None:
                continue  # it was cancelled
            try:
                self._take(exchange, running, told)
            except Exception as error:  # noqa: BLE001 - see there
                exchange.cancel()
                self._running.pop(exchange, None)
                self._fail(running, error)

    def _take(self, exchange: Exchange, running: _Running, told: Told) -> None:
        answers = running.answers
        if isinstance(told, UpstreamError):
            if told.status in _CANNOT_BE_DONE and running.limited and running.work.max_tokens is None:
                running.limited = False  # it may be more than the server's context leaves, which nobody knows here
                del self._running[exchange]
                self._send(running)
                return
            if not answers.has_ended:
                raise told
        elif told is not None:
            pieces = answers.take(told)
            if running.first_token_at is None and answers.has_begun:
                running.first_token_at = self._clock()
            if running.work.stream:
                self._events += pieces
            return
        answers.end_of_request()
        del self._running[exchange]
        if not answers.is_whole:
            self._send(running)  # a server that knows of one answer a request alone is asked once for each
            return
        self._end(running, answers.whole())

    def _end(self, running: _Running, made: tuple[Answer, ...]) -> None:
        now, work, answers, first = self._clock(), running.work, running.answers, running.first_token_at
        model = self._models[work.model or self._info.model]
        drawn = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        self._events.append(
            Generated(
                id=work.id,
                answers=made,
                prompt_tokens=answers.prompt_tokens,
                completion_tokens=answers.completion_tokens,
                first_token_s=first - running.admitted_at if first is not None else 0.0,
                total_s=now - running.admitted_at,
                model=_shown(model),
                fingerprint=_fingerprint(self._address, model),
                note=_note(model, answers.model),
                cached_tokens=answers.cached_tokens,
                reasoning_tokens=answers.reasoning_tokens,
                sampling={name: value for name in drawn if (value := getattr(work, name)) is not None},
            )
        )


def open_upstream(config: EngineConfig, *, patience: Patience | None = None) -> UpstreamEngine:
    """The engine for the server at `config.upstream`, which has been asked for its models.

    Raises `BackendUnavailableError` where it does not answer, names no model, or cannot do what the worker is told.
    """
    if not config.upstream:
        raise BackendUnavailableError(
            "openai: no upstream is known; start the worker with --upstream http://HOST:PORT/v1"
        )
    if config.special_tokens == "text":
        raise BackendUnavailableError("openai: --special-tokens text cannot be promised for an upstream server")
    address, key = read_address(config.upstream), _key()
    patience = patience or Patience()
    listed = _listed(address, key, patience, asked=config.model is not None)
    if config.model is None and not listed:
        raise BackendUnavailableError(
            f"openai: the upstream at {address} names no model: load one there, or say which with --generation-model"
        )
    model = _called(config.model, listed) if config.model is not None else listed[0]
    models: dict[str, str] = {} if config.model is None else {config.model: model}
    for each in (model, *(_called(name, listed) for name in config.more_models), *listed):
        models.setdefault(_shown(each), each)
        models.setdefault(each, each)
    info = EngineInfo(
        kind="generation",
        backend="openai",
        device="upstream",
        model=_shown(model),
        model_aliases=tuple(models),
        fingerprint=_fingerprint(address, model),
        precision="unknown",
        takes_parts=True,
        max_concurrent=config.max_concurrent,
        reasons=(f"openai: asked for by name; requests go to {address}",),
    )
    return UpstreamEngine(address, info, models, key=key, max_answer_tokens=config.max_answer_tokens, patience=patience)


def _key() -> str | None:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key.isascii() or not key.isprintable():
        raise BackendUnavailableError(f"openai: the key in {KEY_VARIABLE} holds characters that no header can")
    return key or None


def _listed(address: Address, key: str | None, patience: Patience, *, asked: bool) -> list[str]:
    """What the server calls its models. `asked`: one is known, so that a list that cannot be read is no matter."""
    connection = address.connection(patience.connect_s)
    try:
        headers = {"Accept": "application/json", "Connection": "close"}
        connection.request("GET", f"{address.path}/models", headers=headers | bearer(key))
        with connection.getresponse() as response:
            status, body = response.status, response.read(_LONGEST_LIST).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        raise BackendUnavailableError(
            f"openai: nothing at {address} answers ({error!s:.200}): start the server there (LM Studio, Ollama, "
            "mlx_lm.server, …), or say with --upstream where it is"
        ) from None
    finally:
        connection.close()
    if status != 200:
        hint = "; does its URL end with /v1?" if status == 404 else ""
        hint = f"; its key belongs into {KEY_VARIABLE}" if status in (401, 403) else hint
        said = without_key(said_by(body), key)
        raise BackendUnavailableError(f"openai: {address}/models answers {status}{f' ({said})' if said else ''}{hint}")
    with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError):
        names = [each["id"] for each in json.loads(body)["data"]]
        known = [name for name in names if isinstance(name, str) and name.isprintable()]
        return [name for name in dict.fromkeys(known) if 0 < len(name) <= _LONGEST_NAME]
    if asked:
        return []
    raise BackendUnavailableError(
        f"openai: {address}/models answers with no list of models; say which to ask for with --generation-model"
    )


def _called(name: str, listed: Sequence[str]) -> str:
    """What the server calls the model of this name: as it lists one, or else by this very name."""
    if name in listed:
        return name
    alike = [each for each in listed if name == each.rpartition("/")[2] or each == f"{name}:latest"]
    return alike[0] if len(alike) == 1 else name


def _shown(name: str) -> str:
    """The name results carry: of a folder, which says where things lie on that machine, only what it is called."""
    return name.rstrip("/").rpartition("/")[2] or name if name.startswith(("/", "~")) else name


def _note(asked: str, said: str | None) -> str | None:
    """Some servers answer with what they have loaded, whatever they are asked for."""
    if said is None or _last(said) == _last(asked):
        return None
    return f"the upstream says that {said_by(_shown(said))} answered"


def _last(name: str) -> str:
    """Of a model's name, without the place where it lies."""
    return name.rstrip("/").rpartition("/")[2].removesuffix(":latest").lower()


def _fingerprint(address: Address, model: str) -> str:
    return hashlib.sha256(f"{address}\0{model}".encode("utf-8", "replace")).hexdigest()[:16]
