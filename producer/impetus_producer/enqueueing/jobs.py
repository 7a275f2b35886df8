"""A request as an RQ job, and an RQ result as an answer: the bytes that lie in Redis.

RQ's own classes make a job in about 200 microseconds, and importing them costs more than everything else here, so
the few fields that RQ reads back are written by hand; a test compares them with what `rq.Queue.enqueue` writes.
Source of the layout: rq 3.0, `Job.to_dict`, `Queue.enqueue_many`, `Result.restore`.
"""

from __future__ import annotations

import base64
import json
import sys
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from pydantic import ValidationError

from ..contract import AWAITED_KEY, CANCEL_KEY, VECTORS_FIELD
from ..errors import InvalidRequestError, JobFailedError, UnreadableResultError
from ..servers.answers import Trouble, known_answers, trouble
from ..shown import shortened
from ..streams import stream_key
from ..talks.steps import Question
from .parsing import first_sentence
from .scripts import ENQUEUE_SCRIPT, WITHDRAW_SCRIPT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import BaseModel

    from ..talks.steps import Talk

ModelT = TypeVar("ModelT", bound="BaseModel")

_COMPRESS_FROM_BYTES = 1024
SUCCESSFUL, FAILED, STOPPED, RETRIED, RETRIES_EXHAUSTED = 1, 2, 3, 4, 5
"""RQ's types of results."""
_TYPES = {str(kind).encode(): kind for kind in (SUCCESSFUL, FAILED, STOPPED, RETRIED, RETRIES_EXHAUSTED)}
MAX_RESULT_BYTES = 256_000_000
"""The largest return value that is read."""
MAX_RESULT_FIELDS = 100
"""Of a later version too: more are no result."""
MAX_TRACE_BYTES = 4_000_000
"""The longest traceback that is read."""
MAX_REASON_CHARACTERS = 10_000
"""So much is kept of the sentence of a failure."""
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"


def job_key(job_id: str) -> str:
    return f"rq:job:{job_id}"


def queue_key(queue: str) -> str:
    return f"rq:queue:{queue}"


def results_key(job_id: str) -> str:
    return f"rq:results:{job_id}"


def awaited_key(job_id: str) -> str:
    return f"{AWAITED_KEY}{job_id}"


def cancel_key(job_id: str) -> str:
    return f"{CANCEL_KEY}{job_id}"


@dataclass(frozen=True, slots=True)
class JobOptions:
    """How long things may take and stay, in seconds."""

    timeout_s: int
    result_ttl_s: int
    failure_ttl_s: int
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What the enqueuer notes beside the job, RQ's `job.meta`: plain JSON data."""


def encode_payload(function: str, payload: Mapping[str, Any]) -> bytes:
    """RQ's `data` field: the JSON of (function, instance, args, kwargs), deflated where that saves memory.

    Raises `InvalidRequestError` for what is no JSON, wherever in the payload it is.
    """
    try:
        data = _json([function, None, [payload], {}])
    except (TypeError, ValueError):
        name, fault = next((name, fault) for name, value in payload.items() if (fault := _fault(value)))
        raise InvalidRequestError(f"{name}: {fault}", field=name) from None
    # RQ reads data that does not inflate as it stands; level 1 is five times as fast as RQ's 6 and 10 % larger.
    return zlib.compress(data, 1) if len(data) >= _COMPRESS_FROM_BYTES else data


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _fault(value: Any) -> str:
    """Why a value cannot be written; empty where it can."""
    try:
        _json(value)
    except UnicodeEncodeError:
        return "holds half a surrogate pair, which is no text"
    except (TypeError, ValueError) as error:
        return f"is no JSON: {error}"
    return ""


def new_id() -> str:
    return uuid4().hex


def enqueueing(
    queue: str, function: str, payloads: Mapping[str, Mapping[str, Any]], options: JobOptions
) -> Question[int]:
    """Enqueues one job a payload, by its id, in one round trip; answered by the queue's new length.

    The same when it is asked twice: a job that is there stays as it is.
    """
    now = datetime.now(UTC).strftime(TIME_FORMAT)
    common: dict[Any, Any] = {
        "status": "queued",
        "origin": queue,
        "created_at": now,
        "enqueued_at": now,
        "description": f"{function}(…)",
        "timeout": options.timeout_s,
        "result_ttl": options.result_ttl_s,
        "failure_ttl": options.failure_ttl_s,
    }
    if meta := {**_trace(), **options.meta}:
        common["meta"] = json.dumps(meta)
    arguments: list[Any] = [queue, len(common)]
    for name, value in common.items():
        arguments += (name, value)
    for job_id, payload in payloads.items():
        arguments += (job_id, encode_payload(function, payload))
    return Question(lambda client: client.register_script(ENQUEUE_SCRIPT)(args=arguments), int)


def _trace() -> dict[str, str]:
    """What tells the worker under which span of the caller's it works, where the caller uses OpenTelemetry."""
    carrier: dict[str, str] = {}
    if "opentelemetry.trace" in sys.modules:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(carrier)
    return {name: value for name, value in carrier.items() if name == "traceparent"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One entry of a job's result stream."""

    final: bool
    """False when the job failed and will be tried again."""
    return_value: Any
    error: JobFailedError | None


def decode_outcome(job_id: str, entry: Mapping[bytes, bytes]) -> Outcome:
    """Reads an entry of the stream `rq:results:<id>`, whoever wrote it, in bounded memory.

    Raises `UnreadableResultError`. A failure whose reason cannot be read is a failure.
    """
    kind = _TYPES.get(entry.get(b"type", b""))
    if kind is None:
        raise UnreadableResultError(job_id, f"{entry.get(b'type', b'')[:20]!r} is no type of result that RQ knows")
    if kind == SUCCESSFUL:
        return Outcome(True, _return_value(job_id, entry), None)
    if kind == RETRIED:
        return Outcome(False, None, None)
    return Outcome(True, None, _failure(job_id, entry.get(b"exc_string", b"")))


def _return_value(job_id: str, entry: Mapping[bytes, bytes]) -> Any:
    encoded = entry.get(b"return_value", b"")
    if len(encoded) > MAX_RESULT_BYTES:
        raise UnreadableResultError(job_id, f"its {len(encoded):,} bytes are larger than any result")
    try:
        raw = base64.b64decode(encoded)
        value: Any = json.loads(raw) if raw else None
        if b"\\ud" in raw or b"\\uD" in raw:
            # Half a surrogate pair is no text, and fails whoever writes it anywhere.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # no base64, no UTF-8, no JSON
        raise UnreadableResultError(job_id, f"it is no JSON in base64 ({shortened(str(error))})") from None
    if (vectors := entry.get(VECTORS_FIELD.encode())) is not None:
        if not isinstance(value, dict) or not isinstance(value.get("embeddings"), dict):
            raise UnreadableResultError(job_id, "there are vectors beside it, and it has no place for them")
        value["embeddings"]["data"] = vectors
    return value


def _failure(job_id: str, encoded: bytes) -> JobFailedError:
    """Reads no further than a traceback is long: a few bytes inflate to gigabytes."""
    inflating = zlib.decompressobj()
    try:
        trace = inflating.decompress(base64.b64decode(encoded), MAX_TRACE_BYTES) if encoded else b""
    except (ValueError, zlib.error):
        return JobFailedError(job_id, "the job failed, and its reason cannot be read: it is no text that RQ wrote")
    if encoded and not inflating.eof:
        return JobFailedError(
            job_id,
            f"the job failed, and its reason cannot be read: it is cut off, or longer than {MAX_TRACE_BYTES:,} bytes",
        )
    return failure_from(job_id, trace.decode(errors="replace"))


def read_result(job_id: str, result_type: type[ModelT], return_value: Any) -> ModelT:
    """A job's return value as the contract's result. Lenient where JSON has lists for tuples, and where a later version
    has fields that this one has not.

    Raises `UnreadableResultError`.
    """
    if isinstance(return_value, dict) and len(return_value) > MAX_RESULT_FIELDS:
        raise UnreadableResultError(job_id, f"it is not what the contract says: it has {len(return_value):,} fields")
    try:
        return result_type.model_validate(return_value, strict=False)
    except ValidationError as error:
        why = f"it is not what the contract says: {shortened(first_sentence(error), 500)}"
        raise UnreadableResultError(job_id, why) from None


def failure_from(job_id: str, trace: str) -> JobFailedError:
    """The sentence in the last line of a traceback, which is all that our workers write."""
    lines = trace.strip().splitlines() or ["the job failed and left no reason"]
    name, separator, message = lines[-1].partition(": ")
    if not separator or " " in name:
        return JobFailedError(job_id, shortened(lines[-1], MAX_REASON_CHARACTERS))
    return JobFailedError(job_id, shortened(message, MAX_REASON_CHARACTERS), reason=shortened(name.rpartition(".")[2]))


def withdrawing(job_ids: Sequence[str], queue: str) -> Question[list[str]]:
    """Takes those that still wait off the queue, and answers with their ids: whose id was there, no worker has it. What
    else is kept by them is to be discarded.
    """

    def ask(client: Any) -> Any:
        return client.register_script(WITHDRAW_SCRIPT)(args=[queue, *job_ids])

    return Question(ask, lambda answer: [job_id.decode() for job_id in answer])


def discarding(job_ids: Sequence[str], queue: str | None = None) -> Talk[None]:
    """Deletes ended jobs, all that is kept by their id, and their places in the registries of `queue`, or of theirs."""
    origins = [queue.encode()] * len(job_ids) if queue is not None else (yield _origins(job_ids))

    def ask(client: Any) -> Any:
        pipeline = client.pipeline(transaction=False)
        for job_id, origin in zip(job_ids, origins, strict=True):
            pipeline.delete(stream_key(job_id))
            pipeline.delete(job_key(job_id), results_key(job_id), awaited_key(job_id), cancel_key(job_id))
            pipeline.zrem(b"rq:finished:" + origin, job_id)
            pipeline.zrem(b"rq:failed:" + origin, job_id)
        return pipeline.execute(raise_on_error=False)

    yield Question(ask, _discarded)


def _origins(job_ids: Sequence[str]) -> Question[list[bytes]]:
    def ask(client: Any) -> Any:
        pipeline = client.pipeline(transaction=False)
        for job_id in job_ids:
            pipeline.hget(job_key(job_id), "origin")
        return pipeline.execute(raise_on_error=False)

    return Question(ask, lambda answers: [each or b"" for each in known_answers(answers)])


def _discarded(answers: Sequence[Any]) -> None:
    """Streams are the workers' to write; where we may not delete them their time to live does. What is of another type,
    such as a registry, holds nothing of these jobs.
    """
    from redis.exceptions import NoPermissionError

    for at, answer in enumerate(answers):
        if not isinstance(answer, Exception) or trouble(answer) is Trouble.DATA:
            continue
        if not (at % 4 == 0 and isinstance(answer, NoPermissionError)):
            raise answer
