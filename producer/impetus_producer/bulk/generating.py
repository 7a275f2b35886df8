"""Generation as work on documents: an answer for each."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from .. import contract
from ..contract import GenerationRequest, GenerationResult
from ..enqueueing import jobs
from ..enqueueing.parsing import parse_request
from ..errors import InvalidRequestError
from .kept.store import Answer, Served
from .works import MODEL_QUESTION, ON_DEVICE, Result, Work, awaited, text_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..client import Producer
    from ..documents import Document, DocumentId


@dataclass(frozen=True, slots=True)
class GeneratedDocument:
    """What a model made of a document. `answer`: `text`, `finish_reason`, `reasoning` and numbers of tokens."""

    id: DocumentId
    answer: Mapping[str, Any]
    model: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class GenerationWork(Work[GeneratedDocument]):
    """`options`: fields of a `GenerationRequest`, the same for all. `system`: what stands before each document's text;
    `raw`: the text is continued as it stands.

    Where no seed and no temperature of 0 fixes the answer, equal texts are answered each for itself.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None
    raw: bool = False

    queue: ClassVar[str] = contract.GENERATION_BULK_QUEUE
    function: ClassVar[str] = contract.GENERATE_FUNCTION
    shared_fields: ClassVar[frozenset[str]] = frozenset(GenerationRequest.model_fields) - {"messages", "prompt"}
    most_per_job: ClassVar[int] = 1
    label: ClassVar[str] = "Generating"
    makes: ClassVar[str] = "answers"

    def check(self) -> None:
        parse_request(GenerationRequest, self._request("no text in particular"))

    def refusal(self, document: Document) -> str | None:
        try:
            parse_request(GenerationRequest, self._request(document.text))
        except InvalidRequestError as error:
            return str(error)
        return None

    def key(self, document: Document) -> bytes:
        fixed = self.options.get("temperature") == 0 or self.options.get("seed") is not None
        whose = () if fixed else (document.id, document.row, document.file)
        asked = json.dumps(dict(self.options), sort_keys=True)
        return text_key(document.text, "generate", asked, self.system, self.raw, whose)

    def payload(self, documents: Sequence[Document]) -> dict[str, Any]:
        (document,) = documents
        return self._request(document.text)

    def _request(self, text: str) -> dict[str, Any]:
        if self.raw:
            return {**self.options, "prompt": text}
        before = [] if self.system is None else [{"role": "system", "content": self.system}]
        return {**self.options, "messages": [*before, {"role": "user", "content": text}]}

    def read(self, job_id: str, return_value: Any) -> Result:
        result = jobs.read_result(job_id, GenerationResult, return_value)
        answer = {
            "text": result.text,
            "finish_reason": str(result.finish_reason),
            "reasoning": result.reasoning_content,
            "prompt_tokens": result.usage.prompt_tokens,
            "completion_tokens": result.usage.completion_tokens,
        }
        counted = {
            "prompt_tokens": result.usage.prompt_tokens,
            "completion_tokens": result.usage.completion_tokens,
            "cut_answers": int(result.finish_reason == "length"),
            f"{ON_DEVICE}{result.provenance.device}": 1,
        }
        value = json.dumps(answer, ensure_ascii=False).encode()
        return Result([Answer(value, result.model, result.provenance.fingerprint)], counted)

    def outcome(self, document: Document, answer: Answer) -> GeneratedDocument:
        return GeneratedDocument(document.id, json.loads(answer.value), answer.model, answer.fingerprint)

    def served(self, producer: Producer, while_waiting: Callable[[], None] | None) -> Served:
        handle = producer.generate(MODEL_QUESTION, model=self.options.get("model"), max_tokens=1)
        result: GenerationResult = awaited(handle, while_waiting)
        return Served(result.model, result.provenance.fingerprint)
