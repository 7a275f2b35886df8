"""The wire contract, in one place: queue names, function names, requests, results and their limits.

Jobs are ordinary RQ jobs with RQ's JSON serializer. Each names one of three functions and carries one JSON object, an
`EmbeddingRequest`, a `RerankRequest` or a `GenerationRequest`; its return value is the matching result, again a JSON
object. Any service can enqueue with plain RQ, knowing nothing but this page.

Here are the names; each kind of request and result is in a module of its own, and all are imported from here. Nothing
in it knows Redis or RQ.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from .conversation import MAX_SCHEMA_BYTES as MAX_SCHEMA_BYTES
from .conversation import MAX_TEXT_BYTES as MAX_TEXT_BYTES
from .conversation import Told
from .embedding import MAX_DIMENSIONS as MAX_DIMENSIONS
from .embedding import MAX_TEXTS_PER_JOB as MAX_TEXTS_PER_JOB
from .embedding import PROMPTINGS as PROMPTINGS
from .embedding import EmbeddingRequest as EmbeddingRequest
from .embedding import EmbeddingResult as EmbeddingResult
from .embedding import EmbeddingUsage as EmbeddingUsage
from .embedding import SparseBlock as SparseBlock
from .embedding import SparseVector as SparseVector
from .embedding import VectorBlock as VectorBlock
from .generation import Choice as Choice
from .generation import FinishReason as FinishReason
from .generation import GenerationRequest as GenerationRequest
from .generation import GenerationResult as GenerationResult
from .generation import GenerationTimings as GenerationTimings
from .generation import GenerationUsage as GenerationUsage
from .generation import LikelyToken as LikelyToken
from .generation import StreamOptions as StreamOptions
from .generation import TokenLogprob as TokenLogprob
from .provenance import Provenance as Provenance
from .reranking import MAX_DOCUMENTS_PER_JOB as MAX_DOCUMENTS_PER_JOB
from .reranking import RankedDocument as RankedDocument
from .reranking import RerankRequest as RerankRequest
from .reranking import RerankResult as RerankResult
from .reranking import RerankUsage as RerankUsage

EMBED_FUNCTION = "impetus_worker.jobs.embed"
GENERATE_FUNCTION = "impetus_worker.jobs.generate"
RERANK_FUNCTION = "impetus_worker.jobs.rerank"
VECTORS_FIELD = "vectors"
"""Of an entry in RQ's result stream: the vectors of a request for `raw` ones."""

EMBEDDING_QUEUE = "embedding"
EMBEDDING_BULK_QUEUE = "embedding-bulk"
GENERATION_QUEUE = "generation"
GENERATION_BULK_QUEUE = "generation-bulk"
RERANK_QUEUE = "rerank"
RERANK_BULK_QUEUE = "rerank-bulk"
STANDBY_QUEUE = "embedding-standby"
"""Where `rq info` shows the workers that would serve embeddings, and let a Neural Engine do it. Nothing goes there."""
WORKER_RECORD_KEY = "impetus:worker:"
"""Before a worker's name: the key of its `WorkerRecord`, which lives for some seconds unless renewed."""
STREAM_KEY = "impetus:stream:"
"""Before a job's id: the Redis stream of what a generation says while it runs, entries of `StreamField`s."""
STREAM_TTL_S = 3600
"""How long a stream stays after its last entry."""
AWAITED_KEY = "impetus:awaited:"
"""Before a job's id: there for as long as somebody waits for a job that asked for `cancel_if_abandoned`."""
ABANDONED_AFTER_S = 30
"""Whoever waits for such a job sets that key to expire after this, and sets it again well before it does."""
CANCEL_KEY = "impetus:cancel:"
"""Before a job's id: there once somebody wished that the job, which runs, be stopped. Its worker sees to it within
seconds and deletes it when the job ends."""
CANCEL_TTL_S = 24 * 3600
BATCH_KEY = "impetus:batch:"
"""Before a batch's id: who runs it, a key that expires."""
WAKE_KEY = "impetus:wake:"
"""Before a name: the stream by which tasks of one producer wake the one that listens for them. Nobody else reads it."""
#: A role's queues, the one whose caller is waiting first.
ROLE_QUEUES = {
    "embedding": (EMBEDDING_QUEUE, EMBEDDING_BULK_QUEUE),
    "generation": (GENERATION_QUEUE, GENERATION_BULK_QUEUE),
    "rerank": (RERANK_QUEUE, RERANK_BULK_QUEUE),
}
#: The function that the jobs of a role name.
ROLE_FUNCTIONS = {"embedding": EMBED_FUNCTION, "generation": GENERATE_FUNCTION, "rerank": RERANK_FUNCTION}
OPTIONAL_ROLES = frozenset({"rerank"})
"""Those that a worker has only where it is asked to: nothing is amiss while nobody does and no such job waits."""
BULK_QUEUES = frozenset(bulk for _, bulk in ROLE_QUEUES.values())

MAX_PAYLOAD_BYTES = 64_000_000
"""The largest job payload a worker reads, after decompression."""

DEFAULT_RESULT_TTL_S = 3600
"""How long a result waits in Redis to be fetched."""
DEFAULT_FAILURE_TTL_S = 7 * 24 * 3600
"""How long a failed job and its reason are kept."""
DEFAULT_TIMEOUT_S = 600
"""How long a job may run once its first batch has started."""


def role_of_queue(queue: str) -> str:
    """The role whose jobs go there; `embedding` for a queue that is none of the contract's."""
    return next((role for role, queues in ROLE_QUEUES.items() if queue in queues), "embedding")


class StreamEvent(StrEnum):
    """What an entry of a token stream is about."""

    START = "start"
    """A run begins. Not the first one: whatever earlier runs said is void."""
    TEXT = "text"
    END = "end"
    """The job is over, and nothing comes after it."""


def channel_name(choice: int, *, reasoning: bool = False) -> str:
    """Of an answer's text, or of what the model thought before it: "", "reasoning", "1", "1/reasoning"."""
    return "/".join(filter(None, (str(choice) if choice else "", "reasoning" if reasoning else "")))


class StreamField(StrEnum):
    """The fields of an entry in a token stream."""

    EVENT = "event"
    """A `StreamEvent`."""
    RUN = "run"
    """Which run of the job this belongs to: any text, new for each run."""
    AT = "at"
    """With `text`: how many characters of this run and channel come before it. An entry may be written twice."""
    TEXT = "text"
    CHANNEL = "channel"
    """With `text`: of what this is a part, where it is not the text of the first answer: `channel_name`."""
    STATUS = "status"
    """With `end`: finished, failed or stopped."""
    RESULT = "result"
    """With `end`, of a job that failed or was stopped: what it had made, a `GenerationResult` as JSON."""


Seconds: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Bytes: TypeAlias = Annotated[int, Field(ge=0, lt=2**53)]


class ServedModel(Told):
    """A model that a worker serves besides its own."""

    name: str
    """That results carry."""
    aliases: tuple[str, ...] = ()
    """Every name by which a request may ask for it."""


class MeasuredCost(Told):
    """What batches cost a worker's device, by its own measurements: `call_s + token_s * padded tokens` seconds."""

    call_s: Seconds
    token_s: Seconds
    batch_tokens: Annotated[int, Field(ge=1, lt=2**31)]
    """In its largest batches."""

    def seconds(self, padded_tokens: int) -> float:
        """For a batch of so many."""
        return self.call_s + self.token_s * padded_tokens


class WorkerRecord(Told):
    """What a worker says of itself to the others, and to whoever looks. Fields of later versions are passed over."""

    name: str
    """In RQ."""
    role: Literal["embedding", "generation", "rerank"]
    model: str
    aliases: tuple[str, ...] = ()
    """Every name by which a request may ask for the model, or for another that it serves."""
    more_models: tuple[ServedModel, ...] = ()
    """Those others, loaded when asked for."""
    backend: str
    device: str
    neural_engine: bool = False
    """Whether it embeds on a Neural Engine, and so goes before all that do not."""
    serving: bool = True
    """False while its engine loads, or is stuck."""
    engine_deaths: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """How often its engine process ended though nobody had told it to; it was started again each time."""
    cost: MeasuredCost | None = None
    """None: it batches nothing, or has measured nothing yet."""
    memory_bytes: Bytes | None = None
    """What its engine's process has. None: it could not be found out, or not yet."""
    memory_limit_bytes: Bytes | None = None
    """What that may have."""
    prefer: Literal["energy", "speed"] = "speed"
    """`energy`: it leaves embeddings to a Neural Engine where one serves."""
    bulk: bool = True
    """False while its machine is hot, or low on battery: it takes no bulk then."""
    machine: str = ""
    """The chip."""
    note: str | None = None
    """What there is to know of the backend, such as how much of the model its compute plan places on what."""
    since: str = ""
    """When it started, ISO 8601, UTC."""
    ttl_s: Seconds = 10.0
    """How long this record lives unless it is renewed. What of that is gone tells when it was renewed last, by the
    server's clock alone."""
